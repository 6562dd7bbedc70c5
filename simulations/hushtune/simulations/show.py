"""What the commands show in the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune.common.names import SEEN_BY, methods, metric_words
from hushtune.common.privacy.figures import at_most, upwards
from hushtune.simulations.attacks import show_attack
from hushtune.simulations.overfit import fit_line, forgetting_line, stopped_line
from hushtune.simulations.planner_clients import show_clients
from hushtune.simulations.weak import show_warning
from hushtune.simulations.written import written_line

_MOST_LABELS = 8
_MOST_LETTERS = 200
_MOST_SITES, _OF_MANY = 6, 4
_MOST_PLANNED, _OF_MANY_PLANNED = 20, 10
_WRITTEN = {
    **{"adapter/": "adapter", "privacy.md": "statement", "privacy.html": "as a page"},
    **{"privacy.json": "as data", "metrics.jsonl": "metrics", "summary.json": "summary"},
    **{"curve.png": "plot", "sites.png": "who has what", "config.toml": "settings"},
    **{
        "samples.md": "answers",
        "ledger/": "ledgers",
        "checkpoint/": "checkpoint",
        "own/": "sites' own",
    },
}
"""All that a run may leave in its folder, and what it is called in the closing list."""
_MUCH_BIAS = 0.1
_LOSES = {
    "fedit": ("averaging A and B apart", "other rules, such as ffa, fedex and fedsb, lose none"),
    "flexlora": ("cutting to rank {rank}", "raise adapter.rank, or use flora or fedex"),
}
"""By which step a rule loses a part of the mean product, and what would not; others do as fedit."""
_NOT_PRIVATE = "[bold red]NO PRIVACY: this run adds no noise[/]"
_SEEDED = (
    "[bold red]NO PRIVACY: privacy.insecure_seeded_noise = true, so whoever knows the run's seed "
    "can take the noise off[/]"
)


def show_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The result: accuracies by model and site, epsilons, and where everything lies."""
    private = summary["trust"] != "off"
    labels = methods(private=private, kind=summary["task"])
    metric, sign = metric_words(summary["metric"]), 1 if summary["higher_is_better"] else -1
    rows: Mapping[str, Mapping[str, Any]] = summary["sites"]
    sites = _first(rows, lambda site: sign * rows[site]["value"])
    better = "" if sign == 1 else ", lower is better"
    title = f"{metric[0].upper()}{metric[1:]} on held-out rows{better} ({SEEN_BY})"
    table = Table(title=title, title_justify="left")
    if len(sites) < len(rows):
        table.caption = (
            f"The {len(sites)} sites with the worst federated {metric}, and all rows together; "
            f"{len(rows) - len(sites)} more sites are in summary.json."
        )
    table.add_column("model")
    for site in sites:
        table.add_column(_plain(site), justify="right", overflow="fold")
    table.add_column("all", justify="right", style="bold")
    for name, row in _rows(summary):
        style = "bold green" if name == "federated" else None
        cells = [f"{row[site]:.3f}" if site in row else "" for site in [*sites, "pooled"]]
        table.add_row(labels[name], *cells, style=style)
    console.print(table)
    _show_spread(console, summary)
    if any(name == "alone_private" for name, _ in _rows(summary)):
        line = "under all, the mean of the sites' own models on all test rows"
        line = f"{labels['alone_private']}: {line}"
        console.print(line, style="dim", highlight=False, markup=False)
    if private and summary["unit"] == "client":
        console.print(_promised_to_clients(rows), highlight=False)
    else:
        console.print(_spent(rows, summary["group"]) if private else _NOT_PRIVATE)
    if private and summary.get("rests_on") and not any(map(_none, rows.values())):
        console.print(
            summary["rests_on"], style="dim", highlight=False, markup=False, soft_wrap=True
        )
    show_attack(console, summary["attack"])
    rejected: Mapping[str, Sequence[Mapping[str, Any]]] = summary["rejected"]
    worst = _first(rejected, lambda site: -len(rejected[site]))
    for site in worst:
        first, count = rejected[site][0], len(rejected[site])
        rounds = "1 round" if count == 1 else f"{count} rounds"
        console.print(f"[yellow]{_plain(site)} did not count in {rounds}:[/] ", end="")
        console.print(f"{first['reason']} (round {first['round']})", markup=False)
    if len(worst) < len(rejected):
        more = len(rejected) - len(worst)
        console.print(f"[yellow]nor did {more} more sites in some rounds[/] (summary.json)")
    _show_samples(console, summary)
    _show_notes(console, summary["data_notes"])
    for path, what in _WRITTEN.items():
        if (Path(summary["out"]) / path).exists():  # ledgers may lie beside policies instead
            console.print(f"{what:>12}  {summary['out']}/{path}", highlight=False, soft_wrap=True)
    if "missing" in summary:
        console.print(f"[yellow]not drawn:[/] {_plain(summary['missing'])}", highlight=False)
    console.print(f"{'took':>12}  {summary['seconds']['total']:.0f} s", highlight=False)


