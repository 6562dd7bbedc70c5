"""``hushtune ledger``: look at privacy ledgers, check them, hand them to an auditor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hushtune.common.errors import LedgerError, OutputExistsError
from hushtune.common.privacy.figures import upwards

_DELTA, _MOST_OF_RUN = 1e-5, 19
CHOICE = (
    "A charge for the best of some runs counts towards whoever gets that run and nothing else of "
    "the search. Towards its server all runs add up, by their own ledgers."
)

ledger_app = typer.Typer(
    help="Look at privacy ledgers: the sites', or a trusted server's.", no_args_is_help=True
)

Place = Annotated[
    Path, typer.Argument(metavar="DIR", help="a run's folder, its folder ledger, or one .sqlite")
]
AsJson = Annotated[bool, typer.Option("--json", help="the last line printed is JSON")]


@ledger_app.command()
def show(
    place: Place,
    delta: Annotated[
        float | None, typer.Option(help="at which epsilon is told; without it, the run's")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Every charge, what it all amounts to, and what a policy beside it allows; changes nothing.

    Where a ledger cannot be trusted the others are shown, and the exit status is 2.
    """
    from hushtune.client.budget import budget, policy_of
    from hushtune.simulations.ledgers import (
        charge_word,
        find_ledgers,
        read,
        run_delta,
        spending,
    )

    paths = find_ledgers(place)
    source = "as given"
    if delta is None:
        delta = run_delta(place)
        source = "the run's"
    policies = {site: policy_of(path) for site, path in paths.items()}
    if delta is None:
        deltas = {terms.max_delta for terms in policies.values() if terms is not None}
        delta = min(deltas, default=None)
        source = "the policy's" if len(deltas) == 1 else "the smallest of the policies'"
    if delta is None:
        delta = _DELTA
        source = "no run here says another; --delta chooses one"
    console, number = Console(stderr=as_json), charge_word(place)
    told: dict[str, dict[str, Any]] = {}
    failures: list[LedgerError] = []
    for site, path in paths.items():
        try:
            record = read(path)
        except LedgerError as error:
            failures.append(error)
            told[site] = _failure(console, site, error)
            continue
        terms = policies[site]
        told[site] = {"ok": True, **spending(record, delta=delta)}
        told[site]["policy"] = None if terms is None else budget(record, terms)
        _show_ledger(console, site, told[site], f"{delta:g} ({source})", number)
    _print_json({"delta": delta, "delta_source": source, "ledgers": told}, as_json)
    if failures:
        raise failures[0]


