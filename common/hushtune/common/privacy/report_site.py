"""From a site's ledger and the run's history to what its privacy statement is made of.

The site needs nothing but its own ledger, the run's public configuration, the shape of the adapter
and the rows of the history that tell of it. So the same code makes the statement of a simulation,
the one that a site writes at its own institution, and the one that somebody else recomputes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_rules import sends_gradients
from hushtune.common.encoding import encode
from hushtune.common.lora_rules import RULES, sent_keys
from hushtune.common.messages import METRICS_RUN, PERSONAL_RUN
from hushtune.common.metrics_messages import SENSITIVITY
from hushtune.common.planning import cohort_of, public_held_out
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.noise import INSECURE, NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit
from hushtune.common.privacy.statement import SiteMetrics, SiteStatement, Transfer, statement
from hushtune.common.privacy.statement_choice import not_run, selection
from hushtune.common.privacy.statement_secure import of_whole_numbers, provided, towards
from hushtune.common.run_steps import round_of_number, steps_of_round, trainable_of
from hushtune.common.secagg.cohort import Cohort

Row = Mapping[str, Any]
_NOBODY: Row = {"sites": (), "missing": ()}


@dataclass(frozen=True, kw_only=True)
class SiteRun:
    """What the server tells of a run to one site.

    ``rows``: the history, whole or as ``rows_of_site`` leaves it; ``refusals``: the site's own;
    ``lost_rounds``: see ``lost_rounds``.
    """

    run: str
    site: str
    rows: Sequence[Row]
    refusals: Sequence[Row] = ()
    lost_rounds: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Books:
    """What a site's ledger holds: all of it, ``head`` "" without a ledger.

    ``num_resent``: how often kept replies of the run were handed out again. ``lifetime``: what is
    added up over all runs (``lifetime_of``). ``own_ledger``: whether it is this run's alone.
    ``limit_epsilon``, ``limit_delta``: of the site's policy, None without one.
    """

    entries: Sequence[LedgerEntry] = ()
    head: str = ""
    num_resent: int = 0
    lifetime: Sequence[LedgerEntry] = ()
    own_ledger: bool = False
    limit_epsilon: float | None = None
    limit_delta: float | None = None


def rows_of_site(history: Sequence[Row], site: str) -> list[dict[str, Any]]:
    """A run's history without what is about other sites: all that ``site_statement`` reads."""
    found: list[dict[str, Any]] = []
    for row in history:
        released = row.get("released", _NOBODY)
        own: dict[str, Any] = {
            "round": row["round"],
            "accepted": [site] if site in row["accepted"] else [],
            "rejected": {site: row["rejected"][site]} if site in row["rejected"] else {},
            "noise": {site: row["noise"][site]} if site in row["noise"] else {},
        }
        if site in released["sites"] or site in released["missing"]:
            own["released"] = {
                "sites": [site] if site in released["sites"] else [],
                "missing": [site] if site in released["missing"] else [],
                "noise_multiplier": released["noise_multiplier"],
            }
        found.append(own)
    return found


def lost_rounds(config: RunConfig, history: Sequence[Row]) -> list[int]:
    """Rounds of steps without an answer: a round that too few answer ends the run."""
    by_steps = sends_gradients(config.aggregation, config.privacy)
    if not by_steps and config.privacy.trust != Trust.DISTRIBUTED:
        return []
    return [row["round"] for row in history if not row["accepted"]]


def lifetime_of(
    entries: Sequence[LedgerEntry], *, unit: str, data_set: str | None
) -> list[LedgerEntry]:
    """What is added up over all runs: the data set that a policy names, or all that a ledger holds.

    ``data_set``: as the ledger calls it. Of rows that changed between runs a ledger cannot tell how
    many stayed, so all of them count, whether or not this run was refused. What another unit was
    charged cannot be added to that.
    """
    if data_set is not None:
        entries = [entry for entry in entries if entry.dataset == data_set]
    return [entry for entry in entries if entry.unit == unit]


def of_run(entries: Sequence[LedgerEntry], run: str) -> list[LedgerEntry]:
    """What was charged in a run: its training, what was trained for the site alone, figures."""
    names = (run, f"{run}{PERSONAL_RUN}", f"{run}{METRICS_RUN}")
    return [entry for name in names for entry in entries if entry.run == name]


def site_statement(
    config: RunConfig,
    plan: PrivacyPlan,
    state: AdapterState,
    told: SiteRun,
    books: Books,
    *,
    size_source: str,
) -> SiteStatement:
    """What one site did in a run, by its own ledger.

    ``plan``: the site's of the whole run; ``state``: the final adapter, of which only the shapes
    count; ``size_source``: how the site's public size became public.
    """
    site, rows = told.site, told.rows
    cohort = cohort_of(config) if config.privacy.trust == Trust.DISTRIBUTED else None
    accepted = {row["round"] for row in rows if site in row["accepted"]}
    answered = accepted | _rounds(rows, site, "rejected")
    mine = [entry for entry in books.entries if entry.run == told.run]
    personal = [entry for entry in books.entries if entry.run == f"{told.run}{PERSONAL_RUN}"]
    figures = [entry for entry in books.entries if entry.run == f"{told.run}{METRICS_RUN}"]
    if plan.trust.charges_sites:
        # What was charged may have left, whatever the server knows of it.
        answered = {round_of_number(config, entry.round) for entry in mine}
    asked = answered | _rounds(rows, site, "refused", "failed", "no answer")
    released = answered | {entry.round for entry in figures}
    noise = _noise(rows, site, config)
    left = not_run(config, plan, done=len(rows))
    return SiteStatement(
        plan=plan,
        spent=[entry.release for entry in (*mine, *personal)],
        told=[entry.release for entry in figures],
        lifetime=[entry.event for entry in books.lifetime],
        own_ledger=books.own_ledger,
        public_size=config.data.public_sizes[site],
        public_size_source=size_source,
        first_round=min(released, default=0),
        last_round=max(released, default=0),
        noise_secure=not noise.startswith(INSECURE),
        noise_source=noise,
        ledger_head=books.head,
        max_records=config.privacy.records_per_group if plan.unit is Unit.GROUP else 1,
        refusals=[_refusal(row) for row in told.refusals],
        num_resent=books.num_resent,
        num_aborted=len(answered - accepted),
        provided="" if cohort is None else provided(cohort),
        towards=towards(cohort),
        extra_epsilon=0.0 if cohort is None else _extra(cohort, mine, state),
        unspent=left.training if mine else (),
        untold=left.figures if mine else (),
        limit_epsilon=books.limit_epsilon,
        limit_delta=books.limit_delta,
        released=_released(config, state, answered),
        received=_received(state, rows, site, asked, {entry.round for entry in figures}),
        metrics=_metrics(rows, site, figures, public_held_out(config, site)),
    )