def _show_samples(console: Console, summary: Mapping[str, Any]) -> None:
    """Answers of a language model before and after training."""
    samples: Sequence[Mapping[str, str]] = summary["samples"]
    if not samples:
        return
    table = Table(title=f"Answers to test rows ({SEEN_BY})", title_justify="left", show_lines=True)
    names = ("site", "prompt", "reference", "untrained", "trained")
    for name in names:
        table.add_column(name, overflow="fold")
    for sample in samples:
        table.add_row(*(_plain(_short(sample[name])) for name in names))
    console.print(table)
    console.print(written_line(summary["written"]), highlight=False, markup=False, soft_wrap=True)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def _show_spread(console: Console, summary: Mapping[str, Any]) -> None:
    """When it stopped, whether it overfits, how unequal the sites are served, and what the rule of
    aggregation loses."""
    told = {"dim": stopped_line(summary.get("stopped")), "yellow": fit_line(summary.get("fit"))}
    told["not bold"] = forgetting_line(summary.get("forgetting"))
    for style, line in told.items():
        if line is not None:
            console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    worst = summary["worst_site"]
    if len(summary["sites"]) > 1:
        line = f"worst site: {worst['site']}, {worst['value']:.3f}; "
        line += f"best and worst are {summary['spread']:.3f} apart"
        console.print(line, style="dim", highlight=False, markup=False)
    bias, largest = summary["aggregation_bias"], summary["largest_bias"]
    if largest is not None and largest["value"] > _MUCH_BIAS:
        how, instead = _LOSES.get(largest["rule"], _LOSES["fedit"])
        line = f"{how.format(**largest)} lost {bias:.0%} of the sites' mean adapter in the last "
        line += f"round, at most {largest['value']:.0%} ({largest['module']}): {instead}"
        console.print(line, style="yellow", highlight=False, markup=False)


def _first(names: Iterable[str], rank: Callable[[str], float]) -> list[str]:
    """All of a few names in their order; of many those that rank lowest."""
    known = list(names)
    return known if len(known) <= _MOST_SITES else sorted(known, key=rank)[:_OF_MANY]


def _smallest(
    table: Table, sites: Sequence[tuple[str, Mapping[str, Any]]], size: str
) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """What a dry run's table shows of its sites: all, or the smallest of many, and says so."""
    if len(sites) <= _MOST_PLANNED:
        return sites
    table.caption = f"The {_OF_MANY_PLANNED} smallest of {len(sites)} sites; --json tells of all."
    return sorted(sites, key=lambda site: site[1][size])[:_OF_MANY_PLANNED]


def _spent(rows: Mapping[str, Mapping[str, Any]], group: str | None) -> Table:
    """Size and spend of each site; of many those that spent most, which bound the others.

    ``group``: the column whose values are what is protected, None where it is each row.
    """
    table = Table(title="Privacy at each site", title_justify="left")
    for column in ("site", _size(group), "epsilon", "delta"):
        table.add_column(column, justify="left" if column == "site" else "right")
    # Where noise voids the promise no site has a figure: it comes before any that has.
    shown = _first(rows, lambda site: -math.inf if _none(rows[site]) else -rows[site]["epsilon"])
    for site in shown:
        row = rows[site]
        epsilon = "none" if _none(row) else upwards(row["epsilon"], places=3)
        table.add_row(_plain(site), str(row["public_size"]), epsilon, at_most(row["delta"]))
    if len(shown) < len(rows):
        more = len(rows) - len(shown)
        table.caption = f"The largest epsilons of any site; {more} more sites are in summary.json."
    return table


def _promised_to_clients(rows: Mapping[str, Mapping[str, Any]]) -> str:
    row = next(iter(rows.values()))
    epsilon = "none" if _none(row) else upwards(row["epsilon"], places=3)
    return f"All data of any one of {len(rows)} clients: epsilon {epsilon}, delta {row['delta']:g}"


def _size(group: str | None) -> str:
    return "public training rows" if group is None else f"public groups by {_plain(group)}"


def _none(row: Mapping[str, Any]) -> bool:
    return row["epsilon"] is None


def _rows(summary: Mapping[str, Any]) -> Sequence[tuple[str, Mapping[str, float]]]:
    """Table rows in order; the sites alone as one row: each on its own, their mean on all."""
    table = dict(summary["table"])
    alone = {
        site: table[f"alone_private/{site}"][site]
        for site in summary["sites"]
        if f"alone_private/{site}" in table
    }
    if alone:
        table["alone_private"] = {**alone, "pooled": summary["baselines"]["alone_private"]}
    shown = methods(private=summary["trust"] != "off")
    return [(name, table[name]) for name in shown if name in table]