@ledger_app.command()
def verify(
    place: Place,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="[SITE=]HASH", help="a head that somebody else noted"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check chains, heads, kept replies and file modes; exit status 2 unless all is well.

    A ledger and its head file that were both put back agree with each other: only --head, with a
    hash that left the site (it is in every update, and in privacy.json), tells that. Of a server
    that adds the noise, its checkpoint and the chain of charges in it are checked.
    """
    from hushtune.simulations.ledgers import find_ledgers, noted_heads, read, summary

    ledgers = find_ledgers(place)
    noted = noted_heads(head or [], list(ledgers))
    console = Console(stderr=as_json)
    told: dict[str, dict[str, Any]] = {}
    failures: list[LedgerError] = []
    for site, path in ledgers.items():
        try:
            record = read(path)
            since = record.num_charges_since(noted[site]) if site in noted else None
        except LedgerError as error:
            failures.append(error)
            told[site] = _failure(console, site, error)
            continue
        told[site] = {"ok": True, **summary(record), "num_charges_since_noted": since}
        console.print(
            Text.assemble(
                ("ok ", "bold green"), f"{site}: {len(record.entries)} charges{_growth(since)}"
            )
        )
        console.print(f"   head {record.head}", highlight=False, soft_wrap=True)
    _print_json({"ok": not failures, "ledgers": told}, as_json)
    if failures:
        raise failures[0]


@ledger_app.command()
def export(
    place: Place,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="a new file")] = None,
    as_json: AsJson = False,
) -> None:
    """Write every charge as JSON, enough for another accountant; never what was sent.

    With neither --to nor --json the document is printed over several lines. A ledger that cannot be
    trusted is named in place of its charges, and the exit status is 2.
    """
    from hushtune.common.files import write_text
    from hushtune.common.privacy.ledger_record import LedgerRecord
    from hushtune.simulations.ledgers import export_document, find_ledgers, read, summary

    if to is not None and to.exists():  # it might be a ledger
        raise OutputExistsError("the file is there already", given=str(to), remedy="name a new one")
    console = Console(stderr=as_json or to is None)
    records: dict[str, LedgerRecord] = {}
    failures: dict[str, LedgerError] = {}
    for site, path in find_ledgers(place).items():
        try:
            records[site] = read(path)
        except LedgerError as error:
            failures[site] = error
    refused = {site: _failure(console, site, error) for site, error in failures.items()}
    if records:
        document = export_document(records) | ({"refused": refused} if refused else {})
        if to is None:
            typer.echo(json.dumps(document, indent=None if as_json else 2, allow_nan=False))
        else:
            write_text(to, json.dumps(document, indent=2, allow_nan=False) + "\n")
            console.print(f"written to {to}", highlight=False, markup=False)
            ledgers = {site: summary(record) for site, record in records.items()}
            _print_json({"to": str(to), "ledgers": ledgers, "refused": refused}, as_json)
    if failures:
        raise next(iter(failures.values()))


def _failure(console: Console, site: str, error: LedgerError) -> dict[str, Any]:
    console.print(Text.assemble((f"{error.code} ", "bold red"), f"{site}: {error.message}"))
    return {"ok": False, "code": error.code, "reason": error.message}


def _show_ledger(
    console: Console, site: str, ledger: Mapping[str, Any], delta: str, number: str
) -> None:
    console.print(Text(f"{site}: {ledger['num_charges']} charges", style="bold"))
    console.print(f"head {ledger['head']}", highlight=False, soft_wrap=True)
    for name, dataset in ledger["datasets"].items():
        console.print(_charges(name, dataset["charges"], number))
        console.print(_totals(dataset, delta))
        if any("kinds" in charge for charge in dataset["charges"]):
            console.print(CHOICE, highlight=False, markup=False)
    if ledger["policy"] is not None:
        console.print(_budget(ledger["policy"]), highlight=False, markup=False)


def _budget(policy: Mapping[str, Any]) -> str:
    """What is spent of what a policy allows, in one line."""
    what = "all that this ledger holds"
    if policy["data_set"] is not None:
        what = f"the data set that the policy calls {policy['data_set']}"
    return (
        f"policy: epsilon {_upwards(policy['epsilon'])} of {policy['max_epsilon']:g} spent "
        f"at delta {policy['max_delta']:g} ({policy['relation'].replace('_', ' ')}), for {what}"
    )


def _charges(name: str, charges: list[dict[str, Any]], number: str) -> Table:
    table = Table(title=Text(f"data set {_data_set(name)}"), title_justify="left")
    for heading in ("#", "run", number, "q", "sigma", "steps", "hash"):
        words = heading in {"run", "hash"}
        table.add_column(heading, justify="left" if words else "right", no_wrap=words)
    for charge in charges:
        table.add_row(
            str(charge["sequence"]),
            Text(_short(charge["run"])),
            str(charge["round"]),
            *_mechanism(charge),
            charge["hash"][:12],
        )
    return table


def _mechanism(charge: Mapping[str, Any]) -> tuple[str, str, str]:
    if "kinds" in charge:
        steps = max(kind["steps"] for kind in charge["kinds"])
        return "best of", f"~{charge['mean']:g} runs", str(steps)
    q, sigma = charge["sampling_probability"], charge["noise_multiplier"]
    return f"{q:.6g}", f"{sigma:.6g}", str(charge["steps"])


def _data_set(name: str) -> str:
    """The part of a data set's name that is its own: it begins with a mark of the ledger's key."""
    return name.rpartition(":")[2][:16]


def _totals(dataset: Mapping[str, Any], delta: str) -> Table:
    kinds = list(dataset["epsilon"])
    table = Table(title=f"epsilon at delta {delta}", title_justify="left")
    table.add_column("run, or runs", no_wrap=True)
    for heading in (*(kind.replace("_", " ") for kind in kinds), "charges", "steps", "sent again"):
        table.add_column(heading, justify="right")
    rows = [*((f"{_short(run)} alone", spent) for run, spent in dataset["runs"].items())]
    for what, spent in (*rows, ("all runs, composed", dataset)):
        figures = [_upwards(spent["epsilon"][kind]) for kind in kinds]
        counts = (spent["num_charges"], spent["steps"], spent["num_resent"])
        table.add_row(Text(what), *figures, *map(str, counts))
    return table


def _short(run: str) -> str:
    """A run's name that fits a column of 80: its ends, and what it was charged for; --json has all.

    >>> _short("81101626f5a2b813"), _short("81101626f5a2b813-0a1b2c3d4e5f/metrics")
    ('81101626f5a2b813', '81101…d4e5f/metrics')
    """
    if len(run) <= _MOST_OF_RUN:
        return run
    name, slash, use = run.rpartition("/")
    name, rest = (name, slash + use) if slash else (run, "")
    kept = (_MOST_OF_RUN - 1 - len(rest)) // 2
    return run if kept < 1 else f"{name[:kept]}…{name[-kept:]}{rest}"


def _upwards(epsilon: float | None) -> str:
    return "no bound" if epsilon is None else upwards(epsilon)


def _growth(since: int | None) -> str:
    if since is None:
        return ""
    if since == 0:
        return ", and the noted head is its last"
    return f"; the ledger has grown since the noted head, by {since}"


def _print_json(value: object, wanted: bool) -> None:
    if wanted:
        typer.echo(json.dumps(value, sort_keys=True, allow_nan=False))
