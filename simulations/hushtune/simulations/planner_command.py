"""The command ``hushtune plan``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushtune.common.errors import ConfigError
from hushtune.common.files import check_writable
from hushtune.common.json_text import json_text
from hushtune.common.privacy.plan import Relation

_WITH_SITES = (
    *("local_steps", "batch", "sampling_probability", "plot"),
    *("colluding_sites", "min_survivors"),
)
_WITH_CLIENTS = ("client_sampling_probability", "client_turns")
"""Options that say nothing of the other kind of plan."""


def plan(
    context: typer.Context,
    sites: Annotated[
        str | None, typer.Option(metavar="ROWS,...", help="training rows a site; or NAME=ROWS,...")
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="in place of --sites: clients, with noise at a trusted server"),
    ] = None,
    client_sampling_probability: Annotated[
        float, typer.Option(help="with --clients: each one's chance to be in a round")
    ] = 1.0,
    client_turns: Annotated[
        int | None, typer.Option(min=2, help="with --clients: rounds from one turn to the next")
    ] = None,
    colluding_sites: Annotated[
        int, typer.Option(min=0, help="trust = distributed: sites that may side with the server")
    ] = 1,
    min_survivors: Annotated[
        int | None, typer.Option(min=1, help="trust = distributed: sites that stay; else all")
    ] = None,
    epsilon: Annotated[float, typer.Option(help="the whole run's budget at each site")] = 3.0,
    delta: Annotated[float, typer.Option(help="below 1 / rows of the smallest site")] = 1e-5,
    rounds: Annotated[int, typer.Option(min=1, help="rounds of the run")] = 20,
    local_steps: Annotated[int, typer.Option(min=1, help="steps of a site in a round")] = 3,
    batch: Annotated[
        int | None, typer.Option(min=1, help="expected rows of a step at each site")
    ] = None,
    sampling_probability: Annotated[
        float | None, typer.Option(help="in place of --batch; with neither, a run's default")
    ] = None,
    clip_norm: Annotated[float, typer.Option(help="longest gradient of one row")] = 1.0,
    relation: Annotated[
        Relation, typer.Option(help="how neighbouring data differ")
    ] = Relation.ADD_OR_REMOVE_ONE,
    tensor_size: Annotated[
        int | None, typer.Option(min=1, help="number of trained values; without it, the demo's")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="also draw a picture")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the last line printed is JSON")] = False,
) -> None:
    """What a run would cost each site, and could learn there, from public numbers alone."""
    from hushtune.simulations.planner import check_any, plan_run
    from hushtune.simulations.planner_clients import plan_clients, show_clients
    from hushtune.simulations.planner_outline import Outline, parse_sites
    from hushtune.simulations.planner_show import show_plan
    from hushtune.simulations.planner_trust import compare_trust, show_trust
    from hushtune.simulations.weak import show_weak

    console = Console(stderr=as_json)
    if plot is not None:
        _check_plot(plot)
    outline = Outline(
        epsilon=epsilon,
        delta=delta,
        rounds=rounds,
        local_steps=local_steps,
        batch_size=batch,
        sampling_probability=sampling_probability,
        clip_norm=clip_norm,
        relation=relation,
        trained_values=tensor_size,
    )
    if (sites is None) == (clients is None):
        raise ConfigError(
            "a plan is either for sites that add noise themselves or for clients of a server",
            given="both" if clients is not None else "neither",
            expected="--sites ROWS,... or --clients NUMBER",
            remedy="`hushtune plan --help` lists the options",
        )
    _check_options(context, _WITH_CLIENTS if clients is None else _WITH_SITES, clients is None)
    if clients is not None:
        told = plan_clients(
            clients, outline, probability=client_sampling_probability, turns=client_turns
        )
        show_clients(console, told)
        if as_json:
            sys.stdout.write(json_text(told) + "\n")
        return
    assert sites is not None  # checked above
    sizes = parse_sites(sites)
    with console.status("calibrating noise"):
        figures = plan_run(sizes, outline)
    figures["trust_models"] = compare_trust(
        sizes,
        outline,
        figures["federation"],
        colluding=colluding_sites,
        min_survivors=min_survivors,
    )
    show_plan(console, figures)
    show_trust(console, figures["trust_models"], epsilon)
    show_weak(console, figures["sites"])
    if plot is not None and figures["federation"]:
        from hushtune.simulations.planner_plot import plot_plan

        plot_plan(figures, plot)
        console.print(f"picture  {plot}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        sys.stdout.write(json_text(figures) + "\n")
    check_any(figures)


def _check_options(context: typer.Context, foreign: tuple[str, ...], of_sites: bool) -> None:
    """ConfigError for an option that would change nothing."""
    given = [
        "--" + name.replace("_", "-")
        for name in foreign
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    ]
    if given:
        raise ConfigError(
            f"a plan for {'sites' if of_sites else 'clients of a server'} does not depend on this",
            given=", ".join(given),
            expected=f"--{'clients' if of_sites else 'sites'} beside it, or no such option",
            remedy=f"leave {', '.join(given)} out",
        )


def _check_plot(path: Path) -> None:
    """ConfigError, before anything is computed, where no picture could be written."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "a picture needs matplotlib", given=str(path), remedy="pip install 'hushtune[plots]'"
        )
    if path.suffix.lower() != ".png" or path.is_dir() or not path.parent.is_dir():
        raise ConfigError(
            "--plot cannot be written",
            given=str(path),
            expected="a file that ends in .png, in a folder that exists",
        )
    check_writable(path.absolute().parent)
