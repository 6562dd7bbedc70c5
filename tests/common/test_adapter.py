"""AdapterState: the laws of its algebra, its bytes, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.adapter import AdapterSpec, AdapterState, a_key, b_key, head_key
from hushtune.common.errors import MessageError

SPEC = AdapterSpec(
    base="ab" * 32, rank=2, alpha=4.0, rslora=False, targets=("m.k", "m.q"), head=("bias", "weight")
)
SHAPES = {
    a_key("m.k"): (2, 3),
    b_key("m.k"): (4, 2),
    a_key("m.q"): (2, 3),
    b_key("m.q"): (5, 2),
    head_key("bias"): (2,),
    head_key("weight"): (2, 4),
}
KEYS = tuple(sorted(SHAPES))

# Multiples of 1/8 below 128: sums and products of a few of them are exact in float32, so that the
# laws hold as equalities and not up to a tolerance.
eighths = st.integers(-1000, 1000).map(lambda number: number / 8)
scalars = st.integers(-16, 16).map(lambda number: number / 4)
seeds = st.integers(0, 2**31)


def drawn(seed: int, keys: tuple[str, ...] = KEYS) -> AdapterState:
    random = torch.Generator().manual_seed(seed)
    return AdapterState(
        SPEC,
        {key: torch.randint(-1000, 1000, SHAPES[key], generator=random) / 8 for key in keys},
    )


subsets = st.sets(st.sampled_from(KEYS)).map(lambda keys: tuple(sorted(keys)))
states = st.builds(drawn, seeds)
partial_states = st.builds(drawn, seeds, subsets)


def same(one: AdapterState, other: AdapterState) -> bool:
    return (
        one.spec == other.spec
        and one.keys == other.keys
        and all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.keys)
    )


# ------------------------------------------------------------------------------ vector space ----


@given(subsets, seeds, seeds, seeds)
def test_addition_is_a_commutative_group(keys: tuple[str, ...], a: int, b: int, c: int) -> None:
    x, y, z = drawn(a, keys), drawn(b, keys), drawn(c, keys)
    zero = 0.0 * x
    assert same(x + y, y + x)
    assert same((x + y) + z, x + (y + z))
    assert same(x + zero, x)
    assert same(x + (-1.0) * x, zero)
    assert same(x - y, x + (-1.0) * y)


@given(states, states, scalars, scalars)
def test_scalars_distribute(x: AdapterState, y: AdapterState, s: float, t: float) -> None:
    assert same(1.0 * x, x)
    assert same(s * x, x * s)
    assert same(s * (t * x), (s * t) * x)
    assert same(s * (x + y), s * x + s * y)
    assert same((s + t) * x, s * x + t * x)


@given(partial_states, scalars)
def test_the_norm_is_a_norm(x: AdapterState, s: float) -> None:
    assert (s * x).norm() == pytest.approx(abs(s) * x.norm(), rel=1e-9)
    assert (0.0 * x).norm() == 0.0
    flat = torch.cat([t.double().flatten() for t in x.tensors.values()] or [torch.zeros(1)])
    assert x.norm() == pytest.approx(float(flat.norm()), rel=1e-12)


@given(states, states)
def test_the_triangle_inequality(x: AdapterState, y: AdapterState) -> None:
    assert (x + y).norm() <= (x.norm() + y.norm()) * (1 + 1e-12)


def test_the_norm_does_not_overflow_float32() -> None:
    big = drawn(0).map(lambda tensor: torch.full_like(tensor, 1e30))
    assert big.norm() == pytest.approx(1e30 * math.sqrt(big.num_values()), rel=1e-6)


@given(states, subsets, subsets)
def test_select_and_merge(x: AdapterState, some: tuple[str, ...], more: tuple[str, ...]) -> None:
    assert same(x.merge(x.select(some)), x)
    assert x.select(some).keys == some
    other = drawn(7, some)
    assert same(x.merge(other).select(some), other)
    rest = tuple(sorted(set(KEYS) - set(some)))
    assert same(x.merge(other).select(rest), x.select(rest))
    joined = x.select(some).merge(x.select(more))
    assert joined.keys == tuple(sorted({*some, *more}))


def test_nothing_changes_its_arguments() -> None:
    x, y = drawn(1), drawn(2)
    before = x.digest(), y.digest()
    _ = x + y, x - y, 2.0 * x, x.merge(y), x.map(torch.abs), x.zip_with(y, torch.maximum)
    assert (x.digest(), y.digest()) == before


def test_states_over_different_tensors_do_not_add() -> None:
    with pytest.raises(MessageError, match="different tensors"):
        _ = drawn(0) + drawn(0, KEYS[:2])
    other = AdapterState(replace(SPEC, alpha=5.0), drawn(0).tensors)
    with pytest.raises(MessageError, match="different tensors"):
        _ = drawn(0) + other
    with pytest.raises(MessageError, match="another description"):
        drawn(0).merge(other)


# ------------------------------------------------------------------------------ construction ----


def test_keys_are_sorted_whatever_order_they_came_in() -> None:
    backwards = AdapterState(SPEC, dict(reversed(drawn(0).tensors.items())))
    assert backwards.keys == SPEC.all_keys() == KEYS
    assert backwards.to_bytes() == drawn(0).to_bytes()


def test_unknown_tensors_and_wrong_types_are_refused() -> None:
    with pytest.raises(MessageError, match="does not name"):
        AdapterState(SPEC, {"head.other": torch.zeros(1)})
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int32):
        with pytest.raises(MessageError, match="wrong type"):
            AdapterState(SPEC, {"head.bias": torch.zeros(2, dtype=dtype)})
    with pytest.raises(MessageError, match="wrong type"):
        AdapterState(SPEC, {"head.bias": torch.zeros(2, device="meta")})


def test_the_scale_of_lora_and_rslora() -> None:
    assert SPEC.scale == 2.0
    assert replace(SPEC, rslora=True).scale == pytest.approx(4 / math.sqrt(2))


def test_the_factors_of_a_module() -> None:
    a, b = drawn(0).factors("m.q")
    assert (a.shape, b.shape) == ((2, 3), (5, 2))


def test_finiteness_and_size() -> None:
    assert drawn(0).is_finite()
    assert drawn(0).num_values() == sum(math.prod(shape) for shape in SHAPES.values())
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = drawn(0).merge(AdapterState(SPEC, {"head.bias": torch.tensor([0.0, value])}))
        assert not bad.is_finite()


# ------------------------------------------------------------------------------------- bytes ----


@given(partial_states)
def test_bytes_round_trip(x: AdapterState) -> None:
    back = AdapterState.from_bytes(x.to_bytes())
    assert same(back, x)
    assert back.to_bytes() == x.to_bytes()
    assert back.digest() == x.digest()


@given(st.floats(width=32, allow_nan=False))
def test_every_float32_survives_bit_for_bit(value: float) -> None:
    x = AdapterState(SPEC, {"head.bias": torch.tensor([value, -0.0])})
    back = AdapterState.from_bytes(x.to_bytes()) if math.isfinite(value) else x
    assert back.tensors["head.bias"].view(torch.int32).tolist() == (
        x.tensors["head.bias"].view(torch.int32).tolist()
    )


def test_a_view_is_written_as_what_it_shows() -> None:
    wide = torch.arange(8.0).reshape(4, 2)
    x = AdapterState(SPEC, {"head.weight": wide.t()})
    assert same(AdapterState.from_bytes(x.to_bytes()), x)


def test_different_states_have_different_digests() -> None:
    assert drawn(0).digest() != drawn(1).digest()
    other = AdapterState(replace(SPEC, base="cd" * 32), drawn(0).tensors)
    assert other.digest() != drawn(0).digest()


def decoded(data: bytes) -> None:
    """Decode; anything but a state or a MessageError fails the test."""
    with contextlib.suppress(MessageError):
        AdapterState.from_bytes(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        AdapterState.from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cut_bytes_are_a_message_error(data: st.DataObject) -> None:
    good = drawn(3).to_bytes()
    with pytest.raises(MessageError):
        AdapterState.from_bytes(good[: data.draw(st.integers(0, len(good) - 1))])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_state_or_a_message_error(flips: list[tuple[int, int]]) -> None:
    bad = bytearray(drawn(3).to_bytes())
    for place, flip in flips:
        bad[place % len(bad)] ^= flip
    decoded(bytes(bad))


def with_header(header: Any) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def with_spec(spec: Any) -> bytes:
    return safetensors.torch.save({}, {"spec": spec if isinstance(spec, str) else json.dumps(spec)})


GOOD = SPEC.to_dict()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (2**63).to_bytes(8, "little"),
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        with_header([]),
        with_header({}),
        with_header(None),
        with_header({"__metadata__": {}}),
        with_header({"__metadata__": []}),
        with_header({"__metadata__": {"spec": {}}}),
        with_header(b"[" * 100_000),
        with_header(b"\xff\xfe"),
        with_spec("nonsense"),
        with_spec("[" * 100_000),
        with_spec([]),
        with_spec(None),
        with_spec({}),
        with_spec(GOOD | {"rank": "four"}),
        with_spec(GOOD | {"rank": None}),
        with_spec(GOOD | {"rank": math.inf}),
        with_spec(GOOD | {"rank": math.nan}),
        with_spec(GOOD | {"alpha": []}),
        with_spec(GOOD | {"alpha": 10**400}),
        with_spec(GOOD | {"targets": 3}),
        with_spec(GOOD | {"head": None}),
        safetensors.torch.save({"head.bias": torch.zeros(2)}, {"other": "{}"}),
        safetensors.torch.save({"head.bias": torch.zeros(2)}),
        safetensors.torch.save({"head.x": torch.zeros(2)}, {"spec": json.dumps(GOOD)}),
        safetensors.torch.save(
            {"head.bias": torch.zeros(2, dtype=torch.float16)}, {"spec": json.dumps(GOOD)}
        ),
    ],
)
def test_crafted_bytes_are_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        AdapterState.from_bytes(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(GOOD)), json_values)
def test_any_value_in_a_description_gives_a_state_or_a_message_error(key: str, value: Any) -> None:
    decoded(with_spec(GOOD | {key: value}))


def test_a_description_round_trips_through_json() -> None:
    assert AdapterSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC
