"""From a run, finished or not, to its privacy statement."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hushtune.client.metrics import SENSITIVITY
from hushtune.client.site import OwnTerms, ledger_path, simulated_ledger, simulated_terms
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_rules import sends_gradients
from hushtune.common.encoding import encode
from hushtune.common.errors import HushtuneError
from hushtune.common.files import write_text
from hushtune.common.json_text import json_text
from hushtune.common.lora_rules import RULES, sent_keys
from hushtune.common.messages import METRICS_RUN, PERSONAL_RUN
from hushtune.common.planning import charged_unit, cohort_of, public_held_out, site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.noise import INSECURE, NoiseSource
from hushtune.common.privacy.plan import Trust, Unit
from hushtune.common.privacy.statement import (
    SiteMetrics,
    SiteStatement,
    Transfer,
    ended_early,
    statement,
)
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown
from hushtune.common.privacy.statement_secure import of_whole_numbers, provided, towards
from hushtune.common.privacy.statement_server import server_html, server_markdown
from hushtune.common.run_context import RunContext
from hushtune.common.secagg.cohort import Cohort
from hushtune.server.app import checkpoint_folder
from hushtune.server.checkpoint import exists, load
from hushtune.server.orders import trainable_of
from hushtune.server.spending import appended
from hushtune.server.steps import steps_of_round
from hushtune.server.strategy import FederationResult
from hushtune.simulations.server_report import server_privacy

SIMULATED_SIZE = (
    "data.public_sizes of the run's configuration; where it was not declared there, taken from the "
    "data when the run was configured, and treated as public from then on"
)


def privacy_of(context: RunContext, result: FederationResult) -> dict[str, Any]:
    """The statement of every site, read from the site's own ledger; or of a trusted server."""
    config = context.config
    if config.privacy.trust == Trust.SERVER:
        return server_privacy(context, result)
    cohort = cohort_of(config) if config.privacy.trust == Trust.DISTRIBUTED else None
    sites: dict[str, SiteStatement] = {}
    for site, plan in site_plans(config).items():
        entries: list[LedgerEntry] = []
        lifetime: list[LedgerEntry] = []
        head, num_resent = "", 0
        accepted = {row["round"] for row in result.history if site in row["accepted"]}
        answered = accepted | _rounds(result, site, "rejected")
        own = simulated_terms(config, site)
        path = simulated_ledger(context, site)
        if plan.trust.charges_sites:
            ledger = Ledger(path)
            entries, head = ledger.entries(), ledger.head()
            num_resent = ledger.num_resent(run=result.run)
            lifetime = _lifetime(ledger, entries, own, unit=charged_unit(config))
        mine = [entry for entry in entries if entry.run == result.run]
        personal = [entry for entry in entries if entry.run == f"{result.run}{PERSONAL_RUN}"]
        told = [entry for entry in entries if entry.run == f"{result.run}{METRICS_RUN}"]
        if plan.trust.charges_sites:
            # What was charged may have left, whatever the server knows of it.
            answered = {_round(entry, config) for entry in mine}
        asked = answered | _rounds(result, site, "refused", "failed", "no answer")
        released = answered | {entry.round for entry in told}
        noise = _noise(result, site, config)
        sites[site] = SiteStatement(
            plan=plan,
            spent=[entry.event for entry in (*mine, *personal)],
            told=[entry.event for entry in told],
            lifetime=[entry.event for entry in lifetime],
            own_ledger=path == ledger_path(context.out, site),
            public_size=config.data.public_sizes[site],
            public_size_source=SIMULATED_SIZE,
            first_round=min(released, default=0),
            last_round=max(released, default=0),
            noise_secure=not noise.startswith(INSECURE),
            noise_source=noise,
            ledger_head=head,
            max_records=config.privacy.records_per_group if plan.unit is Unit.GROUP else 1,
            refusals=[_refusal(row) for row in result.refusals.get(site, ())],
            num_resent=num_resent,
            num_aborted=len(answered - accepted),
            provided="" if cohort is None else provided(cohort),
            towards=towards(cohort),
            extra_epsilon=0.0 if cohort is None else _extra(cohort, mine, result.state),
            limit_epsilon=None if own is None else own.terms.max_epsilon,
            limit_delta=None if own is None else own.terms.max_delta,
            released=_released(config, result.state, answered),
            received=_received(result, site, asked, {entry.round for entry in told}),
            metrics=_metrics(result, site, told, public_held_out(config, site)),
        )
    lost = (
        _lost_rounds(result)
        if sends_gradients(config.aggregation, config.privacy) or cohort is not None
        else []
    )
    return statement(
        sites=sites, run=result.run, group=config.data.group, cohort=cohort, lost_rounds=lost
    )


def _lost_rounds(result: FederationResult) -> list[int]:
    """Rounds of steps without an answer: a round that too few answer ends the run."""
    return [row["round"] for row in result.history if not row["accepted"]]


def _extra(cohort: Cohort, entries: Sequence[LedgerEntry], state: AdapterState) -> float:
    """Of a run's secure sums: of as many values as the adapter has, or fewer."""
    spent = [entry.event for entry in entries]
    return of_whole_numbers(cohort, spent, num_values=state.num_values())


