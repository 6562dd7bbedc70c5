"""What a privacy statement is made of: what one site did, released and received in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan

NO_METRICS = "none: a site sends no loss, no accuracy, and no count but the declared public size"


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Tensors that cross a site's border, in one direction, in each of some rounds.

    `tensors`: number of values by name, float32 each. `num_bytes`: of one round's tensors as sent,
    with their names and shapes.
    """

    rounds: Sequence[int]
    tensors: Mapping[str, int]
    num_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "rounds": list(self.rounds),
            "tensors": dict(self.tensors),
            "num_values": sum(self.tensors.values()),
            "num_bytes": self.num_bytes,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteMetrics:
    """What a site told of its held-out rows: `release` is "none", "noised" or "public"."""

    release: str = "none"
    noise_multiplier: float | None = None
    num_reports: int = 0

    def __str__(self) -> str:
        if self.release == "none":
            return NO_METRICS
        told = f"{self.num_reports} times its accuracy and loss on held-out rows"
        if self.release == "public":
            return (
                f"{told}, as they are: it declares them public, and the promise does not cover them"
            )
        return (
            f"{told}, with noise of {self.noise_multiplier:g} times what one record can change; "
            "charged, and in the figures here"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteStatement:
    """What one site did in one run.

    `plan`: the whole run's. `spent`: the events charged for training in this run, `told` those for
    metrics, `lifetime` those of all runs that are added up, this one included. `own_ledger`:
    whether the ledger is this run's alone, so that it knows of no other.
    `first_round`, `last_round`: of what was released; 0 for none.
    `public_size_source`: "declared", or how else it became public. `noise_secure` and
    `noise_source`: as the NoiseSource says. `ledger_head`: hash of the last charge, "" without a
    ledger. `refusals`: one line each. `num_resent`: rounds answered again with the same bytes.
    `max_records`: training rows that one unit has at most.
    `num_aborted`: rounds charged whose update is not in the model, since training failed or the
    answer was lost or rejected. `limit_epsilon`, `limit_delta`: the most that the site's own policy
    allows to be spent, ever; None for no limit, and for the plan's delta.
    `released`, `received`: what left and entered the site. `metrics`: what it told of its rows.
    """

    plan: PrivacyPlan
    spent: Sequence[DpSgdEvent]
    public_size: int
    public_size_source: str
    first_round: int
    last_round: int
    noise_secure: bool
    noise_source: str
    lifetime: Sequence[DpSgdEvent] = ()
    own_ledger: bool = False
    ledger_head: str = ""
    refusals: Sequence[str] = ()
    num_resent: int = 0
    max_records: int = 1
    num_aborted: int = 0
    limit_epsilon: float | None = None
    limit_delta: float | None = None
    released: Sequence[Transfer] = ()
    received: Sequence[Transfer] = ()
    metrics: SiteMetrics = SiteMetrics()
    told: Sequence[DpSgdEvent] = ()

    @property
    def events(self) -> list[DpSgdEvent]:
        """All that was charged in this run."""
        return [*self.spent, *self.told]
