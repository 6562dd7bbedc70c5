"""Starting from kept activations gives what starting from tokens gives, wherever it is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given
from hypothesis import strategies as st

from hushtune.common import lora
from hushtune.common.adapter import AdapterState, b_key
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.tasks.activations import TokenRows, in_pieces
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.common.tasks.supervised import EVALUATION_BATCH, Supervised
from hushtune.common.tasks.units import Rows, Units
from hushtune.common.tuning import GradientMethod

from .families import (
    CASES,
    CLASS_WEIGHTS,
    IMAGES,
    NUM_ROWS,
    TEXT_CASES,
    adapted,
    labels,
    make_task,
    moved,
    summed,
    tiny_config,
    token_rows,
)

ALL = np.arange(NUM_ROWS, dtype=np.int64)
every_text = pytest.mark.parametrize(("family", "head"), TEXT_CASES)


def cached(
    family: str,
    head: str,
    *,
    megabytes: int = 64,
    model: Mapping[str, Any] | None = None,
    **adapter: Any,
) -> Supervised:
    made = adapted(family, head, model=model, **adapter)
    return make_task(family, head, model=made, cache_megabytes=megabytes)


def with_zero_b(state: AdapterState) -> AdapterState:
    zero = {
        b_key(name): torch.zeros_like(state.tensors[b_key(name)]) for name in state.spec.targets
    }
    return AdapterState(state.spec, {**state.tensors, **zero})


@torch.no_grad()
def logits(task: Any, level: Level, state: AdapterState) -> torch.Tensor:
    lora.install(task.model, state)
    task.model.frozen_mode()
    return task.model(task.batch(ALL, level).inputs)


@every_text
def test_hidden_states_give_the_logits_and_sums_of_tokens(family: str, head: str) -> None:
    task = cached(family, head)
    state = moved(task.model)
    assert task.level(state, state.keys) is Level.HIDDEN
    reference = logits(task, Level.TOKENS, state)
    assert reference.std() > 0.01
    torch.testing.assert_close(logits(task, Level.HIDDEN, state), reference, rtol=1e-5, atol=1e-5)
    sums = [
        summed(task, ALL, state=state, clip_norm=0.05, level=level, microbatch=4)
        for level in (Level.TOKENS, Level.HIDDEN)
    ]
    assert torch.linalg.norm(sums[1] - sums[0]) <= 1e-5


@given(lengths=st.lists(st.integers(1, 37), min_size=1, max_size=30), size=st.integers(1, 9))
def test_a_row_is_padded_by_its_own_length(lengths: list[int], size: int) -> None:
    """Products of another width round otherwise: the rows beside it must not choose it."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = TokenRows(torch.full((int(offsets[-1]),), 7), offsets, 0, 37)
    pieces = in_pieces(tokens, Units.single(np.arange(len(lengths), dtype=np.int64)), size)
    own = np.concatenate([piece.units.rows for piece in pieces])
    assert sorted(own) == list(range(len(lengths)))
    for piece in pieces:
        found = tokens.inputs(piece.rows)
        width = found["input_ids"].shape[1]
        assert len(piece.rows) == max(1, min(2 * size, 32 * size // width))
        assert list(piece.rows[: len(piece.units)]) == list(piece.units.rows)
        for place, row in enumerate(piece.rows):
            alone = tokens.inputs(np.array([row]))
            assert all(torch.equal(found[key][place], alone[key][0]) for key in found)


@given(
    lengths=st.lists(
        st.lists(st.sampled_from([5, 12, 37]), min_size=1, max_size=3), min_size=2, max_size=20
    ),
    size=st.integers(1, 9),
    place=st.integers(0, 19),
)
@example(lengths=[[5], [5]], size=4, place=0)
@example(lengths=[[5, 5], [5, 37]], size=4, place=1)
def test_a_unit_is_computed_in_shapes_of_its_own(
    lengths: list[list[int]], size: int, place: int
) -> None:
    """As many rows, as wide, wherever it stands and whoever else is there."""
    flat = [length for unit in lengths for length in unit]
    offsets = np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)
    tokens = TokenRows(torch.full((int(offsets[-1]),), 7), offsets, 0, 37)
    starts = np.concatenate([[0], np.cumsum([len(unit) for unit in lengths])]).astype(np.int64)
    units = Units(np.arange(len(flat), dtype=np.int64), starts)
    gone = place % len(units)
    rest = units.take(np.delete(np.arange(len(units)), gone))

    def shapes(given: Units) -> dict[tuple[int, ...], tuple[int, ...]]:
        found: dict[tuple[int, ...], tuple[int, ...]] = {}
        for piece in in_pieces(tokens, given, size):
            shape = tuple(tokens.inputs(piece.rows)["input_ids"].shape)
            for at in range(len(piece.units)):
                found[tuple(piece.units.take(np.array([at])).rows)] = shape
        return found

    whole, without = shapes(units), shapes(rest)
    assert len(whole) == len(units)
    assert without == {rows: shape for rows, shape in whole.items() if rows in without}
    assert len(without) == len(rest)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_s_kept_activations_do_not_depend_on_the_other_rows(precision: str) -> None:
    """Else a record would move what others add to a sum, which no clipping bounds.

    Wide enough that products of other shapes take other roads through the processor.
    """
    model = wide_bert(precision)
    tokens = token_rows("bert", 150, longest=70)
    everyone = np.arange(150, dtype=np.int64)

    def kept(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        task = text_classification(
            model, of_rows(tokens, rows), labels(150)[rows], cache_megabytes=64
        )
        task.level(lora.initial_state(model, seed=0))
        own = np.arange(len(rows), dtype=np.int64)
        batches = [task.batch(own[at : at + 1], Level.HIDDEN).inputs for at in own]
        hidden = torch.cat([batch["hidden"].flatten(0, 1) for batch in batches])
        return hidden, task.batch(own, Level.FEATURES).inputs["features"]

    whole = kept(everyone)
    assert whole[1].std() > 0.1
    longest = int(tokens.lengths.argmax())
    for gone in (longest, 0, 77):
        rest = np.delete(everyone, gone)
        hidden, features = kept(rest)
        start, end = (int(tokens.widths[:at].sum()) for at in (gone, gone + 1))
        others = torch.cat([whole[0][:start], whole[0][end:]])
        assert float((hidden - others).abs().max()) <= 1e-5
        assert float((features - whole[1][rest]).abs().max()) <= 1e-5


def of_rows(tokens: TokenRows, rows: Rows) -> TokenRows:
    """Some rows alone, in their order."""
    kept = [tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in rows]
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths[rows])]).astype(np.int64)
    return TokenRows(torch.cat(kept), offsets, tokens.pad_id, tokens.max_tokens)


