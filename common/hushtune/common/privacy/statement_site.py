"""What a privacy statement is made of: what one site did, released and received in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hushtune.common.privacy.figures import spans, upwards
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan
from hushtune.common.privacy.selection import Charged

NO_METRICS = "none: a site sends no loss, no accuracy, and no count but the declared public size"
UNDISGUISED = "as they are, without noise"
MOST_NOISE_SHARE = 0.5
"""Of a figure's range: with a larger standard deviation of its noise it is said to be useless."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transfer:
    """Tensors that cross a site's border, in one direction, in each of some rounds.

    `tensors`: number of values by name. `encoding`: what they were rounded to on the way.
    `num_bytes`: of one round's tensors as sent, with their names and shapes. `purpose`: "training",
    or "evaluation" for figures.
    """

    rounds: Sequence[int]
    tensors: Mapping[str, int]
    num_bytes: int
    purpose: str = "training"
    encoding: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "purpose": self.purpose,
            "rounds": list(self.rounds),
            "tensors": dict(self.tensors),
            "num_values": sum(self.tensors.values()),
            "num_bytes": self.num_bytes,
            "encoding": self.encoding,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteMetrics:
    """What a site told of its held-out rows: `release` is "none", "noised" or "public".

    `rounds`: in which it did. `noise_share`: the noise's standard deviation, in parts of the range
    that a figure can have; None where there is none or it is not known.
    """

    release: str = "none"
    noise_multiplier: float | None = None
    num_reports: int = 0
    rounds: Sequence[int] = ()
    noise_share: float | None = None

    def told(self, one: str) -> str:
        """In one line; `one`: what is protected, "record" or "group"."""
        if self.release == "none":
            return NO_METRICS
        line = f"{self.num_reports} times its accuracy and loss on held-out rows"
        if self.rounds:
            line += f", in round{'' if len(self.rounds) == 1 else 's'} {spans(self.rounds)}"
        if self.release == "public":
            return f"{line}, {UNDISGUISED}: it declares them public, and no promise covers them"
        line += (
            f", with noise of {self.noise_multiplier:g} times what one {one} can change; charged, "
            "and in the figures here"
        )
        if self.noise_share is not None and self.noise_share > MOST_NOISE_SHARE:
            times = upwards(self.noise_share, places=1)
            line += (
                f". The noise has a standard deviation of {times} times the range that such a "
                "figure can have: each says next to nothing"
            )
        return line

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "rounds": list(self.rounds)}


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
    `towards`: to whom the promise is made; `provided`: what else it rests on, with a blank before
    and a comma after it.
    `extra_epsilon`: what is to be added to each epsilon of the site, beyond its events.
    `unspent`, `untold`: events of training and of figures that the plan has beyond those charged,
    where the run chose its own length by what it released: every epsilon counts them too.
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
    lifetime: Sequence[Charged] = ()
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
    provided: str = ""
    extra_epsilon: float = 0.0
    unspent: Sequence[DpSgdEvent] = ()
    untold: Sequence[DpSgdEvent] = ()
    towards: str = "the server, its peers and the public"

    @property
    def events(self) -> list[DpSgdEvent]:
        """All that was charged in this run."""
        return [*self.spent, *self.told]

    @property
    def bounding(self) -> list[DpSgdEvent]:
        """The events whose epsilon bounds what was released in this run."""
        return [*self.events, *self.unspent, *self.untold]
