"""Each rule against its equation, worked out densely: modules that are not square, unequal weights,
mixed ranks, both scales."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hushtune.common.adapter import AdapterSpec, AdapterState, a_key, b_key, base_keys, r_key
from hushtune.common.config import AggregationConfig, RunConfig
from hushtune.common.errors import FederationError, MessageError
from hushtune.common.lora_rules import RULES, sent_keys, trainable_keys
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.aggregator import compose, make_aggregator
from hushtune.server.aggregation.bias import aggregation_bias, measured_bias
from hushtune.server.aggregation.estimates import by_size
from hushtune.server.aggregation.lora_rules import (
    SERVER_RULES,
    cut,
    gram_of_products,
    trained,
)
from hushtune.server.aggregation.optimizers import sgd
from hushtune.server.aggregation.selection import krum

SHAPES = {"m.v": (9, 4), "m.q": (5, 8)}  # (d_out, d_in)
SEED = 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def spec_of(rank: int, *, rslora: bool = False, inner: bool = False) -> AdapterSpec:
    return AdapterSpec(
        base="f" * 64,
        rank=rank,
        alpha=6.0,
        rslora=rslora,
        targets=tuple(sorted(SHAPES)),
        head=("bias", "weight"),
        inner=inner,
    )


def drawn(spec: AdapterSpec, seed: int) -> AdapterState:
    """A state with nothing special about it."""
    random = torch.Generator().manual_seed(seed)
    tensors = {"head.bias": (3,), "head.weight": (3, 6)}
    for module, (d_out, d_in) in SHAPES.items():
        tensors |= {a_key(module): (spec.rank, d_in), b_key(module): (d_out, spec.rank)}
        if spec.inner:
            tensors[r_key(module)] = (spec.rank, spec.rank)
    return AdapterState(spec, {k: torch.randn(s, generator=random) for k, s in tensors.items()})


def weight(state: AdapterState, module: str) -> Tensor:
    """What is added to W0, multiplied out: the independent reference of everything here."""
    a, b = state.tensors[a_key(module)].double(), state.tensors[b_key(module)].double()
    if state.spec.inner:
        b = b @ state.tensors[r_key(module)].double()
    scale = state.spec.alpha / (state.spec.rank**0.5 if state.spec.rslora else state.spec.rank)
    whole = scale * b @ a
    base_a, base_b = base_keys(module)
    if base_a in state.tensors:
        whole = whole + state.tensors[base_b].double() @ state.tensors[base_a].double()
    return whole


def updates_of(
    rule: str, start: AdapterState, *, ranks: Sequence[int], sizes: Sequence[int], turn: int = 0
) -> list[ClientUpdate]:
    """Honest updates: what each site was given, moved by a draw of its own."""
    found: list[ClientUpdate] = []
    for place, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
        given_ = SERVER_RULES[rule].give(start, rank)
        keys = trainable_keys(RULES[rule], given_.spec, turn=turn)
        keys = sent_keys(RULES[rule], given_.spec, keys)
        delta = drawn(given_.spec, 100 + place).select(keys)
        found.append(
            ClientUpdate(
                run="r",
                round=5,
                site=f"site {place}",
                delta=delta,
                num_examples=size,
                charge=None,
                noise="none",
            )
        )
    return found


def models(rule: str, start: AdapterState, updates: Sequence[ClientUpdate]) -> list[AdapterState]:
    return [trained(SERVER_RULES[rule], start, update) for update in updates]


def shares(updates: Sequence[ClientUpdate]) -> list[float]:
    total = sum(update.num_examples for update in updates)
    return [update.num_examples / total for update in updates]


def target(rule: str, start: AdapterState, updates: Sequence[ClientUpdate], module: str) -> Tensor:
    """``sum_k p_k s_k B_k A_k``, and what had been added to W0 before."""
    sites = models(rule, start, updates)
    pairs = zip(shares(updates), sites, strict=True)
    return torch.stack([p * weight(site, module) for p, site in pairs]).sum(0)


def joined(rule: str, start: AdapterState, updates: Sequence[ClientUpdate]) -> AdapterState:
    aggregator = make_aggregator(AggregationConfig(rule=rule), seed=SEED)  # type: ignore[arg-type]
    return aggregator.apply(aggregator.init(start), start, updates)[1]


def mean_head(start: AdapterState, updates: Sequence[ClientUpdate]) -> Tensor:
    moved = [
        p * u.delta.tensors["head.weight"] for p, u in zip(shares(updates), updates, strict=True)
    ]
    return start.tensors["head.weight"] + torch.stack(moved).sum(0)


sizes_ = st.lists(st.integers(1, 50), min_size=2, max_size=5)
scales = pytest.mark.parametrize("rslora", [False, True])
EXACT = ("ffa", "fedsvd", "rolora", "fedex", "flora", "fedsb")
WITH_INNER = {"fedsb"}
MIXED = ("flora", "flexlora", "hetlora")


def start_of(rule: str, rank: int = 3, *, rslora: bool = False, seed: int = 0) -> AdapterState:
    start = drawn(spec_of(rank, rslora=rslora, inner=rule in WITH_INNER), seed)
    if rule == "flora":  # adapters begin anew in each round
        zero = {b_key(m): torch.zeros_like(start.tensors[b_key(m)]) for m in SHAPES}
        start = start.merge(AdapterState(start.spec, zero))
    return start


# ---------------------------------------------------------------------- the identities ----


@scales
@pytest.mark.parametrize("rule", EXACT)
@settings(max_examples=5, deadline=None)
@given(sizes=sizes_, seed=st.integers(0, 50))
def test_the_exact_rules_give_the_mean_of_the_sites_models(
    rule: str, rslora: bool, sizes: list[int], seed: int
) -> None:
    start = start_of(rule, rslora=rslora, seed=seed)
    for turn in range(len(RULES[rule].turns)):
        updates = updates_of(rule, start, ranks=[3] * len(sizes), sizes=sizes, turn=turn)
        end = joined(rule, start, updates)
        for module in SHAPES:
            expected = target(rule, start, updates, module)
            torch.testing.assert_close(weight(end, module), expected, **CLOSE)
        torch.testing.assert_close(end.tensors["head.weight"], mean_head(start, updates), **CLOSE)


@scales
def test_rounds_of_a_changing_base_add_up(rslora: bool) -> None:
    """FedEx and FLoRA over rounds: what was added to W0 stays there, whatever its rank becomes."""
    for rule in ("fedex", "flora"):
        state = start_of(rule, rslora=rslora)
        for _ in range(5):
            updates = updates_of(rule, state, ranks=[3] * 4, sizes=[5, 1, 9, 2])
            expected = {m: target(rule, state, updates, m) for m in SHAPES}
            state = joined(rule, state, updates)
            for module, (d_out, d_in) in SHAPES.items():
                scale = float(expected[module].abs().max())
                torch.testing.assert_close(
                    weight(state, module), expected[module], rtol=1e-5, atol=1e-5 * scale
                )
                base = state.base_change(module)
                assert base is not None
                assert base[0].shape[0] <= min(d_out, d_in)
        assert state.is_whole()


def test_averaging_both_factors_is_not_the_mean_of_the_models_unless_all_a_are_equal() -> None:
    start = start_of("fedit")
    updates = updates_of("fedit", start, ranks=[3, 3], sizes=[30, 10])
    for module in SHAPES:
        expected = target("fedit", start, updates, module)
        gap = (weight(joined("fedit", start, updates), module) - expected).norm()
        assert gap / expected.norm() > 0.05
    one = updates[0].delta
    same_a = {a_key(module): one.tensors[a_key(module)] for module in SHAPES}
    updates[1] = replace(updates[1], delta=updates[1].delta.merge(AdapterState(start.spec, same_a)))
    for module in SHAPES:
        expected = target("fedit", start, updates, module)
        torch.testing.assert_close(
            weight(joined("fedit", start, updates), module), expected, **CLOSE
        )


@settings(max_examples=6, deadline=None)
@given(sizes=sizes_, seed=st.integers(0, 50))
def test_fedex_adds_to_w0_what_averaging_apart_loses(sizes: list[int], seed: int) -> None:
    """The residual itself, ``s (sum_k p_k B_k A_k - B A)``, untransposed, and of low rank."""
    start = start_of("fedex", seed=seed)
    updates = updates_of("fedex", start, ranks=[3] * len(sizes), sizes=sizes)
    end, plain = joined("fedex", start, updates), joined("fedit", start, updates)
    for key, tensor in plain.tensors.items():
        torch.testing.assert_close(end.tensors[key], tensor, **CLOSE)
    for module, (d_out, d_in) in SHAPES.items():
        base = end.base_change(module)
        assert base is not None
        residual = target("fedex", start, updates, module) - weight(plain, module)
        torch.testing.assert_close(base[1].double() @ base[0].double(), residual, **CLOSE)
        assert residual.shape == (d_out, d_in)
        assert base[0].shape[0] <= min((len(sizes) - 1) * 3, d_out, d_in)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3]), min_size=2, max_size=4), st.booleans())
def test_flora_stacks_any_ranks(ranks: list[int], rslora: bool) -> None:
    start = start_of("flora", rslora=rslora)
    sizes = list(range(1, len(ranks) + 1))
    updates = updates_of("flora", start, ranks=ranks, sizes=sizes)
    end = joined("flora", start, updates)
    for module in SHAPES:
        expected = target("flora", start, updates, module)
        torch.testing.assert_close(weight(end, module), expected, **CLOSE)
        a, b = end.factors(module)
        assert not b.any()
        torch.testing.assert_close(a @ a.T, torch.eye(3), **CLOSE)
        assert not torch.allclose(a, start.factors(module)[0])
    later = joined("flora", start, [replace(update, round=6) for update in updates])
    assert later.tensors[a_key("m.q")].tolist() != end.tensors[a_key("m.q")].tolist()


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 4]), min_size=2, max_size=4), st.booleans())
def test_flexlora_gives_each_site_the_best_of_its_own_rank(ranks: list[int], rslora: bool) -> None:
    start = start_of("flexlora", 4, rslora=rslora)
    sizes = list(range(1, len(ranks) + 1))
    updates = updates_of("flexlora", start, ranks=ranks, sizes=sizes)
    end = joined("flexlora", start, updates)
    for module in SHAPES:
        u, values, v = torch.linalg.svd(target("flexlora", start, updates, module))
        for rank in (1, 2, 4):
            site = SERVER_RULES["flexlora"].give(end, rank)
            assert site.spec.rank == rank
            best = u[:, :rank] @ torch.diag(values[:rank]) @ v[:rank]
            torch.testing.assert_close(weight(site, module), best, rtol=1e-4, atol=1e-4)


def test_flexlora_leaves_factors_alone_where_nothing_was_learned() -> None:
    start = start_of("flora")  # B is zero
    updates = updates_of("flexlora", start, ranks=[3, 3], sizes=[1, 1])
    still = [
        replace(u, delta=u.delta.select([k for k in u.delta.keys if "lora" not in k]))
        for u in updates
    ]
    zero = [
        replace(u, delta=u.delta.merge(0.0 * v.delta)) for u, v in zip(still, updates, strict=True)
    ]
    end = joined("flexlora", start, zero)
    assert end.select([a_key("m.q")]).digest() == start.select([a_key("m.q")]).digest()


def test_hetlora_is_fedit_at_equal_ranks() -> None:
    start = start_of("hetlora")
    updates = updates_of("hetlora", start, ranks=[3, 3, 3], sizes=[4, 1, 7])
    assert joined("hetlora", start, updates).digest() == joined("fedit", start, updates).digest()


@scales
def test_hetlora_pads_with_zeros_and_cuts(rslora: bool) -> None:
    start = start_of("hetlora", 4, rslora=rslora)
    ranks, sizes = [1, 2, 4], [3, 2, 5]
    updates = updates_of("hetlora", start, ranks=ranks, sizes=sizes)
    end = joined("hetlora", start, updates)
    sites = models("hetlora", start, updates)
    for module, (d_out, d_in) in SHAPES.items():
        a, b = torch.zeros(4, d_in), torch.zeros(d_out, 4)
        for share, site in zip(shares(updates), sites, strict=True):
            own_a, own_b = site.factors(module)
            a[: site.spec.rank] += share * own_a
            b[:, : site.spec.rank] += share * own_b * site.spec.scale / start.spec.scale
        torch.testing.assert_close(end.factors(module)[0], a, **CLOSE)
        torch.testing.assert_close(end.factors(module)[1], b, **CLOSE)
        first = cut(end, 2)
        part = end.spec.scale * b[:, :2] @ a[:2]
        torch.testing.assert_close(weight(first, module), part.double(), **CLOSE)


def test_fedsvd_keeps_the_product_and_makes_a_orthonormal() -> None:
    start = start_of("fedsvd")
    updates = updates_of("fedsvd", start, ranks=[3, 3], sizes=[2, 3])
    end, plain = joined("fedsvd", start, updates), joined("ffa", start, updates)
    for module in SHAPES:
        torch.testing.assert_close(weight(end, module), weight(plain, module), **CLOSE)
        a, b = end.factors(module)
        torch.testing.assert_close(a @ a.T, torch.eye(3), **CLOSE)
        gram = b.T @ b
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=1e-4, atol=1e-4)
        assert gram.diagonal().tolist() == sorted(gram.diagonal().tolist(), reverse=True)


def test_fedsvd_waits_while_b_is_zero() -> None:
    start = start_of("flora")
    assert SERVER_RULES["fedsvd"].finish(start).digest() == start.digest()


def test_fedsa_has_no_b_of_anybody() -> None:
    start = start_of("fedsa")
    updates = updates_of("fedsa", start, ranks=[3, 3], sizes=[2, 3])
    assert not any(key.endswith("lora_B") for u in updates for key in u.delta.keys)
    end = joined("fedsa", start, updates)
    assert end.select([b_key("m.q")]).digest() == start.select([b_key("m.q")]).digest()
    a = sum(
        p * u.delta.tensors[a_key("m.q")] for p, u in zip(shares(updates), updates, strict=True)
    )
    torch.testing.assert_close(end.tensors[a_key("m.q")], start.tensors[a_key("m.q")] + a)


def test_fedsb_sends_a_small_square_and_nothing_else_of_a_module() -> None:
    start = start_of("fedsb")
    (update,) = updates_of("fedsb", start, ranks=[3], sizes=[1])
    factors = [key for key in update.delta.keys if not key.startswith("head.")]
    assert factors == [r_key("m.q"), r_key("m.v")]
    assert all(update.delta.tensors[key].shape == (3, 3) for key in factors)


# --------------------------------------------------------------------- for every rule ----


def a_round(rule: str) -> tuple[AdapterState, list[ClientUpdate]]:
    ranks = [1, 3, 2, 3] if rule in MIXED else [3] * 4
    start = start_of(rule)
    return start, updates_of(rule, start, ranks=ranks, sizes=[3, 1, 4, 5])


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_arrival_changes_no_bit(rule: str) -> None:
    start, updates = a_round(rule)
    found = {joined(rule, start, order).digest() for order in itertools.permutations(updates)}
    assert len(found) == 1


@pytest.mark.parametrize("rule", RULES)
def test_each_site_counts_and_by_its_size(rule: str) -> None:
    start, updates = a_round(rule)
    whole = joined(rule, start, updates).digest()
    for place in range(len(updates)):
        without = updates[:place] + updates[place + 1 :]
        heavier = [replace(u, num_examples=90) if u is updates[place] else u for u in updates]
        assert joined(rule, start, without).digest() != whole
        assert joined(rule, start, heavier).digest() != whole


@pytest.mark.parametrize("rule", RULES)
def test_the_warm_up_averages_heads_alone(rule: str) -> None:
    start, updates = a_round(rule)
    heads = [replace(u, delta=u.delta.select(["head.bias", "head.weight"])) for u in updates]
    end = joined(rule, start, heads)
    torch.testing.assert_close(end.tensors["head.weight"], mean_head(start, updates), **CLOSE)
    factors = [key for key in start.keys if not key.startswith("head.")]
    assert end.select(factors).digest() == start.select(factors).digest()


def test_ranks_are_mixed_only_where_a_rule_can() -> None:
    for name, rule in RULES.items():
        start = start_of(name)
        if rule.any_ranks:
            assert SERVER_RULES[name].give(start, 1).spec.rank == 1
        else:
            with pytest.raises(FederationError, match="one rank"):
                SERVER_RULES[name].give(start, 1)


def test_every_configurable_rule_exists_at_both_ends() -> None:
    names = AggregationConfig.model_fields["rule"].annotation
    assert set(RULES) == set(SERVER_RULES) == set(names.__args__)  # type: ignore[union-attr]
    assert all(name == rule.name for name, rule in RULES.items())


# ----------------------------------------------------------------- distances and bias ----


def rewritten(state: AdapterState, seed: int) -> AdapterState:
    """The same model with other factors: ``(A, B)`` as ``(M A, B M^-1)``."""
    random = torch.Generator().manual_seed(seed)
    tensors = dict(state.tensors)
    for module in SHAPES:
        a, b = state.factors(module)
        m = torch.randn(a.shape[0], a.shape[0], generator=random) + 3 * torch.eye(a.shape[0])
        tensors[a_key(module)], tensors[b_key(module)] = m @ a, b @ torch.linalg.inv(m)
    return AdapterState(state.spec, tensors)


def test_updates_are_compared_by_what_they_do_to_the_model() -> None:
    start, updates = a_round("fedit")
    rule = SERVER_RULES["fedit"]
    gram = torch.from_numpy(gram_of_products(rule, start, updates))
    sites = models("fedit", start, updates)
    rows = [
        torch.cat(
            [
                *((weight(site, m) - weight(start, m)).reshape(-1) for m in SHAPES),
                *(u.delta.tensors[f"head.{n}"].double().reshape(-1) for n in ("bias", "weight")),
            ]
        )
        for site, u in zip(sites, updates, strict=True)
    ]
    stacked = torch.stack(rows)
    torch.testing.assert_close(gram, stacked @ stacked.T, rtol=1e-9, atol=1e-9)
    same = [
        replace(u, delta=(rewritten(site, place) - start).select(u.delta.keys))
        for place, (u, site) in enumerate(zip(updates, sites, strict=True))
    ]
    again = torch.from_numpy(gram_of_products(rule, start, same))
    torch.testing.assert_close(again, gram, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("estimate", "chosen"), [("krum", 1), ("multi_krum", 2)])
@pytest.mark.parametrize("rule", ["fedex", "flora"])
def test_only_sites_that_count_have_columns_in_what_is_added_to_w0(
    rule: str, estimate: str, chosen: int
) -> None:
    """Every column is sent down to all sites, in every later round; none of them is zero."""
    start = start_of(rule, 1)
    updates = updates_of(rule, start, ranks=[1] * 4, sizes=[3, 1, 4, 5])
    config = AggregationConfig.model_validate({"rule": rule, "estimate": estimate})
    aggregator = make_aggregator(config, seed=SEED)
    end = aggregator.apply(aggregator.init(start), start, updates)[1]
    for module in SHAPES:
        base = end.base_change(module)
        columns = chosen - (rule == "fedex")
        assert (0 if base is None else base[0].shape[0]) == columns
        if base is not None:
            assert base[0].any(dim=1).all()
            assert base[1].any(dim=0).all()


def test_krum_does_not_mind_how_a_model_is_written() -> None:
    """Three sites near one another, one of them written with other factors, and one far away."""
    start, (first, *_) = a_round("fedit")
    near = [
        replace(first, site=name, delta=first.delta + 1e-3 * drawn(start.spec, seed))
        for name, seed in (("a", 1), ("b", 2), ("c", 3), ("d", 4))
    ]
    site = models("fedit", start, near)[0]
    near[0] = replace(near[0], delta=rewritten(site, 1) - start)
    far = replace(first, site="e", delta=5.0 * first.delta)
    aggregator = compose(
        krum(faulty=1), sgd(1.0), rule=SERVER_RULES["fedex"], weighting=by_size, seed=0
    )
    end = aggregator.apply(aggregator.init(start), start, [*near, far])[1]
    for module in SHAPES:
        gap = (weight(end, module) - weight(site, module)).norm() / weight(site, module).norm()
        assert gap < 0.05


@pytest.mark.parametrize("rule", ["fedit", "ffa", "rolora", "fedex", "flora", "flexlora"])
def test_the_bias_is_the_relative_distance_from_the_mean_of_the_models(rule: str) -> None:
    start, updates = a_round(rule)
    end = joined(rule, start, updates)
    found = aggregation_bias(rule, start, updates, shares(updates), end)
    assert sorted(found) == sorted(SHAPES)
    for module in SHAPES:
        expected = target(rule, start, updates, module)
        dense = float((weight(end, module) - expected).norm() / expected.norm())
        assert found[module] == pytest.approx(dense, abs=1e-5)
        if rule in EXACT:
            assert found[module] < 1e-5
    if rule == "fedit":
        assert min(found.values()) > 0.05


@pytest.mark.parametrize("rule", ["fedit", "fedex"])
def test_the_bias_of_many_sites_is_roughly_the_same(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 512 ranks both norms are seen by 16 vectors; what was added to W0 counts in parts."""
    start, updates = a_round(rule)
    end = joined(rule, start, updates)
    exact = aggregation_bias(rule, start, updates, shares(updates), end)
    monkeypatch.setattr("hushtune.server.aggregation.bias._MOST_EXACT", 2)
    monkeypatch.setattr("hushtune.server.aggregation.bias._PART", 2)
    found = aggregation_bias(rule, start, updates, shares(updates), end)
    for module in SHAPES:
        assert found[module] == pytest.approx(exact[module], rel=0.5, abs=1e-6)


