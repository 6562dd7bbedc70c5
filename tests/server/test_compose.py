"""What must hold of every estimate with every server optimiser and rule that goes with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hushtune.common.compatibility import (
    ESTIMATES,
    OPTIMIZERS,
    RULES,
    legal_combinations,
)
from hushtune.common.config_federation import AggregationConfig, MetricsConfig, SimulationConfig
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.aggregator import Aggregator, make_aggregator, make_estimate
from hushtune.server.aggregation.optimizers import AggState
from hushtune.server.checkpoint import Checkpoint, _from_bytes, _to_bytes

from .fake_grid import state
from .test_robust import SIZE, ask, flat, updates_of
from .test_rules import MIXED, start_of
from .test_rules import updates_of as honest_updates

COUNT = 7
PAIRS = sorted({(estimate, optimizer) for _, estimate, optimizer in legal_combinations()})
GUARDED = {
    "median": 3,
    "trimmed_mean": 3,
    "krum": 2,
    "multi_krum": 2,
    "bulyan": 1,
    "norm_clipping": 3,
    "geometric_median": 3,
}
"""Faulty updates of seven that an estimate guards against."""


def settings(estimate: str, optimizer: str = "sgd", **others: object) -> AggregationConfig:
    rate = 1.0 if optimizer == "sgd" else 0.1
    return AggregationConfig.model_validate(
        {"estimate": estimate, "optimizer": optimizer, "learning_rate": rate, **others}
    )


def drawn(seed: int, count: int = COUNT) -> list[ClientUpdate]:
    """Updates around one point, of sites of different sizes."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=SIZE) + 0.3 * random.normal(size=(count, SIZE))
    return updates_of(rows, random.integers(10, 20, size=count).tolist())


def aggregators(estimate: str, optimizer: str) -> tuple[Aggregator, AggState]:
    made = make_aggregator(settings(estimate, optimizer))
    return made, made.init(state(0))


def digests(memory: AggState) -> dict[str, str]:
    return {name: moment.digest() for name, moment in memory.moments.items()}


def test_every_estimate_and_every_optimiser_are_here() -> None:
    assert sorted((e, o) for e in ESTIMATES for o in OPTIMIZERS) == PAIRS
    assert GUARDED.keys() == set(ESTIMATES) - {"mean"}
    for name, faulty in GUARDED.items():
        least = make_estimate(settings(name)).least
        assert least(faulty) <= COUNT < least(faulty + 1), name


@pytest.mark.parametrize(("estimate", "optimizer"), PAIRS)
def test_the_order_of_arrival_changes_no_bit(estimate: str, optimizer: str) -> None:
    made, memory = aggregators(estimate, optimizer)
    random = np.random.default_rng(3)
    expected: tuple[str, dict[str, str]] | None = None
    for _ in range(4):
        kept, now = memory, state(0)
        for number in (1, 2, 3):
            updates = drawn(number)
            shuffled = [updates[k] for k in random.permutation(COUNT)]
            kept, now = made.apply(kept, now, shuffled)
        found = (now.digest(), digests(kept))
        assert found == (expected or found)
        expected = found


@pytest.mark.parametrize(("estimate", "optimizer"), PAIRS)
def test_of_equal_updates_the_estimate_is_that_update(estimate: str, optimizer: str) -> None:
    made, memory = aggregators(estimate, optimizer)
    alone, _ = aggregators("mean", optimizer)
    rows = np.tile(flat(state(9)), (COUNT, 1))
    got_memory, got = made.apply(memory, state(0), updates_of(rows, list(range(5, 5 + COUNT))))
    kept, expected = alone.apply(memory, state(0), updates_of(rows[:1]))
    assert got.digest() == expected.digest()
    assert digests(got_memory) == digests(kept)


