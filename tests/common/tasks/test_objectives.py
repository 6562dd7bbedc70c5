"""Losses and figures of each kind of target, against their definitions written down by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import Tensor

from hushtune.common.tasks.objectives import (
    Classification,
    MultiLabel,
    Objective,
    Regression,
    class_weights,
)
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken, TokenTags

N, C, T, V = 40, 3, 6, 11
RANDOM = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def token_targets(classes: int, *, at_least: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(8)
    targets = torch.randint(0, classes, (N, T), generator=random)
    targets[torch.rand(N, T, generator=random) < 0.4] = IGNORED
    targets[:, :at_least] = 1
    return targets


def cases() -> dict[str, tuple[Objective, Tensor, Tensor]]:
    labels = torch.arange(N) % C
    return {
        "classes": (Classification(torch.tensor([1.0, 2.0, 0.5])), drawn(N, C), labels),
        "two": (Classification(class_weights(None, 2)), drawn(N, 2), labels % 2),
        "several": (MultiLabel(C), drawn(N, C), (drawn(N, C).sin() > 0).float()),
        "number": (Regression(-4.0, 6.0), drawn(N, 1), drawn(N).clamp(-4, 6)),
        "tags": (TokenTags(torch.tensor([1.0, 2.0, 0.5])), drawn(N, T, C), token_targets(C)),
        "words": (NextToken(V), drawn(N, T, V), token_targets(V)),
    }


NAMES = tuple(cases())
every = pytest.mark.parametrize("name", NAMES)


@every
def test_an_example_s_loss_does_not_look_at_the_others(name: str) -> None:
    objective, outputs, targets = cases()[name]
    whole = objective.losses(outputs, targets)
    assert whole.shape == (N,)
    for row in range(0, N, 7):
        one = objective.losses(outputs[row : row + 1], targets[row : row + 1])
        torch.testing.assert_close(one[0], whole[row], rtol=1e-6, atol=1e-7)


@every
def test_scores_of_a_group_follow_from_its_rows_alone(name: str) -> None:
    objective, outputs, targets = cases()[name]
    figures = objective.figures(outputs, targets)
    some = torch.tensor([3, 1, 20, 33, 7, 5])
    direct = objective.scores(objective.figures(outputs[some], targets[some]))
    assert objective.scores(figures[some]) == pytest.approx(direct)
    right, losses = objective.judged(figures)
    assert right.shape == losses.shape == (N,)
    assert 0 <= float(right.min()) <= float(right.max()) <= 1
    assert objective.scores(figures)["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@every
def test_the_constant_answer_is_the_best_one_on_what_it_has_seen(name: str) -> None:
    """Its mean loss on the very targets it is made from is no worse than that of others."""
    objective, outputs, targets = cases()[name]
    own = objective.judged(objective.constant(targets, targets))[1]
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        other = torch.randn(outputs.shape[-1], generator=random).expand(outputs.shape)
        losses = objective.judged(objective.figures(other, targets))[1]
        if name in ("tags", "words"):  # of tokens it is the best over all tokens, not over rows
            counts = (targets != IGNORED).sum(1)
            slack = 0.02 if name == "words" else 0.0  # one is added to every count
            assert (own * counts).sum() <= (losses * counts).sum() * (1 + slack)
        else:
            assert own.mean() <= losses.mean() + 1e-6


def test_cross_entropy_is_weighted_by_the_class() -> None:
    objective, logits, labels = cases()["classes"]
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = -logits.log_softmax(1)[torch.arange(N), labels] * weights[labels]
    torch.testing.assert_close(objective.losses(logits, labels), expected)


def test_of_two_classes_detection_is_scikit_learn_s() -> None:
    objective, logits, labels = cases()["two"]
    found = objective.scores(objective.figures(logits, labels))
    by = (logits[:, 1] - logits[:, 0]).numpy()
    assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, by))
    assert found["average_precision"] == pytest.approx(average_precision_score(labels, by))
    other = Classification(class_weights(None, 2), positive=0)
    turned = other.scores(other.figures(logits, labels))
    assert turned["average_precision"] == pytest.approx(average_precision_score(1 - labels, -by))
    assert "roc_auc" not in cases()["classes"][0].scores(
        cases()["classes"][0].figures(*cases()["classes"][1:])
    )


def test_recall_at_a_precision_is_the_largest_that_keeps_it() -> None:
    # By falling score: right, right, wrong, right, wrong.
    labels = torch.tensor([1, 1, 0, 1, 0])
    logits = torch.tensor([[0.0, s] for s in (5.0, 4.0, 3.0, 2.0, 1.0)])
    for floor, recall in ((0.9, 2 / 3), (0.75, 1.0), (0.7, 1.0)):
        objective = Classification(class_weights(None, 2), precision_floor=floor)
        found = objective.scores(objective.figures(logits, labels))
        assert found["recall_at_precision"] == pytest.approx(recall)


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_alone_have_figures_all_the_same(label: int) -> None:
    objective = Classification(class_weights(None, 2))
    found = objective.scores(objective.figures(drawn(5, 2), torch.full((5,), label)))
    assert all(math.isfinite(value) for value in found.values())
    assert found["roc_auc"] == 0.5


def test_several_labels_against_scikit_learn() -> None:
    objective, logits, held = cases()["several"]
    found = objective.scores(objective.figures(logits, held))
    told = (logits > 0).int().numpy()
    assert found["micro_f1"] == pytest.approx(f1_score(held.int(), told, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(held.int(), told, average="macro"))
    probability = logits.sigmoid()
    expected = -(held * probability.log() + (1 - held) * (1 - probability).log()).mean(1)
    torch.testing.assert_close(objective.losses(logits, held), expected)


def test_a_number_is_learnt_in_scaled_units_and_told_in_its_own() -> None:
    objective = Regression(-4.0, 6.0)  # middle 1, half 5
    outputs = torch.tensor([[0.0], [1.0], [-1.0], [3.0]])
    targets = torch.tensor([1.0, 6.0, -3.0, 2.0])
    assert objective.answers(outputs).tolist() == [1.0, 6.0, -4.0, 6.0]  # the last is cut
    torch.testing.assert_close(
        objective.losses(outputs, targets), torch.tensor([0.0, 0.0, 0.04, (3 - 0.2) ** 2])
    )
    found = objective.scores(objective.figures(outputs, targets))
    assert found["rmse"] == pytest.approx(math.sqrt((0 + 0 + 1 + 16) / 4))
    assert found["mae"] == pytest.approx(5 / 4)
    assert found["closeness"] == pytest.approx(1 - 5 / 4 / 10)


@given(
    st.lists(st.floats(-4, 6, width=32), min_size=1, max_size=8),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=8, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_numbers_of_any_kind_have_finite_figures(
    targets: list[float], outputs: list[float]
) -> None:
    objective = Regression(-4.0, 6.0)
    answers = torch.tensor(outputs[: len(targets)]).unsqueeze(1)
    found = objective.scores(objective.figures(answers, torch.tensor(targets)))
    assert all(math.isfinite(value) for value in found.values()), found
    assert -1.0001 <= found["pearson"] <= 1.0001
    assert 0 <= found["closeness"] <= 1


def test_a_long_text_does_not_speak_for_the_others() -> None:
    """The loss of an example is the mean over its own tokens, whatever the others' number is."""
    for objective, outputs, targets in (cases()["tags"], cases()["words"]):
        losses = objective.losses(outputs, targets)
        weights = objective.weights if isinstance(objective, TokenTags) else torch.ones(V)
        for row in range(N):
            counted = targets[row] != IGNORED
            logs = outputs[row].log_softmax(-1)[counted, targets[row][counted]]
            expected = -(logs * weights[targets[row][counted]]).mean()
            torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-6)