def wide_bert(precision: str) -> AdaptedModel:
    config = tiny_config("bert")
    config.update({"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 768})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    return lora.attach(
        base,
        model=ModelConfig(head="mean", precision=precision),
        adapter=AdapterConfig(rank=2, layers=1),
        num_outputs=3,
        seed=0,
    )


LENGTHS = {
    "one row each": [[5]] * 9 + [[7]] * 8,
    "a unit with a short and a long row": [[7, 7]] * 14 + [[7, 100]],
    "a unit of many rows": [[6]] * 16 + [[6] * 8],
}


@pytest.mark.parametrize("who", LENGTHS)
@pytest.mark.parametrize("microbatch", [1, 2, 8, 64])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pack", [False, True])
def test_rounding_that_an_adapter_blows_up_moves_the_sum_no_further_than_the_clip_norm(
    precision: str, microbatch: int, who: str, pack: bool
) -> None:
    """A head that adds up a layer norm's output is zero but for rounding, which 1e10 makes labels.

    Whoever orders such an adapter sees the others' gradients flip, if the unit that is gone has any
    say in how they are computed.
    """
    lengths = LENGTHS[who]
    flat = [length for unit in lengths for length in unit]
    starts = np.concatenate([[0], np.cumsum([len(unit) for unit in lengths])]).astype(np.int64)
    units = Units(np.arange(len(flat), dtype=np.int64), starts)
    ids = np.random.default_rng(3).integers(3, 30, sum(flat)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)
    model = wide_bert(precision)
    model.gradients, model.pack = GradientMethod.FUSED, pack
    assert model.packs is pack
    tokens = TokenRows(torch.from_numpy(ids), offsets, 0, 128)
    made = dict(lora.initial_state(model, seed=0).tensors)
    made["head.weight"] = 1e10 * torch.tensor([1.0, -1.0, 0.0])[:, None] * torch.ones(384)
    keys = ("head.bias", "head.weight")
    for start in (Level.FEATURES, Level.HIDDEN, Level.TOKENS):
        if start is not Level.FEATURES:
            made = {
                key: torch.full_like(tensor, 1e-3) if key.endswith("lora_B") else tensor
                for key, tensor in made.items()
            }
        state = AdapterState(lora.spec(model), made)
        sums = []
        for gone in (None, len(units) - 1, 0):
            left = np.delete(np.arange(len(units)), [] if gone is None else [gone])
            chosen = units.take(left)
            own = Units(np.arange(len(chosen.rows), dtype=np.int64), chosen.starts)
            task = text_classification(
                model,
                of_rows(tokens, chosen.rows),
                labels(len(flat))[chosen.rows],
                cache_megabytes=64,
            )
            assert start is Level.TOKENS or task.level(state, keys) is start
            sums.append(
                summed(
                    task,
                    own,
                    state=state,
                    clip_norm=1.0,
                    microbatch=microbatch,
                    level=start,
                    keys=keys,
                )
            )
        for other in sums[1:]:
            assert float(torch.linalg.norm(sums[0] - other)) <= 1.0001


@pytest.mark.parametrize("zero_b", [True, False])
@pytest.mark.parametrize("microbatch", [1, 8, 32])
def test_a_record_that_leaves_no_room_in_the_cache_moves_the_sum_no_further_than_the_clip_norm(
    microbatch: int, zero_b: bool
) -> None:
    """113 rows of 5 tokens fit a megabyte and 114 do not; nor do 683 features, and 682 do."""
    count = 683 if zero_b else 114
    ids = torch.from_numpy(np.random.default_rng(3).integers(3, 30, 5 * count).astype(np.int32))
    model = wide_bert("float32")
    made = dict(lora.initial_state(model, seed=0).tensors)
    made["head.weight"] = 1e10 * torch.tensor([1.0, -1.0, 0.0])[:, None] * torch.ones(384)
    if not zero_b:
        made |= {k: torch.full_like(made[k], 1e-3) for k in made if k.endswith("lora_B")}
    state = AdapterState(lora.spec(model), made)
    keys = ("head.bias", "head.weight")
    sums: list[torch.Tensor] = []
    levels: list[Level] = []
    for size in (count, count - 1):
        tokens = TokenRows(ids[: 5 * size], np.arange(size + 1, dtype=np.int64) * 5, 0, 128)
        task = text_classification(model, tokens, labels(size), cache_megabytes=1)
        levels.append(task.level(state, keys))
        how: dict[str, Any] = {"level": levels[-1], "microbatch": microbatch, "keys": keys}
        sums.append(summed(task, range(size), state=state, clip_norm=1.0, **how))
    assert levels[0] is levels[1]
    assert float(torch.linalg.norm(sums[0] - sums[1])) <= 1.0001


@every_text
def test_features_stand_in_only_for_a_mean_head_over_an_untouched_base(
    family: str, head: str
) -> None:
    task = cached(family, head)
    state = with_zero_b(moved(task.model))
    heads = tuple(key for key in state.keys if key.startswith("head."))
    if head == "own":
        assert task.level(state, heads) is Level.HIDDEN
        return
    assert task.level(state, heads) is Level.FEATURES
    reference = logits(task, Level.TOKENS, state)
    for level in (Level.HIDDEN, Level.FEATURES):
        torch.testing.assert_close(logits(task, level, state), reference, rtol=1e-5, atol=1e-5)
    sums = [
        summed(task, ALL, state=state, clip_norm=0.5, level=level, keys=heads, microbatch=4)
        for level in (Level.TOKENS, Level.HIDDEN, Level.FEATURES)
    ]
    assert sums[0].norm() > 0.5
    for other in sums[1:]:
        assert torch.linalg.norm(other - sums[0]) <= 1e-5


def test_features_are_refused_as_soon_as_any_b_is_not_zero_or_will_move() -> None:
    task = cached("bert", "mean")
    state = with_zero_b(moved(task.model))
    heads = ("head.bias", "head.weight")
    assert task.level(state, heads) is Level.FEATURES
    assert task.level(state) is Level.FEATURES
    for name in state.spec.targets:
        key = b_key(name)
        assert task.level(state, (*heads, key)) is Level.HIDDEN
        assert task.level(state, (*heads, key.replace(".lora_B", ".lora_A"))) is Level.HIDDEN
        one = state.tensors[key].clone()
        one[-1, -1] = 1e-30
        touched = AdapterState(state.spec, {**state.tensors, key: one})
        assert task.level(touched, heads) is Level.HIDDEN
        assert task.level(touched) is Level.HIDDEN


def test_filling_the_activations_leaves_the_installed_adapter_and_ignores_it() -> None:
    task = cached("bert", "mean")
    state = moved(task.model)
    lora.install(task.model, state)
    task.level(state)
    after = lora.extract(task.model)
    assert all(torch.equal(after.tensors[key], state.tensors[key]) for key in state.keys)
    fresh = cached("bert", "mean")
    zero = with_zero_b(state)
    torch.testing.assert_close(
        logits(task, Level.FEATURES, zero), logits(fresh, Level.TOKENS, zero), rtol=1e-5, atol=1e-5
    )


def test_only_what_is_read_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads alone read features: filling them for adapters is a pass through all blocks for
    nothing, and so is keeping what enters the first block."""
    task, state = cached("bert", "mean"), lora.initial_state(cached("bert", "mean").model, seed=0)
    run = AdaptedModel.frozen_activations
    seen: list[bool] = []

    def counted(self: AdaptedModel, *args: Any, pooled: bool = True) -> Any:
        seen.append(pooled)
        return run(self, *args, pooled=pooled)

    monkeypatch.setattr(AdaptedModel, "frozen_activations", counted)
    assert task.level(state, state.keys) is Level.HIDDEN
    assert set(seen) == {False}
    seen.clear()
    assert task.level(state, ("head.weight",)) is Level.FEATURES
    assert set(seen) == {True}
    seen.clear()
    both = [task.batch(np.arange(3, dtype=np.int64), level) for level in Level]
    assert not seen  # all of it is kept by now
    fresh = cached("bert", "mean")
    fresh.fill(features=True)
    for level, batch in zip(Level, both, strict=True):  # in one pass or in two: the same bits
        once = fresh.batch(np.arange(3, dtype=np.int64), level).inputs
        assert all(torch.equal(once[key], value) for key, value in batch.inputs.items())
    bottom = cached("bert", "mean", layers=0)
    whole = lora.initial_state(bottom.model, seed=0)
    assert bottom.level(whole, whole.keys) is Level.TOKENS


@pytest.mark.parametrize(("megabytes", "passes"), [(0, (1, 1)), (1, (0, 1)), (40, (0, 0))])
def test_the_cache_keeps_to_its_megabytes(
    megabytes: int, passes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hidden states go first, then the features; what is not kept takes another pass."""
    model = adapted("bert", "mean")
    long, count = 40, 7000
    ids = torch.full((count * long,), 4, dtype=torch.int32)
    many = TokenRows(ids, np.arange(count + 1, dtype=np.int64) * long, 0, long)
    # (7000 x 40 + 7000) x 32 x 4 bytes are 35 MiB; the features alone are 0.85 MiB.
    task = text_classification(model, many, labels(count), cache_megabytes=megabytes)
    task.fill(features=True)
    run = AdaptedModel.frozen_activations
    seen: list[int] = []

    def counted(self: AdaptedModel, *args: Any, **others: Any) -> Any:
        seen.append(1)
        return run(self, *args, **others)

    monkeypatch.setattr(AdaptedModel, "frozen_activations", counted)
    found: list[int] = []
    for level in (Level.FEATURES, Level.HIDDEN):
        seen.clear()
        task.batch(np.arange(4, dtype=np.int64), level)
        found.append(len(seen))
    assert tuple(found) == passes


@every_text
@pytest.mark.parametrize("megabytes", [0, 64])
def test_where_a_pass_starts_follows_from_the_adapter_alone(
    family: str, head: str, megabytes: int
) -> None:
    """Not from what there is room for, and so from how many rows there are."""
    task = cached(family, head, megabytes=megabytes)
    state = moved(task.model)
    assert task.level(state, state.keys) is Level.HIDDEN
    least = Level.FEATURES if head == "mean" else Level.HIDDEN
    assert task.level(with_zero_b(state), ("head.bias",)) is least


@every_text
def test_what_is_kept_and_what_is_computed_anew_have_the_same_bits(family: str, head: str) -> None:
    """Under whatever adapter is installed, and wherever a row stands in whichever piece."""
    kept, anew = cached(family, head), cached(family, head, megabytes=0)
    rows = np.asarray([5, 2, 2, 8], dtype=np.int64)
    state = moved(kept.model, by=1e3)
    for task in (kept, anew):
        task.level(state)
        lora.install(task.model, state)
        lora.set_trainable(task.model, state.keys)
        task.model.training_mode()
    for level in (Level.HIDDEN, *([Level.FEATURES] if head == "mean" else [])):
        key = str(level)
        assert torch.equal(kept.batch(rows, level).inputs[key], anew.batch(rows, level).inputs[key])
    after = lora.extract(anew.model)
    assert all(torch.equal(after.tensors[key], state.tensors[key]) for key in state.keys)


def test_a_piece_computed_anew_is_filled_up_as_one_that_is_judged_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nothing kept every step pays for what fills its pieces up."""
    task = cached("bert", "mean", megabytes=0)
    run, sizes = AdaptedModel.frozen_activations, list[int]()

    def counted(self: AdaptedModel, inputs: Any, **others: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return run(self, inputs, **others)

    monkeypatch.setattr(AdaptedModel, "frozen_activations", counted)
    task.batch(ALL[:4], Level.HIDDEN)
    judged = task.microbatches(Units.single(ALL[:4]), EVALUATION_BATCH, Level.HIDDEN)
    assert sizes == [len(piece.rows) for piece in judged]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_adapter_dropout_leaves_what_lies_below_it_exact(family: str) -> None:
    task = cached(family, "mean", dropout=0.5)
    state = moved(task.model)
    assert task.level(state, state.keys) is Level.HIDDEN
    lora.install(task.model, state)
    lora.set_trainable(task.model, state.keys)
    task.model.training_mode()
    found = []
    with torch.no_grad():
        for level in (Level.TOKENS, Level.HIDDEN, Level.TOKENS):
            torch.manual_seed(3 if len(found) < 2 else 4)
            found.append(task.model(task.batch(ALL, level).inputs))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert (found[2] - found[0]).abs().max() > 1e-3  # dropout was at work


@pytest.mark.parametrize(
    ("family", "head"), [(family, head) for family, head in CASES if family in IMAGES]
)
def test_images_start_from_hidden_states_too(family: str, head: str) -> None:
    task = make_task(family, head)
    state = moved(task.model)
    inputs = task.batch(ALL, Level.TOKENS).inputs
    lora.install(task.model, with_zero_b(state))
    task.model.frozen_mode()
    hidden, features = task.model.frozen_activations(inputs)
    assert (features is None) == (head == "own")
    with torch.no_grad():
        if features is not None:
            plain = task.model(inputs)
            torch.testing.assert_close(task.model({"features": features}), plain)
        lora.install(task.model, state)
        whole, part = task.model(inputs), task.model({**inputs, "hidden": hidden})
    torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-5)


@every_text
def test_metrics_weigh_every_row_alike_and_keep_the_order_of_rows(family: str, head: str) -> None:
    task = cached(family, head)
    state = moved(task.model)
    rows = np.asarray([5, 2, 2, 8], dtype=np.int64)
    reference = logits(task, Level.TOKENS, state)
    torch.testing.assert_close(
        task.figures(state, rows)[:, :-1], reference[torch.from_numpy(rows)], rtol=1e-5, atol=1e-5
    )
    figures = task.metrics_by_group(state, {"some": rows, "all": ALL})
    truth = torch.from_numpy(labels())
    loss = torch.nn.functional.cross_entropy(reference, truth)
    assert figures["all"]["loss"] == pytest.approx(float(loss), abs=1e-4)
    assert CLASS_WEIGHTS != (1.0, 1.0, 1.0)  # which the figures must not follow
    hits = (reference.argmax(1) == truth)[torch.from_numpy(rows)].float().mean()
    assert figures["some"]["accuracy"] == pytest.approx(float(hits))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test_the_features_of_a_block_are_those_of_a_model_that_ends_there(family: str) -> None:
    """But for a norm above all blocks, as GPT-2 and Llama have: a block's own output is read."""
    task = cached(family, "mean")
    zero = with_zero_b(lora.extract(task.model))
    for layer in (1, 2):
        cut = cached(family, "mean", model={"layer": layer}, layers=0)
        with torch.no_grad():
            cut.model.base.base_model.model.norm = torch.nn.Identity()
            cut.model.base.base_model.model.ln_f = torch.nn.Identity()
        # Its own adapter is without effect from the start.
        expected = cut.batch(ALL, Level.FEATURES).inputs["features"]
        with task.reading(layer):
            assert task.level(zero, ("head.weight",)) is Level.FEATURES
            found = task.batch(ALL, Level.FEATURES).inputs["features"]
            some = task.batch(ALL[[4, 1]], Level.FEATURES).inputs["features"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(some, found[[4, 1]])
        assert not torch.allclose(found, task.batch(ALL, Level.FEATURES).inputs["features"])


def test_a_head_of_the_family_s_own_reads_no_block() -> None:
    with pytest.raises(ValueError, match="mean-pooled"), cached("bert", "own").reading(1):
        pass


def test_features_of_all_layers_come_from_the_pass_that_fills_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = cached("bert", "mean")
    task = make_task("bert", "mean", model=adapted("bert"), cache_megabytes=64, layers=True)
    task.fill(features=True)

    def no_more(*_: Any) -> Any:
        raise AssertionError("a second pass")

    monkeypatch.setattr(task.model, "_run_base", no_more)
    for layer in task.readable_layers:
        with alone.reading(layer), task.reading(layer):
            expected = alone.batch(ALL, Level.FEATURES).inputs["features"]
            assert torch.equal(task.batch(ALL, Level.FEATURES).inputs["features"], expected)
