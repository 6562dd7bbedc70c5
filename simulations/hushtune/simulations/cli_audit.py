"""``hushtune audit``: an empirical lower bound on epsilon, beside what is claimed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hushtune.common.errors import ConfigError, MissingFileError
from hushtune.simulations.cli_options import (
    AsJson,
    ConfigFile,
    Overrides,
    Preset,
    print_json,
    settings_of,
)

if TYPE_CHECKING:
    from hushtune.simulations.audit.report import Audit

_PLANTS = ("no-noise", "half-noise", "no-clip", "reset-accountant", "reset-ledger")


def audit(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="a run's folder: its configuration is trained again, with canaries"
        ),
    ] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    plant: Annotated[
        str | None,
        typer.Option(metavar="|".join(_PLANTS), help="train with this fault, to see it found"),
    ] = None,
    canaries: Annotated[
        int, typer.Option(metavar="N", help="gradient canaries, or clients, at least")
    ] = 2000,
    shadows: Annotated[
        int,
        typer.Option(metavar="N", help="shadow models of LiRA; 0 leaves membership inference out"),
    ] = 8,
    seed: Annotated[int, typer.Option(help="draws canaries and coins, not noise")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="a folder for audit.json and membership.png")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train again with canaries, and bound epsilon from below; it proves no privacy.

    Nothing is charged to ledgers that outlive the command. The run's own model is not looked at.
    """
    settings = _settings(run, preset, config, set_)
    fault = _fault(plant)
    from hushtune.common.files import check_writable
    from hushtune.simulations.audit import report, show

    if out is not None:
        check_writable(out)
    console = Console(stderr=as_json)
    with console.status("") as status:
        found = report.audit(
            settings,
            canaries=canaries,
            shadows=shadows,
            seed=seed,
            plant=fault,
            on_stage=status.update,
        )
    show.show_audit(console, found.report)
    if out is not None:
        _write(found, out, console)
    print_json(found.report, as_json)


def _settings(
    run: Path | None, preset: str | None, config: Path | None, set_: list[str] | None
) -> Any:
    """The configuration to audit: of a run's folder, or as of any other command."""
    if run is not None and (preset is not None or config is not None):
        raise ConfigError(
            "an audit is of a run's configuration or of another, not of both",
            given=f"{run} and --preset or --config",
            expected="one of them",
        )
    if run is None:
        if preset is None and config is None:
            raise ConfigError(
                "there is nothing to audit",
                expected="a run's folder, --preset or --config",
                remedy="hushtune audit --preset tiny",
            )
        return settings_of(preset, config, set_)
    file = run / "config.toml"
    if not file.is_file():
        raise MissingFileError(
            "this folder holds no run",
            file=run,
            expected="config.toml, as a run leaves it",
            remedy="name a run's folder, or use --config FILE",
        )
    return settings_of(None, file, set_)


def _fault(plant: str | None) -> Any:
    if plant is None:
        return None
    if plant not in _PLANTS:
        raise ConfigError(
            "an audit has no such fault to plant", given=plant, expected=", ".join(_PLANTS)
        )
    from hushtune.simulations.audit.wrap import Plant

    return Plant(plant)


def _write(found: Audit, out: Path, console: Console) -> None:
    from hushtune.common.files import write_text
    from hushtune.common.json_text import json_text
    from hushtune.simulations.audit.show import plot_attacks

    files = ["audit.json"]
    write_text(out / files[0], json_text(found.report, indent=1) + "\n")
    if found.attacks and find_spec("matplotlib") is not None:
        files.append("membership.png")
        plot_attacks(found.attacks, found.report, out / files[1])
    console.print(f"written: {', '.join(str(out / name) for name in files)}", soft_wrap=True)