def show_estimate(console: Console, figures: Mapping[str, Any]) -> None:
    """What a dry run found."""
    table = Table(title="What would happen", title_justify="left")
    columns = ("site", _size(figures["group"]), "batch", "q", "steps", "noise", "epsilon", "delta")
    for column in columns:
        table.add_column(column, justify="left" if column == "site" else "right")
    sites = figures["sites"]
    if figures["unit"] == "client":  # one plan for all of them
        first = next(iter(sites.values()))
        rows = sum(site["public_size"] for site in sites.values())
        sites = {f"all {len(sites)} clients": {**first, "public_size": rows}}
    for site, row in _smallest(table, list(sites.items()), "public_size"):
        epsilon = "none" if _none(row) else upwards(row["epsilon"], places=2)
        table.add_row(
            _plain(site),
            str(row["public_size"]),
            f"{row['batch']:.0f}",
            f"{row['sampling_probability']:.4f}",
            str(row["steps"]),
            f"{row['noise_multiplier']:.3f}",
            epsilon,
            at_most(row["delta"]),
        )
    console.print(table)
    show_partition(console, figures["who_has_what"])
    _show_notes(console, figures["data_notes"])
    if figures["trust"] == "off":
        console.print(_NOT_PRIVATE)
    elif figures.get("insecure_seeded_noise"):
        console.print(_SEEDED)
    show_attack(console, figures["attack"])
    for told in figures.get("warnings", ()):
        show_warning(console, told["message"], told["remedy"])
    if "clients" in figures:
        show_clients(console, figures["clients"])
    warmup, adapted = figures["warmup_rounds"], figures["rounds"] - figures["warmup_rounds"]
    # What is sent up differs between the two kinds of rounds, so that their sums are the total.
    all_of_it = "head and adapter" if figures["trains_a_head"] else "the adapter"
    fewer = ", of fewer blocks at first" if figures.get("unfreeze") == "gradual" else ""
    rounds = {
        "bytes_per_warmup_round": f"  in each of {warmup}: the sites send the head alone",
        "bytes_per_round": f"  in each of {adapted}: the sites send {all_of_it}{fewer}",
    }
    told = ["rounds", *(key for key, many in zip(rounds, (warmup, adapted), strict=True) if many)]
    if figures["trust"] == "distributed":
        told += ["bytes_per_step", "exchanges_per_step"]
    for key in (*told, "bytes_total", "memory_megabytes", "minutes"):
        line = f"{key.replace('_', ' '):>22}  {figures[key]:,}{rounds.get(key, '')}"
        console.print(line, highlight=False)


def _show_notes(console: Console, notes: Sequence[str]) -> None:
    """Which rows cleaning left out."""
    for line in notes:
        console.print(line, style="dim", highlight=False, markup=False)


def show_partition(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Who has what: rows of each site, or of the smallest of many, by use and by label.

    Of many labels the sums only.
    """
    table = Table(title=f"Who has what ({SEEN_BY})", title_justify="left")
    uses = ("train", "validation", "test")
    labels = list(rows[0]["labels"]) if len(rows[0]["labels"]) <= _MOST_LABELS else []
    table.add_column("site")
    # A label may be called as a column of ours is: then it is marked as what it is.
    own = {"site", *uses}
    for name in (*uses, *(f"label {name}" if name in own else name for name in labels)):
        table.add_column(_plain(name), justify="right")
    for site, row in _smallest(table, [(row["site"], row) for row in rows], "train"):
        counts = [*(row[use] for use in uses), *(row["labels"][label] for label in labels)]
        table.add_row(_plain(site), *map(str, counts))
    console.print(table)


def show_predictions(console: Console, answers: Sequence[Mapping[str, Any]]) -> None:
    """Each text with its answer."""
    table = Table()
    sure = all("probabilities" in answer for answer in answers)
    table.add_column("label" if sure else "answer", style="bold")
    if sure:
        table.add_column("probability", justify="right")
    table.add_column("text")
    for answer in answers:
        told = answer["label"] if sure else answer["answer"]
        cells = [f"{answer['probabilities'][told]:.3f}"] if sure else []
        table.add_row(_plain(str(told)), *cells, _plain(answer["text"]))
    console.print(table)


def show_doctor(console: Console, report: Mapping[str, Any]) -> None:
    """What is there, what is missing and how to mend it."""
    table = Table(title="hushtune doctor", title_justify="left")
    for column in ("what", "found", "to mend it"):
        table.add_column(column)
    for check in report["checks"]:
        mark = (
            "[green]ok[/]"
            if check["ok"]
            else ("[yellow]--[/]" if check["optional"] else "[red]missing[/]")
        )
        table.add_row(f"{mark} {check['what']}", check["found"], _plain(check["mend"]))
    console.print(table)


def _plain(text: str) -> str:
    """Text whose brackets rich must not read as markup."""
    return text.replace("[", "\\[")
