"""The tables of ``hushtune plan``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hushtune.common.privacy.figures import upwards

_LARGE = 1000.0
_NOTE = (
    "S/N, signal to noise, is an upper bound: the longest that the mean clipped gradient can be, "
    "over the length of the noise on all {trained_values} trained values "
    "({trained_values_source}). The run's is that of the mean over all {steps} steps. Real "
    "gradients are shorter, twenty times and more in most of the demo's run."
)


def show_plan(console: Console, figures: Mapping[str, Any]) -> None:
    """What `planner.plan_run` returned: each site, other numbers of rounds, warnings, notes."""
    console.print(_sites(figures))
    if figures["federation"]:
        console.print(_other_rounds(figures))
    for site in figures["sites"].values():
        for warning in site["warnings"]:
            colour = "yellow" if site["takes_part"] else "red"
            console.print(
                f"[bold {colour}]warning[/] {escape(warning['message'])}", highlight=False
            )
            console.print(f"  do: {warning['remedy']}", markup=False, highlight=False)
    if figures["federation"]:
        console.print(_NOTE.format(**figures), style="dim", highlight=False, markup=False)


def _sites(figures: Mapping[str, Any]) -> Table:
    # What is the same at all sites stands above, so that 80 columns hold the rest.
    table = Table(
        title=f"{figures['rounds']} rounds of {figures['local_steps']}: {figures['steps']} steps, "
        f"delta {figures['delta']:g}, {figures['relation']}",
        title_justify="left",
    )
    for column in ("site", "rows", "batch", "q", "noise", "epsilon", "S/N step", "S/N run"):
        # Digits must not be cut off where a column is narrow.
        table.add_column(column, justify="left" if column == "site" else "right", overflow="fold")
    styles = {"drowned": "red", "faint": "yellow"}
    for name, site in figures["sites"].items():
        if not site["takes_part"]:
            table.add_row(escape(name), str(site["rows"]), *["-"] * 6, style="red")
            continue
        table.add_row(
            escape(name),
            str(site["rows"]),
            f"{site['batch']:.1f}",
            f"{site['sampling_probability']:.4f}",
            f"{site['noise_multiplier']:.3f}",
            _upwards(site["epsilon_spent"]),
            f"{site['signal_to_noise']['step']:.3g}",
            f"{site['signal_to_noise']['run']:.3g}",
            style=next((styles[warning["code"]] for warning in site["warnings"]), None),
        )
    whole = figures["federation"]
    if whole:
        table.add_section()
        ratios = whole["signal_to_noise"]
        shown = [
            f"{whole['batch']:.1f}",
            *[""] * 3,
            f"{ratios['step']:.3g}",
            f"{ratios['run']:.3g}",
        ]
        table.add_row("federation", str(whole["rows"]), *shown, style="bold")
    return table


def _other_rounds(figures: Mapping[str, Any]) -> Table:
    """What other numbers of rounds cost, need, and promise to learn.

    Sites with one rate have one noise and one cost, so these are shown once for all of them.
    """
    planned = figures["rounds"]
    alike: dict[tuple[float, float], dict[str, dict[int, Any]]] = {}
    for name, site in figures["sites"].items():
        if site["takes_part"]:
            by_rounds = {other["rounds"]: other for other in site["other_rounds"]}
            by_rounds[planned] = site | {"epsilon": site["epsilon_spent"]}
            key = (site["sampling_probability"], site["noise_multiplier"])
            alike.setdefault(key, {})[name] = by_rounds
    rounds = sorted(next(iter(next(iter(alike.values())).values())))
    table = Table(title="Other numbers of rounds", title_justify="left")
    table.add_column("rounds")
    for number in rounds:
        table.add_column(
            str(number),
            justify="right",
            overflow="fold",
            style="bold" if number == planned else None,
        )
    for (rate, noise), sites in alike.items():
        cells = [next(iter(sites.values()))[number] for number in rounds]
        epsilons = [_upwards(cell["epsilon"]) for cell in cells]
        table.add_row(f"epsilon at noise {noise:.3f} (q {rate:.4f})", *epsilons)
        noises = [_number(cell["noise_multiplier"], ".3f") for cell in cells]
        table.add_row(f"noise at epsilon {figures['epsilon']:g}", *noises)
        for name, by_rounds in sites.items():
            ratios = [(by_rounds[number]["signal_to_noise"] or {}).get("run") for number in rounds]
            shown = [_number(ratio, ".3g") for ratio in ratios]
            table.add_row(f"  S/N run then, {escape(name)}", *shown)
        table.add_section()
    return table


def _upwards(epsilon: float | None) -> str:
    if epsilon is None:
        return "unbounded"
    return upwards(epsilon, places=3 if epsilon < _LARGE else 0)


def _number(value: float | None, form: str) -> str:
    return "none is enough" if value is None else format(value, form)
