"""Read, check and write configurations; every error names the key, the place and the remedy.

Settings come in layers, each over the one before: a preset, a TOML file, ``--set`` overrides.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tomli_w
from pydantic import ValidationError

from hushtune.common import config_warmup
from hushtune.common.config import RunConfig
from hushtune.common.config_data import SOURCES
from hushtune.common.config_problems import Origins, as_config_error, takes_text
from hushtune.common.config_template import json_schema, template
from hushtune.common.errors import ConfigError, MissingFileError, PresetError

CONFIG = "config.toml"
"""The file in a run's folder that holds all of its settings."""

__all__ = [
    "config_hash",
    "dump_toml",
    "json_schema",
    "load_config",
    "loads_config",
    "replace",
    "template",
]

Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Settings as a tree, where they stood, and the folder that relative paths in them are from."""

    place: str
    tree: Mapping[str, Any]
    folder: Path


_ALTERNATIVES: tuple[tuple[str, frozenset[str]], ...] = (
    ("data", frozenset(SOURCES)),
    ("train", frozenset({"batch_size", "sampling_probability"})),
)
"""Keys of which a configuration holds one: a layer that names one drops those of earlier layers."""

_PRESET, _WARMUP, _ROUNDS = "preset ", "train.warmup_rounds", "train.rounds"


def load_config(
    path: Path | None = None,
    *,
    preset: str | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    layers: Sequence[Layer] = (),
    overrides: Sequence[str] = (),
) -> RunConfig:
    """A checked configuration from a preset, a TOML file over it, and further settings over both.

    Relative paths of data are taken from the file's folder, those in overrides from the working
    directory; the result holds absolute ones.

    Args:
        path: a TOML file.
        preset: a name in `presets`.
        presets: the settings of each preset.
        layers: settings that lie over these, in turn.
        overrides: ``section.key=value``; the value is read as TOML, else as bare text.

    Raises:
        ConfigError: a value cannot be used, a source is missing, or the file is not TOML.
        UnknownKeyError: a key does not exist; the nearest one is proposed.
        PresetError: there is no such preset.
        MissingFileError: there is no such TOML file.
    """
    found: list[tuple[str, Tree]] = []
    if preset is not None:
        found.append((f"{_PRESET}{preset}", _preset(preset, presets or {})))
    if path is not None:
        found.append((str(path), read_tree(path)))
    for over in layers:
        found.append((over.place, _with_absolute_paths(dict(over.tree), over.folder)))
    given: Tree = {}  # one layer, so that two alternatives in it are an error, not a silent choice
    for override in overrides:
        given = merged(given, _parse_override(override))
    if given:
        found.append(("--set", _with_absolute_paths(given, Path.cwd())))
    tree: Tree = {}
    places: dict[str, str] = {}
    own = False  # whether somebody asked for the warm-up, who is no preset
    for place, layer in found:
        tree = merged(_without_replaced(tree, layer, keep_warmup=own), layer)
        places.update(dict.fromkeys(_dotted(layer), place))
        own = not places.get(_WARMUP, _PRESET).startswith(_PRESET)
    config = _validate(tree, Origins(places, list(dict.fromkeys(place for place, _ in found))))
    return config if own else config_warmup.following(config)


def read_tree(path: Path) -> Tree:
    """The settings that a TOML file gives, its relative paths from its folder; as it, unchecked."""
    return _with_absolute_paths(parse_file(path), path.absolute().parent)


def loads_config(text: str) -> RunConfig:
    """A checked configuration from TOML text, as `dump_toml` writes it. Raises ConfigError."""
    place = "the run's configuration"
    return _validate(_parse(text, place), Origins({}, [place]))


def stored_config(run: Path) -> RunConfig | None:
    """The configuration in a run's folder; None where there is none that can be read."""
    try:
        return loads_config((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ConfigError):
        return None


def replace(
    config: RunConfig, changes: Mapping[str, Any], *, place: str = "the changed settings"
) -> RunConfig:
    """The configuration with other values, checked anew: ``{"train.rounds": 3}``.

    Of alternatives (the data's sources; batch_size and sampling_probability) the new one counts,
    and a warm-up that nobody asked for follows new rounds. Raises ConfigErrors that name ``place``.
    """
    tree, own = _plain(config), config_warmup.is_set(config.train)
    # Rounds first: what else is asked for is not to follow from them.
    for dotted, value in sorted(changes.items(), key=lambda change: change[0] != _ROUNDS):
        layer = nested(dotted.split("."), value)
        tree = merged(_without_replaced(tree, layer, keep_warmup=own), layer)
    found = _validate(tree, Origins({}, [place]))
    return found if own or _WARMUP in changes else config_warmup.following(found)


def dump_toml(config: RunConfig) -> str:
    """The whole configuration as TOML; reading it again gives an equal one.

    Paths are written absolute, so that the text means the same from any folder; keys without a
    value are left out.
    """
    return tomli_w.dumps(_plain(config))


def config_hash(config: RunConfig) -> str:
    """sha256, in hexadecimal, of the configuration's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(config: RunConfig) -> Tree:
    return _with_absolute_paths(_without_none(config.model_dump(mode="json")), Path.cwd())


def _without_none(tree: Tree) -> Tree:
    return {
        key: _without_none(cast(Tree, value)) if isinstance(value, dict) else value
        for key, value in tree.items()
        if value is not None
    }


def _preset(name: str, presets: Mapping[str, Mapping[str, Any]]) -> Tree:
    if name in presets:
        return merged({}, presets[name])
    near = difflib.get_close_matches(name, presets, n=1) or sorted(presets)[:1]
    raise PresetError(
        "there is no such preset",
        given=name,
        expected=", ".join(sorted(presets)) or "no preset at all: none is defined here",
        remedy=f"write {near[0]}" if near else None,
    )


def merged(tree: Mapping[str, Any], other: Mapping[str, Any]) -> Tree:
    """`other` over `tree`, table by table; neither is changed."""
    found = dict(tree)
    for key, value in other.items():
        if isinstance(value, Mapping):
            old = found.get(key)
            below = cast(Tree, old) if isinstance(old, dict) else {}
            found[key] = merged(below, cast("Mapping[str, Any]", value))
        else:
            found[key] = value
    return found


def _without_replaced(tree: Tree, layer: Tree, *, keep_warmup: bool = False) -> Tree:
    """`tree` without the alternatives to what `layer` sets."""
    kept = dict(tree)
    for section, keys in _ALTERNATIVES:
        old, new = tree.get(section), layer.get(section)
        if isinstance(old, dict) and isinstance(new, dict):
            chosen = keys & cast(Tree, new).keys()
            dropped = keys - chosen if chosen else frozenset[str]()
            kept[section] = {k: v for k, v in cast(Tree, old).items() if k not in dropped}
    old, new = kept.get("train"), layer.get("train")
    if isinstance(old, dict) and isinstance(new, dict) and "rounds" in new and not keep_warmup:
        kept["train"] = config_warmup.with_other_rounds(cast(Tree, old), cast(Tree, new)["rounds"])
    return kept


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all that is in a tree, tables included."""
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _dotted(cast("Mapping[str, Any]", value), f"{prefix}{key}.")


def parse_file(path: Path) -> Tree:
    """A TOML file as it stands; MissingFileError, or ConfigError for what is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(
            "the configuration file does not exist",
            file=path,
            remedy="`hushtune config new > run.toml` writes one to begin with",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the file {path} cannot be read", given=str(error), expected="a file in TOML"
        ) from error
    return _parse(text, str(path))


def _parse(text: str, place: str) -> Tree:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{place} is not TOML",
            given=str(error),
            remedy="`hushtune config new` prints a file that is",
        ) from error


def _parse_override(text: str) -> Tree:
    key, equals, value = (part.strip() for part in text.partition("="))
    path = _key_path(key)
    if not equals or not path:
        raise ConfigError(
            "--set cannot be read",
            given=text,
            expected="section.key=value",
            remedy="for instance --set privacy.epsilon=1",
        )
    return nested(path, _override_value(path, value))


def _key_path(key: str) -> list[str]:
    """The parts of a dotted key, quoted ones included; none if it is not one key of TOML."""
    try:
        node: Any = tomllib.loads(f"{key} = 0") if "\n" not in key else None
    except tomllib.TOMLDecodeError:
        return []
    path: list[str] = []
    while isinstance(node, dict) and len(cast(Tree, node)) == 1:
        part, node = next(iter(cast(Tree, node).items()))
        path.append(part)
    return path


def _override_value(path: Sequence[str], text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if set(parsed) != {"value"} or (takes_text(path) and not isinstance(parsed["value"], str)):
        return _bare(text) if not takes_text(path) else text
    return parsed["value"]


def _bare(text: str) -> float | str:
    """A number that TOML does not take (``.5``), or a bare word."""
    try:
        return float(text)
    except ValueError:
        return text


def nested(path: Sequence[str], value: Any) -> Tree:
    """A tree that holds one value, at a path of keys."""
    for part in reversed(path):
        value = {part: value}
    return cast(Tree, value)


def _with_absolute_paths(tree: Tree, folder: Path) -> Tree:
    """`tree` with the paths in it made absolute from `folder`.

    A data set's or a model's name is taken for a folder only if it has a slash and is one here:
    an id of a hub looks the same.
    """
    found = dict(tree)
    data, model = tree.get("data"), tree.get("model")
    if isinstance(data, dict):
        table = dict(cast(Tree, data))
        for key in ("file", "folder"):
            if isinstance(table.get(key), str | Path) and str(table[key]):
                table[key] = _absolute(table[key], folder)
        if isinstance(table.get("files"), dict):
            table["files"] = {
                site: _absolute(path, folder) if isinstance(path, str | Path) and path else path
                for site, path in cast(Tree, table["files"]).items()
            }
        found["data"] = _with_local_folder(table, "dataset", folder)
    simulation = tree.get("simulation")
    if isinstance(simulation, dict):
        table = dict(cast(Tree, simulation))
        for key in ("policies", "ledgers"):
            if isinstance(table.get(key), str | Path) and str(table[key]):
                table[key] = _absolute(table[key], folder)
        found["simulation"] = table
    if isinstance(model, dict):
        found["model"] = _with_local_folder(cast(Tree, model), "name", folder)
    return found


def _with_local_folder(table: Tree, key: str, folder: Path) -> Tree:
    name = table.get(key)
    if isinstance(name, str) and "/" in name and Path(_absolute(name, folder)).is_dir():
        return {**table, key: _absolute(name, folder)}
    return table


def _absolute(path: str | Path, folder: Path) -> str:
    return str(folder / Path(path).expanduser())


def _validate(tree: Tree, origins: Origins) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise as_config_error(error, origins) from None