@pytest.mark.parametrize(
    ("settings_", "taken"),
    [
        ({"rule": "fedit"}, True),
        ({"rule": "fedit", "learning_rate": 0.5}, False),
        ({"rule": "fedit", "learning_rate": 1.0}, True),
        ({"rule": "fedit", "optimizer": "adam", "learning_rate": 0.1}, False),
        ({"rule": "fedit", "optimizer": "adam"}, False),
        ({"rule": "fedit", "estimate": "krum"}, False),
        ({"rule": "fedex"}, True),
        ({"rule": "fedex", "estimate": "krum"}, False),
    ],
)
def test_the_bias_is_that_of_the_plain_average_whatever_the_round_made(
    settings_: dict[str, object], taken: bool
) -> None:
    """A round's own outcome is taken for it where it is the same to the bit."""
    config = RunConfig.model_validate(
        {
            "data": {"source": "demo"},
            "seed": SEED,
            "privacy": {"trust": "off"},
            "aggregation": settings_,
        }
    )
    start, updates = a_round(config.aggregation.rule)
    aggregator = make_aggregator(config.aggregation, seed=SEED)
    after = aggregator.apply(aggregator.init(start), start, updates)[1]
    expected = measured_bias(config, start, updates)
    assert expected is not None
    assert measured_bias(config, start, updates, after=after) == expected
    other = measured_bias(config, start, updates, after=start)  # which no round makes
    assert (other != expected) == taken


def test_an_update_of_another_description_is_not_added_up() -> None:
    start, updates = a_round("fedex")
    spec = replace(start.spec, alpha=1.0)
    odd = replace(updates[0], delta=AdapterState(spec, updates[0].delta.tensors))
    with pytest.raises(MessageError, match="does not fit"):
        joined("fedex", start, [odd, *updates[1:]])
