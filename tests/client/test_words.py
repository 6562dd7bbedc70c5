"""Language models: the loss is each example's own, on its answer's tokens, whoever is beside it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from hushtune.common import lora
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.model import ANSWER_AT, ANSWERS, Level
from hushtune.common.tasks.activations import in_pieces, shapes_of
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.units import Units

from .families import flat, moved, summed
from .words import APART, CAUSAL, NUM_ROWS, NUM_WORDS, words_model, words_rows, words_task

ALL = np.arange(NUM_ROWS, dtype=np.int64)
FAMILIES = (*CAUSAL, *APART)
every_family = pytest.mark.parametrize("family", FAMILIES)


def plain_inputs(task: Supervised, row: int) -> dict[str, Tensor]:
    """One row for the base's own forward, without any padding: tokens, and labels for its loss."""
    rows = cast(Any, task.inputs)
    ids = rows.tokens.ids[rows.tokens.offsets[row] : rows.tokens.offsets[row + 1]].long()
    answer = rows.answers.ids[rows.answers.offsets[row] : rows.answers.offsets[row + 1]].long()
    if task.model.reads_and_writes:
        return {"input_ids": ids[None], "labels": answer[None]}
    prompt = len(ids) - len(answer) + 1
    whole = torch.cat([ids[:prompt], answer])
    labels = torch.cat([torch.full((prompt,), -100), answer])
    return {"input_ids": whole[None], "labels": labels[None]}


def own_loss(task: Supervised, row: int) -> Tensor:
    """Transformers' own loss of one example."""
    return cast(Any, task.model.base)(**plain_inputs(task, row)).loss


@every_family
def test_a_loss_is_the_family_s_own_for_one_example(family: str) -> None:
    """Shifted by one exactly, the mean over the answer's tokens, and none on the prompt's."""
    task = words_task(family)
    lora.install(task.model, moved(task.model))
    task.model.frozen_mode()
    with torch.no_grad():
        found = task.example_losses(task.batch(ALL, Level.TOKENS))
        expected = torch.stack([own_loss(task, int(row)) for row in ALL])
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_family
def test_logits_are_computed_at_the_answer_s_places_alone(family: str) -> None:
    task = words_task(family)
    lora.install(task.model, moved(task.model))
    task.model.frozen_mode()
    seen: list[tuple[int, ...]] = []
    base = cast(Any, task.model.base).get_base_model()
    hook = base.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: seen.append(tuple(output.shape))
    )
    batch = task.batch(ALL, Level.TOKENS)
    with torch.no_grad():
        found = task.model(batch.inputs)
        assert seen == [(NUM_ROWS, batch.targets.shape[1], NUM_WORDS)]
        if ANSWER_AT in batch.inputs:
            rest = {key: value for key, value in batch.inputs.items() if key != ANSWER_AT}
            whole = task.model(rest)
            places = batch.inputs[ANSWER_AT].unsqueeze(-1)
            torch.testing.assert_close(found, torch.take_along_dim(whole, places, 1))
    hook.remove()


def reference(task: Supervised, rows: Any, clip_norm: float) -> Tensor:
    """Abadi et al., algorithm 1, with transformers' own loss and plain autograd, row by row."""
    state = moved(task.model)
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    total = torch.zeros(sum(p.numel() for p in trained.values()), dtype=torch.float64)
    for row in rows:
        found = torch.autograd.grad(own_loss(task, int(row)), list(trained.values()))
        gradient = flat(dict(zip(trained, found, strict=True)))
        total += gradient / max(1.0, float(gradient.norm()) / clip_norm)
    return total


@every_family
@pytest.mark.parametrize("microbatch", [1, 4, 100])
def test_a_clipped_sum_is_that_of_each_example_alone(family: str, microbatch: int) -> None:
    """A mean over the batch or over its tokens would differ, and so would a loss on the prompt."""
    task = words_task(family, count=24)
    rows = np.arange(24, dtype=np.int64)
    pieces = task.microbatches(Units.single(rows), 4, Level.TOKENS)
    assert any(len(set(tokens_of(task, piece.units.rows))) > 1 for piece in pieces)
    norm = float(reference(task, [0], 1e9).norm())
    for clip in (0.5 * norm, 100 * norm):  # what is clipped hides how long a gradient was
        found = summed(task, rows, state=moved(task.model), clip_norm=clip, microbatch=microbatch)
        expected = reference(task, rows, clip)
        assert torch.linalg.norm(found - expected) <= 1e-4 * float(expected.norm())


def tokens_of(task: Supervised, rows: Any) -> list[int]:
    """How many answer tokens each of some rows has."""
    return cast(Any, task.inputs).answers.lengths[rows].tolist()