def _round(entry: LedgerEntry, config: RunConfig) -> int:
    """The round that a charge for training was made in; gradients are charged step by step."""
    return (entry.round - 1) // steps_of_round(config) + 1


def tell_so_far(context: RunContext, ended_by: HushtuneError) -> None:
    """Write the statement of a run that ended early, of all that its sites released until then.

    By their ledgers, so what was charged in the round that failed counts. Nothing is written where
    no site released anything, or where the statement cannot be made: the run's own error is what
    has to be heard.
    """
    folder = checkpoint_folder(context.out)
    with suppress(HushtuneError, OSError):
        if not exists(folder):
            return
        last = load(folder)
        told = privacy_of(
            context,
            FederationResult(
                run=last.run,
                state=last.shown,
                history=last.history,
                charges=last.charges,
                refusals=appended(last.refusals, getattr(ended_by, "refusals", {})),
                seconds={},
                ledger=last.ledger,
            ),
        )
        reason = " ".join(ended_by.message.splitlines()[:1])
        told = ended_early(
            told,
            done=last.round,
            planned=context.config.train.rounds,
            why=f"{ended_by.code} {reason}",
        )
        if context.config.privacy.trust == Trust.SERVER:
            released = bool(last.ledger)
        else:
            sites = told["sites"].values()
            released = any(site["events"] or site["released"]["updates"] for site in sites)
        if released:
            write_statement(context, told)


def how_to_go_on(folder: Path) -> str:
    """What to know before a run that an error ended is resumed; "" of any other."""
    try:
        told = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))["ended_early"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not told:
        return ""
    return (
        ", once what ended it is mended (as where a site's policy allows more); else begin a run "
        f"of fewer rounds in another folder. {str(told).split('. ')[0]}"
    )


def write_statement(context: RunContext, privacy: Mapping[str, Any]) -> None:
    """The statement as data and as both pages, in the run's folder."""
    write_text(context.out / "privacy.json", json_text(privacy, indent=2) + "\n")
    at_server = privacy["trust"] == Trust.SERVER
    markdown, page = (server_markdown, server_html) if at_server else (render_markdown, render_html)
    write_text(context.out / "privacy.md", markdown(privacy))
    write_text(context.out / "privacy.html", page(privacy))


def _lifetime(
    ledger: Ledger, entries: Sequence[LedgerEntry], own: OwnTerms | None, *, unit: str
) -> list[LedgerEntry]:
    """What is added up over all runs: the data set that a policy names, or all that a ledger holds.

    Of rows that changed between runs a ledger cannot tell how many stayed, so all of them count,
    whether or not this run was refused. What another unit was charged cannot be added to that.
    """
    if own is not None and own.terms.data_set is not None:
        name = ledger.name_of(own.terms.data_set)
        entries = [entry for entry in entries if entry.dataset == name]
    return [entry for entry in entries if entry.unit == unit]


def _noise(result: FederationResult, site: str, config: RunConfig) -> str:
    """Where a site's noise came from, in its own words; one insecure round tells for all."""
    words = {row["noise"][site] for row in result.history if site in row["noise"]}
    if config.privacy.insecure_seeded_noise:
        words.add(f"{INSECURE}: reproducible from the run's seed; gives no privacy")
    insecure = sorted(told for told in words if told.startswith(INSECURE))
    return next(iter([*insecure, *sorted(words), NoiseSource().description]))


def _metrics(
    result: FederationResult, site: str, charged: Sequence[LedgerEntry], public_units: float
) -> SiteMetrics:
    """What a site told of its held-out rows: by its ledger, or else by the history."""
    rows = [row for row in result.history if site in row.get("released", {"sites": ()})["sites"]]
    rounds = sorted({entry.round for entry in charged} or {row["round"] for row in rows})
    if not rounds:
        return SiteMetrics()
    noise: float | None = (
        charged[0].event.noise_multiplier if charged else rows[0]["released"]["noise_multiplier"]
    )
    return SiteMetrics(
        release="public" if noise is None else "noised",
        noise_multiplier=noise,
        num_reports=len(charged) or len(rows),
        rounds=rounds,
        noise_share=None if noise is None else noise * SENSITIVITY / public_units,
    )


def _received(
    result: FederationResult, site: str, asked: Collection[int], told: Collection[int]
) -> tuple[Transfer, ...]:
    """The adapters that a site was sent: to train, and to tell figures of."""
    to_tell = set(told)
    for row in result.history:
        released = row.get("released", {"sites": (), "missing": ()})
        if site in released["sites"] or site in released["missing"]:
            to_tell.add(row["round"])
    return (
        *((_transfer(result.state, asked),) if asked else ()),
        *((_transfer(result.state, to_tell, purpose="evaluation"),) if to_tell else ()),
    )


def _rounds(result: FederationResult, site: str, *kinds: str) -> set[int]:
    """The rounds in which a site's answer was not used, for a reason of one of these kinds."""
    return {
        row["round"] for row in result.history if row["rejected"].get(site, "").startswith(kinds)
    }


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


def _refusal(row: Mapping[str, Any]) -> str:
    return f"round {row['round']}: {row['code']} {' '.join(str(row['reason']).split())}"