def test_what_carries_no_loss_changes_nothing() -> None:
    for objective, outputs, targets in (cases()["tags"], cases()["words"]):
        other = torch.where((targets == IGNORED).unsqueeze(-1), outputs + 3 * drawn(1), outputs)
        other[..., 0] = torch.where(targets == IGNORED, 1e3, outputs[..., 0])
        torch.testing.assert_close(
            objective.figures(other, targets), objective.figures(outputs, targets)
        )


def test_tags_against_scikit_learn() -> None:
    objective, outputs, targets = cases()["tags"]
    found = objective.scores(objective.figures(outputs, targets))
    counted = targets != IGNORED
    held, told = targets[counted].numpy(), outputs.argmax(-1)[counted].numpy()
    assert found["token_accuracy"] == pytest.approx(float(np.mean(held == told)))
    assert found["macro_f1"] == pytest.approx(f1_score(held, told, average="macro"))


def test_perplexity_is_over_all_tokens() -> None:
    objective, outputs, targets = cases()["words"]
    found = objective.scores(objective.figures(outputs, targets))
    counted = targets != IGNORED
    logs = outputs.log_softmax(-1).gather(2, targets.clamp_min(0).unsqueeze(2)).squeeze(2)
    assert found["perplexity"] == pytest.approx(math.exp(-float(logs[counted].mean())), rel=1e-5)
    right = (outputs.argmax(-1) == targets)[counted].float().mean()
    assert found["token_accuracy"] == pytest.approx(float(right))