@every_family
def test_one_example_moves_the_sum_by_the_clip_norm_at_most_and_others_not_at_all(
    family: str,
) -> None:
    task = words_task(family)
    state = moved(task.model, by=0.3)
    alone = [summed(task, [int(row)], state=state, clip_norm=1e-2) for row in ALL]
    whole = summed(task, ALL, state=state, clip_norm=1e-2, microbatch=3)
    for row in ALL:
        rest = summed(
            task, Units.single(np.delete(ALL, row)), state=state, clip_norm=1e-2, microbatch=3
        )
        assert float(torch.linalg.norm(whole - rest)) <= 1e-2 * (1 + 1e-6)
        assert float(torch.linalg.norm(whole - rest - alone[row])) <= 1e-6
        assert float(alone[row].norm()) > 1e-3


@pytest.mark.parametrize("family", CAUSAL)
def test_starting_from_hidden_states_is_starting_from_tokens(family: str) -> None:
    task = words_task(family, cache_megabytes=16)
    state = moved(task.model)
    assert task.level(state, state.keys) is Level.HIDDEN
    lora.install(task.model, state)
    task.model.frozen_mode()
    with torch.no_grad():
        found = [task.model(task.batch(ALL, lvl).inputs) for lvl in (Level.TOKENS, Level.HIDDEN)]
    targets = task.batch(ALL, Level.TOKENS).targets
    kept = targets >= 0  # what lies beyond an answer repeats its last place
    torch.testing.assert_close(found[1][kept], found[0][kept], rtol=1e-5, atol=1e-5)
    sums = [
        summed(task, ALL, state=state, clip_norm=0.05, level=level, microbatch=4)
        for level in (Level.TOKENS, Level.HIDDEN)
    ]
    assert float(sums[0].norm()) > 0.05
    assert torch.linalg.norm(sums[1] - sums[0]) <= 1e-5


@pytest.mark.parametrize("family", APART)
def test_a_model_of_two_adapted_parts_always_starts_from_tokens(family: str) -> None:
    task = words_task(family)
    state = moved(task.model)
    assert task.level(state, state.keys) is Level.TOKENS
    parts = {"encoder" in name.split(".")[:2] for name in state.spec.targets}
    assert parts == {True, False}  # encoder and decoder
    batch = task.batch(ALL, Level.TOKENS)
    hidden = torch.zeros(NUM_ROWS, batch.inputs["input_ids"].shape[1], 32)
    with pytest.raises(UnsupportedModelError):
        task.model({**batch.inputs, "hidden": hidden})


@every_family
def test_rows_of_a_piece_have_one_width_and_one_size_of_answer(family: str) -> None:
    """Else how many places logits are computed at would follow from the rows beside."""
    inputs, _ = words_rows(family, 60, times=4)
    units = Units.single(np.arange(60, dtype=np.int64))
    alone = {int(row): shapes(inputs, [int(row)]) for row in units.rows}
    assert len(set(alone.values())) > 3
    for size in (1, 3, 8):
        pieces = in_pieces(inputs, units, size)
        assert sorted(row for piece in pieces for row in piece.units.rows) == list(range(60))
        for piece in pieces:
            assert len(piece.rows) == size
            assert {shapes(inputs, [int(row)]) for row in piece.rows} == {
                shapes(inputs, piece.rows)
            }
    assert shapes_of(inputs).shape == (60, 2)


def shapes(inputs: Any, rows: Any) -> tuple[int, ...]:
    found = inputs.inputs(np.asarray(rows, dtype=np.int64))
    told = found[ANSWER_AT] if ANSWER_AT in found else found[ANSWERS]
    return found["input_ids"].shape[1], told.shape[1]


@every_family
def test_figures_follow_from_each_row_whoever_is_judged_beside_it(family: str) -> None:
    task = words_task(family, cache_megabytes=16)
    state = moved(task.model)
    whole = task.figures(state, ALL)
    assert whole.shape == (NUM_ROWS, 3)
    with torch.no_grad():
        lora.install(task.model, state)
        task.model.frozen_mode()
        losses = torch.stack([own_loss(task, int(row)) for row in ALL])
    torch.testing.assert_close(whole[:, 0], losses, rtol=1e-4, atol=1e-4)
    scores = task.metrics_by_group(state, {"all": ALL})["all"]
    tokens = whole[:, 1].double()
    mean = float((losses.double() * tokens).sum() / tokens.sum())
    assert scores["perplexity"] == pytest.approx(float(np.exp(mean)), rel=1e-3)
    assert scores["loss"] == pytest.approx(float(losses.mean()), rel=1e-3)
    right, loss = task.row_figures(state, ALL)
    assert bool((right >= 0).all() and (right <= 1).all())
    torch.testing.assert_close(loss, whole[:, 0])


def test_no_head_is_trained_beside_the_adapter() -> None:
    state = lora.initial_state(words_model("llama"), seed=0)
    assert state.spec.head == ()
    assert all(".lora_" in key for key in state.keys)