@pytest.mark.parametrize(("estimate", "optimizer"), PAIRS)
def test_the_memory_goes_through_a_checkpoint_bit_for_bit(estimate: str, optimizer: str) -> None:
    made, memory = aggregators(estimate, optimizer)
    memory, now = made.apply(memory, state(0), drawn(1))
    kept = Checkpoint(
        run="r",
        round=1,
        config_hash="c",
        state=now,
        agg=memory,
        history=({"round": 1},),
        charges={},
        refusals={},
    )
    back = _from_bytes(_to_bytes(kept), Path("x"))
    assert back.agg.step == memory.step == 1
    one, two = made.apply(memory, now, drawn(2)), made.apply(back.agg, back.state, drawn(2))
    assert one[1].digest() == two[1].digest()
    assert digests(one[0]) == digests(two[0])


@pytest.mark.parametrize(("estimate", "optimizer"), PAIRS)
def test_nothing_that_is_finite_leads_to_what_is_not(estimate: str, optimizer: str) -> None:
    made, memory = aggregators(estimate, optimizer)
    now, zero = state(0), np.zeros((COUNT, SIZE))
    huge = zero.copy()
    huge[0], huge[1, 0] = 1e15, -1e15
    tiny = np.full((COUNT, SIZE), 1e-40)
    for rows in (zero, huge, tiny, zero):
        memory, now = made.apply(memory, now, updates_of(rows))
        assert now.is_finite()
        assert all(moment.is_finite() for moment in memory.moments.values())


RANKS = {"": [3] * COUNT, "mixed": [1, 3, 2, 3, 1, 2, 3]}
TOGETHER = [
    (*combination, ranks)
    for combination in legal_combinations()
    for ranks in RANKS
    if not ranks or combination[0] in MIXED
]
"""(rule, estimate, optimizer, ranks): all that a configuration may ask for."""


@pytest.mark.parametrize(
    ("rule", "estimate", "optimizer", "ranks"), TOGETHER, ids=["-".join(c) for c in TOGETHER]
)
def test_every_rule_goes_through_two_rounds_the_same_in_any_order(
    rule: str, estimate: str, optimizer: str, ranks: str
) -> None:
    made = make_aggregator(settings(estimate, optimizer, rule=rule), seed=2)
    random = np.random.default_rng(7)
    start = start_of(rule)
    found = set[tuple[str, ...]]()
    for _ in range(3):
        memory, now = made.init(start), start
        for number in (0, 1):
            drawn = honest_updates(
                rule, now, ranks=RANKS[ranks], sizes=[3, 1, 4, 1, 5, 9, 2], turn=number
            )
            updates = [replace(u, delta=0.3 * u.delta, round=number + 1) for u in drawn]
            memory, after = made.apply(memory, now, [updates[k] for k in random.permutation(COUNT)])
            assert after.is_finite()
            assert all(moment.is_finite() for moment in memory.moments.values())
            assert after.digest() != now.digest()
            now = after
        found.add((now.digest(), *sorted(digests(memory).values())))
    assert len(found) == 1


def faulty_rows(kind: str, size: float, count: int) -> np.ndarray:
    random = np.random.default_rng(11)
    if kind == "one coordinate":
        return np.tile(size * np.eye(SIZE)[3], (count, 1))
    if kind == "one direction":
        return np.tile(-size * random.normal(size=SIZE), (count, 1))
    return size * random.normal(size=(count, SIZE))


@pytest.mark.parametrize("kind", ["one coordinate", "one direction", "each its own"])
@pytest.mark.parametrize("size", [10.0, 1e4, 1e9])
@pytest.mark.parametrize("only_one", [True, False])
@pytest.mark.parametrize("estimate", GUARDED)
def test_faulty_updates_leave_it_near_the_good_ones(
    estimate: str, only_one: bool, kind: str, size: float
) -> None:
    """Within the good ones' range, or out of it by a factor that follows from the estimate.

    median, trimmed mean, Krum, multi-Krum: each coordinate within the good ones' range. Bulyan: out
    of it by its width at most. Geometric median: from any point no further than 2 (1 - a) / (1 - 2
    a) times the furthest good update, a being the share of the faulty. Norm clipping: of norm at
    most the largest good one. Places of the faulty among the names: first, last, between.
    """
    count = 1 if only_one else GUARDED[estimate]
    good = np.array([flat(u.delta) for u in drawn(4, COUNT - count)])
    bad = faulty_rows(kind, size, count)
    low, high = good.min(axis=0), good.max(axis=0)
    slack = 1e-5
    for place in (0, 2, COUNT - count):
        rows = np.insert(good, [place] * count, bad, axis=0)
        got = ask(make_estimate(settings(estimate)), updates_of(rows))
        if estimate == "norm_clipping":
            assert np.linalg.norm(got) <= np.linalg.norm(good, axis=1).max() + slack
        elif estimate == "geometric_median":
            share = count / COUNT
            center = good.mean(axis=0)
            radius = np.linalg.norm(good - center, axis=1).max()
            factor = 2 * (1 - share) / (1 - 2 * share)
            assert np.linalg.norm(got - center) <= factor * radius + slack
        else:
            wider = (high - low) * (estimate == "bulyan") + slack
            assert (got >= low - wider).all()
            assert (got <= high + wider).all()