def run_statement(
    config: RunConfig,
    sites: Mapping[str, SiteStatement],
    *,
    run: str,
    lost: Sequence[int],
    history: Sequence[Row],
) -> dict[str, Any]:
    """The statement of a run, of all its sites or of one alone; ``history``: whole, or a site's."""
    cohort = cohort_of(config) if config.privacy.trust == Trust.DISTRIBUTED else None
    return statement(
        sites=sites,
        run=run,
        group=config.data.group,
        cohort=cohort,
        lost_rounds=lost,
        selection=selection(config, history),
    )


def _extra(cohort: Cohort, entries: Sequence[LedgerEntry], state: AdapterState) -> float:
    """Of a run's secure sums: of as many values as the adapter has, or fewer."""
    spent = [entry.release for entry in entries]
    return of_whole_numbers(cohort, spent, num_values=state.num_values())


def _noise(rows: Sequence[Row], site: str, config: RunConfig) -> str:
    """Where a site's noise came from, in its own words; one insecure round tells for all."""
    words = {row["noise"][site] for row in rows if site in row["noise"]}
    if config.privacy.insecure_seeded_noise:
        words.add(f"{INSECURE}: reproducible from the run's seed; gives no privacy")
    insecure = sorted(told for told in words if told.startswith(INSECURE))
    return next(iter([*insecure, *sorted(words), NoiseSource().description]))


def _metrics(
    history: Sequence[Row], site: str, charged: Sequence[LedgerEntry], public_units: float
) -> SiteMetrics:
    """What a site told of its held-out rows: by its ledger, or else by the history."""
    rows = [row for row in history if site in row.get("released", _NOBODY)["sites"]]
    rounds = sorted({entry.round for entry in charged} or {row["round"] for row in rows})
    if not rounds:
        return SiteMetrics()
    noise: float | None = (
        charged[0].release.noise_multiplier if charged else rows[0]["released"]["noise_multiplier"]
    )
    return SiteMetrics(
        release="public" if noise is None else "noised",
        noise_multiplier=noise,
        num_reports=len(charged) or len(rows),
        rounds=rounds,
        noise_share=None if noise is None else noise * SENSITIVITY / public_units,
    )


def _received(
    state: AdapterState,
    rows: Sequence[Row],
    site: str,
    asked: Collection[int],
    told: Collection[int],
) -> tuple[Transfer, ...]:
    """The adapters that a site was sent: to train, and to tell figures of."""
    to_tell = set(told)
    for row in rows:
        released = row.get("released", _NOBODY)
        if site in released["sites"] or site in released["missing"]:
            to_tell.add(row["round"])
    return (
        *((_transfer(state, asked),) if asked else ()),
        *((_transfer(state, to_tell, purpose="evaluation"),) if to_tell else ()),
    )


def _rounds(rows: Sequence[Row], site: str, *kinds: str) -> set[int]:
    """The rounds in which a site's answer was not used, for a reason of one of these kinds."""
    return {row["round"] for row in rows if row["rejected"].get(site, "").startswith(kinds)}


def _released(
    config: RunConfig, state: AdapterState, rounds: Collection[int]
) -> tuple[Transfer, ...]:
    """The updates of the rounds, by the tensors that they hold."""
    by_keys: dict[tuple[str, ...], list[int]] = {}
    rule, spec, steps = RULES[config.aggregation.rule], state.spec, steps_of_round(config)
    for number in rounds:
        keys = sent_keys(rule, spec, trainable_of(config, spec, round=number))
        by_keys.setdefault(keys, []).append(number)
    transfers: list[Transfer] = []
    for keys, chosen in by_keys.items():
        sent = _transfer(state.select(keys), chosen, encoding=config.aggregation.encoding)
        if config.privacy.trust == Trust.DISTRIBUTED:
            sent = _masked(sent)
        transfers.append(replace(sent, num_bytes=steps * sent.num_bytes))
    return tuple(transfers)


def _masked(sent: Transfer) -> Transfer:
    """The same tensors as a masked sum: a number of eight bytes for each value."""
    return replace(sent, num_bytes=8 * sum(sent.tensors.values()))


def _transfer(
    state: AdapterState,
    rounds: Collection[int],
    *,
    purpose: str = "training",
    encoding: str = "float32",
) -> Transfer:
    # A state's size on the wire depends on its encoding, its tensors' names and shapes only.
    return Transfer(
        rounds=sorted(rounds),
        tensors={key: tensor.numel() for key, tensor in state.tensors.items()},
        num_bytes=len(encode(state, encoding)),
        encoding=encoding,
        purpose=purpose,
    )


def _refusal(row: Row) -> str:
    return f"round {row['round']}: {row['code']} {' '.join(str(row['reason']).split())}"
