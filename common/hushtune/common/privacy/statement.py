"""The statement of a run: what was promised, spent and not covered, for people and for machines.

`statement` makes the content of `privacy.json`. `statement_markdown` and `statement_html` turn
that, and nothing else, into pages that a data protection officer can read without the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hushtune.common.errors import PlanError
from hushtune.common.privacy import accountant, statement_secure
from hushtune.common.privacy.plan import Trust, Unit
from hushtune.common.privacy.selection import ChoiceEvent
from hushtune.common.privacy.statement_accounts import accounts, events_told, spent_by
from hushtune.common.privacy.statement_sentence import sentence, unit_word
from hushtune.common.privacy.statement_site import UNDISGUISED, SiteMetrics, SiteStatement, Transfer
from hushtune.common.privacy.statement_software import libraries
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.version import source_commit

__all__ = [
    "SiteMetrics",
    "SiteStatement",
    "Transfer",
    "ended_early",
    "events_told",
    "libraries",
    "sentence",
    "statement",
]

COVERED = (
    "every update that the site sent in these rounds: the change of all trained tensors",
    "everything computed from those updates: the final adapter, checkpoints, predictions",
)
NOT_COVERED = (
    "the base model and whatever it saw before",
    "the choice of settings, if it was made by looking at this data",
    "metrics on a site's own validation and test rows, which a simulation prints for study",
    "that the site took part, when, and how long it took",
    "the public numbers themselves: sizes, rates, steps, labels' names",
    "cleaning and splitting: a record is counted from the training rows on; in a simulation texts "
    "that occur at several sites are looked for, and kept at one",
    "settings that somebody chooses for one run by what another run on the same data released: "
    "what is added up over runs holds for settings that were fixed before",
    "the exactness of floating-point numbers: the bound is proved for real ones. Noised sums are "
    "put on a public grid, which withholds the low-order bits that known attacks read (see "
    "Mironov, CCS 2012), but that no released number tells more than the proof allows is not "
    "proved",
)


CHOSEN = (
    "runs of a search that were not chosen: what is added up over all runs has the search as one "
    "charge, towards whoever got the run that was chosen and nothing else of it; towards the "
    "server of the search all of its runs add up"
)
DECLARED = (
    "the names of the site and of the run, the number of the round",
    "the declared public number of records",
    "one line on where the noise came from",
    "of a round that is refused, the error's code and reason",
)
CHARGE = (
    "the charge: sampling probability, noise multiplier, steps, the data set's name under a key "
    "that never leaves the ledger, and the hashes that chain it to the charges before"
)
"""What a site's answers hold beside the update; a charge only where there is one."""
FIGURES = (
    "the accuracy and the loss of the model on held-out rows, in an answer of their own, as often "
    "as the site's section says"
)
ORDERED = (
    "the site's plan, whose figures this statement has",
    "which tensors to train, and how: learning rate, optimiser, schedule, weight decay, microbatch",
)
FIGURES_ORDERED = (
    "in an order for accuracy and loss, the adapter that they are of, their noise multiplier, the "
    "unit and the relation"
)
"""What an order holds beside the adapter."""

MECHANISM = (
    "DP-SGD at each site: per-{unit} clipping over all trained tensors jointly, Poisson sampling, "
    "Gaussian noise on the sum, a public denominator"
)
EVERY_CLIENT = "every client in every round"
SELECTION = (
    "the model is that after the last round: no round, stop or setting was chosen within the run "
    "by looking at private data"
)

ENDED_EARLY = (
    "The run ended early, after round {done} of {planned}, and has no final model: {why}. What "
    "follows is what was released until then"
)
SELECTION_EARLY = (
    "there is no final model, as the run ended early; the latest global model is that after round "
    "{done}. No round or setting was chosen within the run by looking at private data"
)


def ended_early(told: Mapping[str, Any], *, done: int, planned: int, why: str) -> dict[str, Any]:
    """The statement ``told`` of a run that an error ended after ``done`` rounds."""
    words = ENDED_EARLY.format(done=done, planned=planned, why=why)
    return {**told, "ended_early": words, "selection": SELECTION_EARLY.format(done=done)}


def statement(
    *,
    sites: Mapping[str, SiteStatement],
    run: str = "",
    group: str | None = None,
    cohort: Cohort | None = None,
    lost_rounds: Sequence[int] = (),
    selection: str = SELECTION,
) -> dict[str, Any]:
    """Everything about a run's privacy, JSON-ready; None stands for "no bound".

    `run`: what the run is called in its ledgers, "" where it has no name. `group`: the column whose
    equal values make one unit, where the unit is a group. `lost_rounds`: those of secure sums that
    the server began and did not finish. `selection`: how the run's length and model were chosen.
    Raises PlanError where the sites do not share one trust model, unit and relation, or for none.
    """
    shared = {(site.plan.trust, site.plan.unit, site.plan.relation) for site in sites.values()}
    if len(shared) != 1:
        raise PlanError(
            "a statement speaks of one trust model, unit and relation at all sites",
            given=", ".join(sorted(" / ".join(kinds) for kinds in shared)) or "no sites",
        )
    ((trust, unit, relation),) = shared
    told = {name: _site(name, sites[name]) for name in sorted(sites)}
    return {
        "run": run,
        "trust": str(trust),
        "unit": str(unit),
        "group": group,
        "relation": str(relation),
        "accountant": accountant.ACCOUNTANT,
        "guarantee": all(site["guarantee"] for site in told.values()),
        "mechanism": statement_secure.mechanism(unit)
        if cohort is not None
        else MECHANISM.format(unit=unit)
        if trust is not Trust.OFF
        else "none",
        "secure_sum": None if cohort is None else _secure(cohort, sites),
        "selection": selection,
        "ended_early": None,
        "lost_rounds": sorted(lost_rounds),
        "sentences": _sentences(sites, told),
        "sites": told,
        "federation": _federation(told),
        "covered": _covered(sites),
        "not_covered": _not_covered(sites),
        "source_commit": source_commit(),
        "libraries": libraries(),
    }


