"""``hushtune site``: an institution's end of a real federation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hushtune.simulations.exits import USER_ERROR

site_app = typer.Typer(
    help="A site of a real federation, at its institution.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="the site's folder")]
AsJson = Annotated[bool, typer.Option("--json", help="the last line printed is JSON")]


@site_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
    name: Annotated[
        str | None, typer.Option(help="of the site, as the coordinator calls it")
    ] = None,
    server: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the coordinator's federation.toml")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the rows: CSV, TSV, JSONL or Parquet")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="with the text")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="with the label")] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="with the patient or user, who is then protected as a whole"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="the base model, in place of the name that runs give"),
    ] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(help="the most that may ever be spent; without it 3")
    ] = None,
    max_delta: Annotated[
        float | None, typer.Option(help="at which delta; without it a tenth of 1 / rows, or less")
    ] = None,
    max_rounds: Annotated[int | None, typer.Option(help="the most answers in all runs")] = None,
    public_size: Annotated[
        int | None, typer.Option(help="the number of training rows as it may be known")
    ] = None,
    trust: Annotated[
        list[str] | None, typer.Option(help="site, distributed or server; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a site's folder: settings, policy, keys, and the card for the coordinator.

    In a terminal it asks for what no flag says.
    """
    from hushtune.client.deployment.questions import Flags, answers
    from hushtune.client.deployment.setup import make_site, refuse_full
    from hushtune.simulations.show_site import show_made

    console = Console(stderr=as_json)
    refuse_full(folder.expanduser().absolute())
    flags = Flags(
        name=name,
        server=server,
        data=data,
        text=text,
        label=label,
        group=group,
        model=model,
        max_epsilon=max_epsilon,
        max_delta=max_delta,
        max_rounds=max_rounds,
        public_size=public_size,
        trust=tuple(trust or ()),
    )
    ask = _ask if sys.stdin.isatty() and not as_json else None
    given = answers(flags, ask, lambda line: console.print(line, markup=False, highlight=False))
    made = make_site(folder, given)
    show_made(console, made)
    _print_json(made.to_dict(), as_json)


@site_app.command()
def check(
    folder: Folder,
    config: Annotated[
        Path | None,
        typer.Option(metavar="RUN.toml", help="a run's settings, as the coordinator has them"),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training/--no-training", help="load the model and try one step")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Look at data, policy, keys, server and model, and try one training step; changes nothing.

    The exit status is 2 where something failed. What it finds is for the site's own eyes.
    """
    from hushtune.client.deployment.checks import check_site
    from hushtune.common.config_io import load_config
    from hushtune.simulations.show_site import show_report

    settings = None if config is None else load_config(config)
    foresee = None
    if training:
        from hushtune.simulations.site_foresight import foresee
    console = Console(stderr=as_json)
    with console.status("looking") as status:
        report = check_site(
            folder, settings, foresee=foresee, hear=lambda what: status.update(f"looking at {what}")
        )
    show_report(console, report)
    _print_json(report.to_dict(), as_json)
    if not report.good:
        raise typer.Exit(USER_ERROR)


@site_app.command()
def join(
    folder: Folder,
    service: Annotated[
        str | None,
        typer.Option(
            metavar="systemd|container", help="write what keeps the site joined, and start nothing"
        ),
    ] = None,
) -> None:
    """Stay connected to the coordinator's server and answer its orders, until stopped."""
    if service is not None:
        from hushtune.client.deployment.service import write_service
        from hushtune.simulations.show_site import show_service

        show_service(Console(), write_service(folder, service))
        return
    from hushtune.client.deployment.join import join as join_site

    join_site(folder)


@site_app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """What the site is at: its state, its last order, and epsilon spent of the limit."""
    from hushtune.client.deployment.status import site_status
    from hushtune.simulations.show_site import show_status

    told = site_status(folder)
    show_status(Console(stderr=as_json), told)
    _print_json(told, as_json)


@site_app.command()
def history(
    folder: Folder,
    run: Annotated[
        str | None, typer.Option(help="of this run alone; its beginning will do")
    ] = None,
    last: Annotated[int | None, typer.Option(min=1, help="the newest ones alone")] = None,
    as_json: AsJson = False,
) -> None:
    """Every order, what was decided on it, and what it was charged."""
    from hushtune.client.deployment.history import site_history
    from hushtune.simulations.show_site import show_history

    told = site_history(folder, run=run, last=last)
    show_history(Console(stderr=as_json), told)
    _print_json(told, as_json)


def _ask(question: str, default: str | None) -> str:
    answer: Any = typer.prompt(question, default=default)
    return str(answer)


def _print_json(value: object, wanted: bool) -> None:
    if wanted:
        typer.echo(json.dumps(value, sort_keys=True, allow_nan=False, default=str))
