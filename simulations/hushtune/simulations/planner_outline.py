"""What ``hushtune plan`` is asked: sites, settings, and how many values are trained."""

from __future__ import annotations

from dataclasses import dataclass

from hushtune.common.config import AdapterConfig, PrivacyConfig, TrainConfig
from hushtune.common.errors import ConfigError
from hushtune.common.planning import rate_or_default
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit, make_plan

_MOST_DIGITS = 15
_ADAPTER, _PRIVACY, _TRAIN = AdapterConfig(), PrivacyConfig(), TrainConfig()
_DEMO_WIDTH, _DEMO_LABELS, _DEMO_PROJECTIONS = 384, 2, 2


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What is to be planned; all of it public, and the same at every site.

    `batch_size` (expected rows of a step) or `sampling_probability`; with neither, a run's default
    rate. `trained_values`: how many numbers are trained and noised; None for the demo's.
    """

    epsilon: float = _PRIVACY.epsilon
    delta: float = _PRIVACY.delta
    rounds: int = _TRAIN.rounds
    local_steps: int = _TRAIN.local_steps
    batch_size: int | None = None
    sampling_probability: float | None = None
    clip_norm: float = _PRIVACY.clip_norm
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    trained_values: int | None = None

    def values(self) -> int:
        """How many numbers are trained and noised."""
        return self.trained_values or demo_trained_values()[0]

    def plan(self, public_size: int, *, trust: Trust = Trust.SITE) -> PrivacyPlan:
        """`make_plan` for a site of that size, or for all sites' records together."""
        return make_plan(
            epsilon=self.epsilon,
            delta=self.delta,
            public_size=public_size,
            batch_size=self.batch_size,
            sampling_probability=rate_or_default(self.batch_size, self.sampling_probability),
            steps=self.rounds * self.local_steps,
            clip_norm=self.clip_norm,
            unit=Unit.EXAMPLE,
            relation=self.relation,
            trust=trust,
        )


def parse_sites(text: str) -> dict[str, int]:
    """Public sizes by site from ``5000,1200`` or ``north=5000,south=1200``, in that order.

    A part without a name is called by its place. ConfigError names the part that is no site.

    >>> parse_sites("5000,south=1200")
    {'site-1': 5000, 'south': 1200}
    """
    sizes: dict[str, int] = {}
    for place, part in enumerate(text.split(","), start=1):
        name, named, digits = (piece.strip() for piece in part.rpartition("="))
        name = name if named else f"site-{place}"
        plain = digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS
        if not plain or not name or name in sizes:
            raise ConfigError(
                f"part {place} of --sites names a site twice"
                if name in sizes
                else f"part {place} of --sites is not a site",
                given=repr(part),
                expected="rows, or NAME=ROWS with a name of its own",
                remedy="--sites 5000,1200,300 or --sites north=5000,south=1200,west=300",
            )
        sizes[name] = int(digits)
    return sizes


def demo_trained_values() -> tuple[int, str]:
    """How many values the demo trains after its warm-up, and what they are."""
    rank, blocks = _ADAPTER.rank, _ADAPTER.layers
    head = _DEMO_WIDTH * _DEMO_LABELS + _DEMO_LABELS
    adapter = blocks * _DEMO_PROJECTIONS * _DEMO_WIDTH * rank
    source = (
        f"the demo's: {head} in the head ({_DEMO_WIDTH}*{_DEMO_LABELS}+{_DEMO_LABELS}), {adapter} "
        f"in lora_B ({_DEMO_PROJECTIONS} projections of {blocks} block, {_DEMO_WIDTH}*{rank})"
    )
    return head + adapter, source
