"""How a Flower app learns its run: from the run configuration that Flower hands to both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import platformdirs

from hushtune.common.config import RunConfig
from hushtune.common.config_io import config_hash, dump_toml, load_config, loads_config
from hushtune.common.errors import ConfigError
from hushtune.common.presets import PRESETS

TOML, OUT = "toml", "out"


@dataclass(frozen=True, eq=False)
class RunContext:
    """A run's resolved configuration and its folder; equal runs are one object."""

    config: RunConfig
    out: Path


def run_config(config: RunConfig, out: Path) -> dict[str, str]:
    """The Flower run configuration of a run that is resolved already."""
    return {TOML: dump_toml(config), OUT: str(out)}


def read_run_config(raw: Mapping[str, object]) -> RunContext:
    """The run that a Flower run configuration speaks of; raises ConfigError.

    ``toml`` holds a whole configuration; without it ``preset``, ``config`` (a file) and ``set``
    (``section.key=value``, separated by ``;``) are read as the command line reads them. Equal
    configurations give the same object.
    """
    known = {TOML, OUT, "preset", "config", "set"}
    text = {key: str(value) for key, value in raw.items() if key in known}
    return _read(tuple(sorted(text.items())))


@lru_cache(maxsize=256)
def _read(items: tuple[tuple[str, str], ...]) -> RunContext:
    raw = dict(items)
    if raw.get(TOML):
        config = loads_config(raw[TOML])
    else:
        if raw.get("config"):
            path, preset = Path(raw["config"]).expanduser(), None
            if not path.is_absolute():
                raise ConfigError(
                    "the path of a configuration must be absolute here",
                    given=raw["config"],
                    remedy="flwr run . --run-config 'config=\"/full/path/run.toml\"'",
                )
        else:
            path, preset = None, raw.get("preset") or None
        overrides = [part.strip() for part in raw.get("set", "").split(";") if part.strip()]
        config = load_config(path, preset=preset, presets=PRESETS, overrides=overrides)
    from hushtune.common.tasks.workspace import resolve

    default = Path(platformdirs.user_data_dir("hushtune")) / "runs" / config_hash(config)[:12]
    return RunContext(resolve(config), Path(raw.get(OUT) or default))