def test_one_update_moves_the_mean_anywhere() -> None:
    good = np.array([flat(u.delta) for u in drawn(4, COUNT - 1)])
    for size in (1e4, 1e9):
        rows = np.vstack([good, np.full(SIZE, size)])
        got = ask(make_estimate(settings("mean")), updates_of(rows))
        assert np.abs(got).min() > size / COUNT / 2


@pytest.mark.parametrize("estimate", sorted(set(ESTIMATES) - {"mean"}))
def test_a_round_with_too_few_updates_changes_nothing(estimate: str) -> None:
    made = make_aggregator(settings(estimate, faulty_sites=2))
    with pytest.raises(FederationError, match=rf"estimate {estimate} needs more updates"):
        made.apply(made.init(state(0)), state(0), drawn(1, 4))


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_updates_that_have_no_estimate(estimate: str) -> None:
    made = make_aggregator(settings(estimate))
    memory, updates = made.init(state(0)), drawn(1)
    for bad, words in (
        ([], "no updates"),
        ([*updates, updates[2]], "twice"),
        ([*updates[:-1], replace(updates[-1], delta=state(1, ["head.bias"]))], "different tensors"),
    ):
        with pytest.raises(FederationError, match=words):
            made.apply(memory, state(0), bad)


@pytest.mark.parametrize("estimate", ["mean", "norm_clipping", "geometric_median"])
def test_sizes_weigh_where_it_is_said_that_they_do(estimate: str) -> None:
    rows = np.array([flat(u.delta) for u in drawn(5)])
    by_size = make_aggregator(settings(estimate))
    uniform = make_aggregator(settings(estimate, weighting="uniform"))
    memory, sizes = by_size.init(state(0)), [50, 1, 1, 1, 1, 1, 1]
    _, heavy = by_size.apply(memory, state(0), updates_of(rows, sizes))
    _, level = uniform.apply(memory, state(0), updates_of(rows, sizes))
    first = updates_of(rows)[0].delta
    assert (heavy - (state(0) + first)).norm() < 0.5 * (level - (state(0) + first)).norm()


def test_partial_updates_leave_the_rest_as_it_is() -> None:
    head = ["head.bias", "head.weight"]
    for estimate in ESTIMATES:
        made = make_aggregator(settings(estimate))
        updates = [replace(u, delta=u.delta.select(head)) for u in drawn(6)]
        _, end = made.apply(made.init(state(0)), state(0), updates)
        for key, tensor in end.tensors.items():
            assert torch.equal(tensor, state(0).tensors[key]) is (key not in head)


def test_what_does_not_go_together_is_refused_by_name() -> None:
    legal = set(legal_combinations())
    for rule in RULES:
        for estimate in ESTIMATES:
            for optimizer in OPTIMIZERS:
                config = settings(estimate, optimizer).model_copy(
                    update={"rule": rule, "learning_rate": 1.0}
                )

                def check(config: AggregationConfig = config) -> None:
                    others = (SimulationConfig(), MetricsConfig())
                    check_together(PrivacyConfig(), config, *others, rounds=20)

                if (rule, estimate, optimizer) in legal:
                    check()
                    continue
                with pytest.raises(Exception, match="does not go with") as caught:
                    check()
                told = caught.value.context  # type: ignore[attr-defined]
                assert told["key"] in ("aggregation.estimate", "aggregation.optimizer")
