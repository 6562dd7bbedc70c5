"""How updates are written on the wire: what rounding may do to them, and what is refused."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hushtune.common import encoding as encodings
from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.config_federation import AggregationConfig
from hushtune.common.encoding import ENCODINGS, decode, encode, encoding_of
from hushtune.common.errors import MessageError

SPEC = AdapterSpec(
    base="ab" * 32, rank=2, alpha=2.0, rslora=False, targets=("q",), head=("bias", "weight")
)
LARGEST = float(torch.finfo(torch.float32).max)
LEAST = 2.0**-149

# Every finite float32, the ends and the denormals among them.
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
lists = st.lists(floats, min_size=1, max_size=12)


def of(**tensors: Tensor) -> AdapterState:
    """A state over tensors of the head."""
    return AdapterState(SPEC, {f"head.{name}": tensor for name, tensor in tensors.items()})


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def back(tensor: Tensor, encoding: str) -> Tensor:
    """A tensor after it has crossed the wire."""
    return decode(encode(of(weight=tensor), encoding)).tensors["head.weight"]


def scales_of(tensor: Tensor) -> Tensor:
    """The scales with which a tensor crosses the wire as int8, in float64."""
    sent = safetensors.torch.load(encode(of(weight=tensor), "int8"))
    return sent["scales/head.weight"].double()


def same(one: AdapterState, other: AdapterState) -> bool:
    return one.to_bytes() == other.to_bytes()


def test_the_setting_names_all_encodings() -> None:
    assert get_args(AggregationConfig.model_fields["encoding"].annotation) == ENCODINGS


# --------------------------------------------------------------------------- error bounds ----


@given(lists)
def test_float32_is_the_state_s_own_bytes(values: list[float]) -> None:
    state = of(weight=torch.tensor(values))
    assert encode(state, "float32") == state.to_bytes()
    assert same(decode(state.to_bytes()), state)


@given(lists)
def test_bfloat16_is_off_by_at_most_2_to_the_minus_8(values: list[float]) -> None:
    exact = torch.tensor(values)
    found = back(exact, "bfloat16").double()
    assert bool(found.isfinite().all())
    off = (found - exact.double()).abs()
    # Next to zero its numbers are 2^-133 apart.
    assert bool((off <= exact.double().abs() * 2.0**-8 + 2.0**-134).all())


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [
        (1 + 2.0**-8, 1.0),  # halfway: to the even one below
        (1 + 3 * 2.0**-8, 1 + 4 * 2.0**-8),  # halfway: to the even one above
        (1 + 1.01 * 2.0**-8, 1 + 2.0**-7),
        (-1 - 2.0**-8, -1.0),
    ],
)
def test_bfloat16_rounds_to_nearest_even(exact: float, rounded: float) -> None:
    assert back(torch.tensor([exact]), "bfloat16").tolist() == [rounded]


@given(lists)
def test_int8_is_off_by_less_than_the_scale(values: list[float]) -> None:
    exact = torch.tensor(values)
    found, scale = back(exact, "int8").double(), float(scales_of(exact))
    assert bool(found.isfinite().all())
    off = (found - exact.double()).abs()
    assert bool((off < scale).all()) if scale else bool((off == 0).all())
    # The scale is that of the largest number, rounded up to 17 bits or the least denormal.
    least = float(exact.double().abs().max()) / 127
    assert least <= scale <= least * (1 + 2.0**-16) + LEAST


@pytest.mark.parametrize("size", [1e38, -1e38, LARGEST, -LARGEST, LEAST, 1e-40])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_numbers_at_the_ends_of_float32_stay_finite(encoding: str, size: float) -> None:
    exact = torch.tensor([[size, size / 3, 0.0], [size, -size, 1.0]])
    found = back(exact, encoding)
    assert bool(found.isfinite().all())
    off = (found.double() - exact.double()).abs().amax(dim=1)
    assert bool((off <= exact.double().abs().amax(dim=1) / 126.9 + LEAST * 2**16).all())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_zeros_stay_zeros_beside_other_lines(encoding: str) -> None:
    exact = torch.zeros(3, 5)
    exact[1] = drawn(0, 5)
    found = back(exact, encoding)
    assert not found[[0, 2]].any()
    assert found[1].any()


def test_multiples_of_the_scale_are_exact() -> None:
    """So is what was rounded before: a second passage changes nothing."""
    for exact in (torch.arange(-127.0, 128.0) * 2.0**-9, back(drawn(1, 400), "int8")):
        assert torch.equal(back(exact, "int8"), exact)


@pytest.mark.parametrize("shape", [(3, 50), (50, 3)])
def test_a_line_runs_along_the_longest_dimension(shape: tuple[int, int]) -> None:
    """Else each row of a B of rank 4 would bring a scale for four numbers, half of its bytes."""
    exact, line = drawn(2, *shape), [slice(None), slice(None)]
    line[shape.index(3)] = slice(1, 2)
    exact[tuple(line)] *= 1e6  # a line with large numbers does not coarsen the others
    off = (back(exact, "int8") - exact).abs()
    off[tuple(line)] = 0.0
    assert 0 < float(off.max()) < 0.05
    assert scales_of(exact).numel() == 3


# -------------------------------------------------------------------------- without bias ----

MOST_SIGMAS = 4.5


def _bias(rounded: Callable[[float, int], float], fraction: float) -> float:
    """The mean error at ``fraction`` of a step, in standard deviations of a sound rounding's mean.

    Each of many tensors holds 127, so that a step is 1, and numbers at that fraction.
    """
    draws = [rounded(fraction, seed) for seed in range(400)]
    spread = math.sqrt(fraction * (1 - fraction) / (400 * 100))
    return (float(np.mean(draws)) - fraction) / spread


def _sound(fraction: float, seed: int) -> float:
    # The seed is in the last number, since equal tensors round alike.
    values = torch.tensor([*[fraction] * 100, 127.0, seed / 10])
    return float(back(values, "int8")[:100].double().mean())


def _nearest(fraction: float, _: int) -> float:
    return math.floor(fraction + 0.5)


def _a_little_up(fraction: float, seed: int) -> float:
    random = np.random.default_rng(seed)
    return float(np.floor(fraction + random.random(100) + 0.01).mean())


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7])
def test_int8_rounds_without_bias(fraction: float) -> None:
    assert abs(_bias(_sound, fraction)) < MOST_SIGMAS


def test_the_test_of_bias_rejects_what_is_biased() -> None:
    """Rounding to nearest, and one that goes up one time in a hundred too often."""
    assert abs(_bias(_nearest, 0.3)) > 2 * MOST_SIGMAS
    assert abs(_bias(_a_little_up, 0.3)) > MOST_SIGMAS


def test_many_updates_together_lose_nothing() -> None:
    """A change of a tenth of a step at every site is in the sum, as rounding to nearest loses."""
    total = torch.zeros(1000, dtype=torch.float64)
    for seed in range(100):
        update = torch.full((1000,), 0.1)
        update[0], update[1] = 127.0, seed
        total += back(update, "int8").double()
    assert float(total[2:].mean()) == pytest.approx(10.0, abs=0.45)
    assert float(total[2:].std()) == pytest.approx(3.0, rel=0.15)  # sqrt(100 * 0.1 * 0.9)


def test_numbers_are_rounded_independently_of_one_another() -> None:
    exact = torch.full((4, 1000), 0.5)
    exact[:, 0] = 127.0
    up = back(exact, "int8")[:, 1:].double() - 0.5
    inner = (up[:-1] * up[1:]).mean(dim=1).abs().max(), (up[:, :-1] * up[:, 1:]).mean().abs()
    assert float(inner[0]) < 0.25 * 5 / math.sqrt(999)
    assert float(inner[1]) < 0.25 * 5 / math.sqrt(4 * 998)


# --------------------------------------------------------------------------- determinism ----


@given(lists)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_equal_states_give_equal_bytes(encoding: str, values: list[float]) -> None:
    one, other = (of(weight=torch.tensor(values)) for _ in range(2))
    torch.manual_seed(len(values))  # whatever else draws from
    assert encode(one, encoding) == encode(other, encoding)


def test_bytes_are_the_same_on_any_machine_and_at_any_time() -> None:
    """A site that was updated between an answer and its repetition still repeats it."""
    words = encodings._uniform("an update", (2, 2)) * 2**32  # pyright: ignore[reportPrivateUsage]
    assert words.tolist() == [[3935455238, 4249725249], [4026281383, 1290202856]]
    assert encodings._uniform("", (0,)).shape == (0,)  # pyright: ignore[reportPrivateUsage]


def test_another_update_is_rounded_with_other_randomness() -> None:
    exact = torch.full((2, 200), 0.5)
    exact[:, 0] = 127.0
    one = back(exact, "int8")
    assert not torch.equal(one[0], one[1])
    exact[1, 1] = 1.0
    assert not torch.equal(back(exact, "int8")[0], one[0])
    twins = decode(encode(of(weight=exact, bias=exact.clone()), "int8")).tensors
    assert not torch.equal(twins["head.weight"], twins["head.bias"])


# -------------------------------------------------------------------------------- shapes ----


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(0.3),
        torch.zeros(0),
        torch.zeros(0, 3),
        torch.zeros(3, 0),
        torch.zeros(0, 0),
        drawn(3, 7),
        drawn(4, 1, 1),
        drawn(5, 2, 3, 4),
        drawn(6, 5, 4).t(),
        drawn(7, 12)[::3],
        torch.tensor(2.0).expand(3, 4),
    ],
    ids=lambda tensor: "x".join(map(str, tensor.shape)) or "scalar",
)
def test_shapes_round_trip(encoding: str, tensor: Tensor) -> None:
    found = back(tensor, encoding)
    assert found.shape == tensor.shape
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, tensor, rtol=2.0**-8, atol=0.05)
    before = tensor.clone()
    encode(of(weight=tensor), encoding)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_empty_state_round_trips(encoding: str) -> None:
    found = decode(encode(of(), encoding))
    assert (found.spec, found.keys) == (SPEC, ())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_description_and_the_encoding_round_trip(encoding: str) -> None:
    state = of(weight=drawn(8, 2, 3), bias=drawn(9, 2))
    data = encode(state, encoding)
    assert encoding_of(data) == encoding
    assert (decode(data).spec, decode(data).keys) == (SPEC, state.keys)


def test_the_numbers_take_a_half_and_a_quarter() -> None:
    state = AdapterState(SPEC, {"q.lora_A": drawn(10, 4, 2000), "q.lora_B": drawn(11, 2000, 4)})
    sizes = {e: len(encode(state, e)) for e in ENCODINGS}
    assert sizes["bfloat16"] == pytest.approx(sizes["float32"] / 2, rel=0.05)
    assert sizes["int8"] == pytest.approx(sizes["float32"] / 4, rel=0.05)


# --------------------------------------------------------------------------------- refused ----


def test_an_encoding_that_does_not_exist_is_refused() -> None:
    with pytest.raises(MessageError, match="no such encoding"):
        encode(of(), "int4")
    with pytest.raises(MessageError, match="no such encoding"):
        decode(crafted("int4", {}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_said_to_be_so(value: float) -> None:
    state = of(weight=torch.tensor([1.0, value]))
    for encoding in ("float32", "bfloat16"):  # the server then rejects it by name
        assert not decode(encode(state, encoding)).is_finite()
    with pytest.raises(MessageError, match="not finite"):
        encode(state, "int8")


GOOD = {
    "values/head.weight": torch.ones(2, 3, dtype=torch.int8),
    "scales/head.weight": torch.ones(2, 1),
}


def text(encoding: object, spec: object = None) -> str:
    """What the metadata say."""
    return json.dumps({"encoding": encoding, "spec": SPEC.to_dict() if spec is None else spec})


def crafted(encoding: str, tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(tensors, {"encoded": text(encoding)})


def test_the_crafted_bytes_are_good_but_for_what_is_wrong() -> None:
    assert decode(crafted("int8", GOOD)).tensors["head.weight"].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (crafted("int8", GOOD | {"scales/head.weight": torch.full((2, 1), s)}), "not finite")
        for s in (math.nan, math.inf, -math.inf, -1.0)
    ]
    + [
        (crafted("int8", GOOD | {"scales/head.weight": torch.ones(shape)}), "wrong shape")
        for shape in ((), (2,), (1, 3), (1, 1), (2, 3), (2, 1, 1), (0, 1))
    ]
    + [
        (crafted("int8", GOOD | {"scales/head.weight": torch.ones(2, 1).to(dtype)}), "wrong type")
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int8)
    ]
    + [
        (crafted("int8", GOOD | {"values/head.weight": torch.ones(2, 3).to(dtype)}), "wrong type")
        for dtype in (torch.float32, torch.int16, torch.uint8, torch.bool)
    ]
    + [
        (crafted("bfloat16", {"head.weight": torch.ones(2).to(dtype)}), "wrong type")
        for dtype in (torch.float32, torch.float16, torch.int8)
    ]
    + [
        (safetensors.torch.save({}, {"encoded": text("int8", spec)}), "damaged")
        for spec in ("nonsense", {}, [], 3)
    ]
    + [
        (safetensors.torch.save({}, {"encoded": said}), "damaged")
        for said in ("", "int8", "[]", "{}", "[" * 100_000, '{"encoding": "int8"}')
    ]
    + [
        (crafted("int8", {"values/head.weight": GOOD["values/head.weight"]}), "its scales"),
        (crafted("int8", {"scales/head.weight": torch.ones(2, 1)}), "its scales"),
        (crafted("int8", GOOD | {"head.weight": torch.ones(2)}), "its scales"),
        (crafted("int8", {k.replace("weight", "x"): t for k, t in GOOD.items()}), "not name"),
        (crafted("bfloat16", {"head.x": torch.ones(2).bfloat16()}), "not name"),
        (crafted("float32", {"head.weight": torch.ones(2)}), "damaged"),  # it has one form
        (safetensors.torch.save({"head.weight": torch.ones(2)}), "damaged"),
    ],
)
def test_crafted_bytes_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        decode(data)


def with_header(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def _strange_shapes() -> Iterator[bytes]:
    """What safetensors allows and torch does not."""
    shapes = ([0, 2**62, 2**62], [2**63, 0], [2**64 - 1, 0], [2**31, 2**31, 0], [1] * 200)
    for encoding in ENCODINGS:
        for dtype, width in (("F32", 4), ("BF16", 2), ("I8", 1), ("F4", 1), ("F8_E8M0", 1)):
            for shape in shapes:
                end = 0 if 0 in shape else width
                header: dict[str, Any] = {
                    "__metadata__": {"spec": json.dumps(SPEC.to_dict())}
                    if encoding == "float32"
                    else {"encoded": text(encoding)},
                    "values/head.weight" if encoding == "int8" else "head.weight": {
                        "dtype": dtype,
                        "shape": shape,
                        "data_offsets": [0, end],
                    },
                }
                last = end + (0 if 0 in shape else 4)
                if encoding == "int8":
                    header["scales/head.weight"] = {
                        "dtype": "F32",
                        "shape": [1 if size == max(shape) else size for size in shape],
                        "data_offsets": [end, last],
                    }
                yield with_header(header, bytes(last if encoding == "int8" else end))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        with_header([]),
        with_header(None),
        with_header({}),
        with_header({"__metadata__": []}),
        with_header({"__metadata__": "int8"}),
        with_header({"__metadata__": {"encoded": "int8"}}),
        with_header({"__metadata__": {"encoded": ["int8"]}}),
        with_header({"__metadata__": {"encoded": text([])}}),
        with_header({"__metadata__": {"encoded": text("int8")}, "x": {}}),
        with_header(b"[" * 100_000),
        with_header(b"\xff\xfe"),
    ],
)
def test_damaged_headers_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


def decoded(data: bytes) -> None:
    """Decode; anything but a state of float32 or a MessageError fails the test."""
    with contextlib.suppress(MessageError):
        state = decode(data)
        assert all(tensor.dtype == torch.float32 for tensor in state.tensors.values())


def test_shapes_that_torch_does_not_take_are_a_message_error() -> None:
    """A site that sends one must not end the server's round."""
    for data in _strange_shapes():
        decoded(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


SENT = {e: encode(of(weight=drawn(12, 2, 4), bias=drawn(13, 2)), e) for e in ENCODINGS}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ENCODINGS), st.integers(0, 10**6))
def test_cut_bytes_are_a_message_error(encoding: str, kept: int) -> None:
    with pytest.raises(MessageError):
        decode(SENT[encoding][: kept % len(SENT[encoding])])


@settings(max_examples=1000, deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_flipped_bytes_give_a_state_or_a_message_error(
    encoding: str, flips: list[tuple[int, int]]
) -> None:
    bad = bytearray(SENT[encoding])
    for place, flip in flips:
        bad[place % len(bad)] ^= flip
    decoded(bytes(bad))


names = st.sampled_from(["head.weight", "values/head.weight", "scales/head.weight", "head.bias"])
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.float64, torch.bool])
shapes = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(ENCODINGS), st.dictionaries(names, st.tuples(dtypes, shapes), max_size=4))
def test_any_tensors_give_a_state_or_a_message_error(
    encoding: str, kinds: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in kinds.items()}
    decoded(crafted(encoding, tensors))


def test_int8_cannot_scale_beyond_float32() -> None:
    huge = GOOD | {
        "values/head.weight": torch.full((2, 3), -128, dtype=torch.int8),
        "scales/head.weight": torch.full((2, 1), LARGEST),
    }
    assert decode(crafted("int8", huge)).is_finite()


def test_no_seed_enters() -> None:
    """Nothing but the update decides: no generator is asked, whoever seeded it."""
    assert not {"random", "secrets", "seeds", "os"} & set(vars(encodings))
