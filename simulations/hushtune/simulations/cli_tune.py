"""``hushtune tune``: search for settings, with a named cost of choosing among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from hushtune.common.errors import ConfigError
from hushtune.common.privacy.figures import upwards
from hushtune.common.privacy.selection import CountLaw
from hushtune.simulations.cli_options import (
    AsJson,
    ConfigFile,
    Overrides,
    Preset,
    print_json,
    settings_of,
)

if TYPE_CHECKING:
    from hushtune.simulations.searching.cost import Cost
    from hushtune.simulations.searching.record import Trial


def tune(
    space: Annotated[Path, typer.Option("--space", help="a TOML file: what to search")],
    trials: Annotated[
        float, typer.Option("--trials", help="how many runs; of a charged choice their mean")
    ],
    choice: Annotated[
        str,
        typer.Option("--choice", metavar="public|charged", help="who pays for choosing among runs"),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="the search's folder")] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    public: Annotated[
        Path | None,
        typer.Option("--public", help="a configuration whose [data] names public data"),
    ] = None,
    count: Annotated[
        CountLaw | None,
        typer.Option("--count", help="where a charged choice's number of runs comes from"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a search")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what it would cost")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for settings, on public data or with the choice charged to the sites."""
    from hushtune.simulations.searching.payer import Choice, check_payer, choice_of
    from hushtune.simulations.searching.space import read_space

    # All that can be refused without torch is refused before that is loaded.
    chosen = choice_of(choice)
    check_payer(chosen, has_public=public is not None)
    if out is None and not dry_run:
        raise ConfigError("a search needs a folder to write to", expected="--out DIR")
    settings = settings_of(preset, config, set_)
    searched = read_space(space, settings)
    from hushtune.common.tasks.workspace import resolve
    from hushtune.simulations.searching.charged import check_unspent
    from hushtune.simulations.searching.tune import Search, check_search, on_public_data
    from hushtune.simulations.searching.tune import tune as search_settings

    console = Console(stderr=as_json)
    charged = chosen is Choice.CHARGED
    search = Search(
        config=settings,
        space=searched,
        choice=chosen,
        trials=trials,
        law=count or (CountLaw.GEOMETRIC if charged else CountLaw.FIXED),
        public=None if public is None else on_public_data(settings, public),
    )
    with console.status("working out the cost"):
        cost = check_search(search)
    _show_cost(console, cost)
    if dry_run or out is None:
        if cost is not None:
            check_unspent(resolve(settings), cost)
        print_json({"epsilon": _epsilons(cost), "choice": choice}, as_json)
        return

    def told(trial: Trial) -> None:
        value = "failed" if trial.value is None else f"{trial.value:.4f}"
        of_it = ", ".join(f"{key} {_short(found)}" for key, found in trial.settings.items())
        why = "" if trial.error is None else f": {trial.error}"
        console.print(escape(f"{trial.number + 1:>4}  {value}  {of_it}{why}"), highlight=False)

    found = search_settings(search, out, resume=resume, told=told)
    _show_found(console, found, out, cost)
    print_json(found, as_json)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _epsilons(cost: Cost | None) -> dict[str, float]:
    return {} if cost is None else {site: each.epsilon for site, each in cost.sites.items()}


def _show_cost(console: Console, cost: Cost | None) -> None:
    if cost is None:
        console.print("Chosen on public data: the choice costs the sites nothing.")
        return
    worst = max(cost.sites.values(), key=lambda site: site.epsilon)
    console.print(
        f"Charged: epsilon {upwards(worst.epsilon)} at delta {worst.delta:g} for the run that is "
        f"chosen ({upwards(worst.epsilon_of_one)} for one run alone), towards whoever gets that "
        "run and nothing else. Towards server and sites, which see every run, all runs add up.",
        highlight=False,
    )


def _show_found(console: Console, found: dict[str, Any], out: Path, cost: Cost | None) -> None:
    if found["settings"] is None:
        console.print("No run has a result: nothing is chosen, and nothing released.")
        return
    console.print(f"best {found['metric']} on validation rows: {found['value']:.4f}")
    for key, value in found["settings"].items():
        console.print(f"{key:>28}  {_short(value)}", highlight=False)
    if cost is None:
        console.print(
            f"go on: hushtune simulate --config {out / 'best.toml'} --out DIR",
            highlight=False,
            soft_wrap=True,
        )
        return
    everything = max(found["epsilon_of_all_trials"].values())
    console.print(
        f"{out / 'selected'} may be released, at the cost above, which each site's ledger holds "
        f"(hushtune ledger show {out}). All else in the folder is the "
        f"researcher's; whoever sees every run, as a server does: epsilon {upwards(everything)}.",
        highlight=False,
        soft_wrap=True,
    )