def _site(name: str, site: SiteStatement) -> dict[str, Any]:
    plan = site.plan
    spent = spent_by(site, site.bounding, plan.relation)
    guarantee = plan.is_private and site.noise_secure and spent is not None
    # What was charged, which a ledger keeps the same throughout a run, and not what was planned.
    kind = site.spent[0] if site.spent else plan
    return {
        "epsilon": spent if guarantee else None,
        "delta": plan.delta,
        "sampling_probability": kind.sampling_probability,
        "noise_multiplier": kind.noise_multiplier,
        "steps": sum(event.steps for event in site.spent) if plan.is_private else plan.steps,
        "clip_norm": plan.clip_norm if plan.is_private else None,
        "denominator": plan.denominator,
        "guarantee": guarantee,
        "sentence": sentence([name], site, epsilon=math.inf if spent is None else spent),
        "planned": {"epsilon": plan.to_dict()["epsilon"], "steps": plan.steps},
        "rounds": {"first": site.first_round, "last": site.last_round},
        **(accounts(site) if guarantee else {}),
        "sampler": EVERY_CLIENT if plan.unit is Unit.CLIENT else "Poisson",
        "public_size": site.public_size,
        "public_size_source": site.public_size_source,
        "noise": {
            "secure": site.noise_secure,
            "source": site.noise_source if plan.is_private else "none",
            "dtype": "int64" if plan.trust is Trust.DISTRIBUTED else "float32",
        },
        "ledger_head": site.ledger_head,
        "refusals": list(site.refusals),
        "num_resent": site.num_resent,
        "max_records_per_unit": site.max_records,
        "num_aborted": site.num_aborted,
        "events": events_told(site.events),
        "released": {
            "updates": [transfer.to_dict() for transfer in site.released],
            "declared": [
                *DECLARED,
                *((CHARGE,) if plan.is_private else ()),
                *((FIGURES,) if site.metrics.release != "none" else ()),
            ],
            "metrics": site.metrics.told(unit_word(plan.unit)),
        },
        "metrics": site.metrics.to_dict(),
        "ordered": [
            *ORDERED,
            *((FIGURES_ORDERED,) if any(m.purpose == "evaluation" for m in site.received) else ()),
        ],
        "received": [transfer.to_dict() for transfer in site.received],
    }


def _secure(cohort: Cohort, sites: Mapping[str, SiteStatement]) -> dict[str, Any]:
    """Of the site that spent most; the others' noise was no less."""
    most = max(sites.values(), key=lambda site: sum(event.steps for event in site.spent))
    return statement_secure.section(
        cohort,
        [*most.spent, *most.unspent],
        [*most.told, *most.untold],
        delta=most.plan.delta,
        relation=most.plan.relation,
        extra=most.extra_epsilon,
    )


def _sentences(
    sites: Mapping[str, SiteStatement], told: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each sentence once, with the sites to which it applies."""

    def said(names: Sequence[str], of: str) -> str:
        epsilon = told[of]["epsilon"]
        return sentence(names, sites[of], epsilon=math.inf if epsilon is None else epsilon)

    alike: dict[str, list[str]] = {}
    for name in told:
        alike.setdefault(said([""], name), []).append(name)
    return [{"sites": names, "sentence": said(names, names[0])} for names in alike.values()]


def _covered(sites: Mapping[str, SiteStatement]) -> list[str]:
    noised = any(site.metrics.release == "noised" for site in sites.values())
    figures = ("accuracy and loss on held-out rows that a site told with noise",) if noised else ()
    secure = any(site.plan.trust is Trust.DISTRIBUTED for site in sites.values())
    return [*(statement_secure.COVERED if secure else COVERED), *figures]


def _not_covered(sites: Mapping[str, SiteStatement]) -> list[str]:
    public = sorted(name for name, site in sites.items() if site.metrics.release == "public")
    figures = (
        f"accuracy and loss on held-out rows of {', '.join(public)}: these figures left the site "
        f"{UNDISGUISED}",
    )
    secure = any(site.plan.trust is Trust.DISTRIBUTED for site in sites.values())
    others = statement_secure.NOT_COVERED if secure else ()
    chosen = any(isinstance(e, ChoiceEvent) for site in sites.values() for e in site.lifetime)
    return [*(figures if public else ()), *((CHOSEN,) if chosen else ()), *others, *NOT_COVERED]


def _federation(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """A record is at one site, so what it lost is what its own site spent: at most the largest."""
    promised = all(site["guarantee"] for site in sites.values())
    return {
        "epsilon": max(site["epsilon"] for site in sites.values()) if promised else None,
        "delta": max(site["delta"] for site in sites.values()),
    }
