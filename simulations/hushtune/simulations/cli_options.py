"""Options that several commands have, and what is made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument

from hushtune.common.errors import ConfigError
from hushtune.common.json_text import json_text

Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="a ready configuration: demo, tiny, clients, bench-w (to measure speed by), or of a "
        "kind of supervision: text-classification, text-regression, text-pair, "
        "token-classification, causal-lm, seq2seq, image-classification, "
        "tabular-classification, tabular-regression, recommendation",
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="a TOML file")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change one setting")
]
AsJson = Annotated[bool, typer.Option("--json", help="the last line printed is JSON")]


def keep_help_of_arguments() -> None:
    """Let --help say what arguments are: typer 0.20, which flwr 1.41 needs, keeps that where click
    8.5 then puts its own, which is none."""
    made = TyperArgument.__init__

    def init(self: TyperArgument, **how: Any) -> None:
        made(self, **how)
        self.help = how.get("help")

    TyperArgument.__init__ = init


def settings_of(preset: str | None, config: Path | None, overrides: list[str] | None) -> Any:
    """The configuration that a preset or a file and --set amount to; raises ConfigError."""
    from hushtune.common.config_io import load_config
    from hushtune.common.presets import PRESETS

    if preset is not None and config is not None:
        raise ConfigError(
            "a run has either a preset or a configuration file",
            given=f"--preset {preset} --config {config}",
            remedy=f"hushtune config show --preset {preset} > run.toml, and change that",
        )
    return load_config(config, preset=preset, presets=PRESETS, overrides=overrides or [])


def print_json(value: object, wanted: bool) -> None:
    """A value as one line of JSON, where it is wanted."""
    if wanted:
        sys.stdout.write(json_text(value) + "\n")
