"""Spans of tags, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
import torch

from hushtune.common.config_io import loads_config
from hushtune.common.errors import ConfigError
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.kinds.token_classification import prepare
from hushtune.common.tasks.objectives_tokens import IGNORED, TokenTags
from hushtune.common.tasks.spans import mark_spans, spans
from hushtune.common.tasks.tokenizer import load_tokenizer

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        # A type that changes ends a span; an I with nothing before it begins one.
        ("B-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("O I-PER I-PER", {("PER", 1, 3)}),
        ("S-PER B-LOC I-LOC E-LOC", {("PER", 0, 1), ("LOC", 1, 4)}),
        ("B-PER E-PER E-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("S-PER I-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("U-PER B-LOC L-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
    ],
)
def test_spans_are_those_of_conlleval(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (NAMES, True),
        (("B-PER", "I-PER"), True),
        (("NOUN", "VERB", "O"), False),
        (("O",), False),
        (("I-PER", "O"), False),  # without a beginning two in a row are one
        (("B-PER", "I-PER", "X"), False),
    ],
)
def test_which_tags_mark_spans(names: tuple[str, ...], expected: bool) -> None:
    assert mark_spans(names) is expected


def told(*tags: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tags), len(NAMES)).float()


def test_f1_over_all_spans_of_some_texts() -> None:
    """Held: PER 0-2, LOC 3-4; LOC 0-1. Told: PER 0-1 and LOC 3-4; LOC 0-1 and PER 2-3. Two right,
    of three held and four told: 2 * 2 / 7. Tokens that carry no loss part no span."""
    objective = TokenTags(torch.ones(len(NAMES)), NAMES)
    targets = torch.tensor([[1, 2, 0, IGNORED, 3], [3, IGNORED, 0, 0, IGNORED]])
    outputs = told([1, 0, 0, 4, 3], [3, 4, 0, 1, 1])
    figures = objective.figures(outputs, targets)
    assert figures[:, 3:6].tolist() == [[2, 2, 1], [1, 2, 1]]
    assert objective.scores(figures)["span_f1"] == pytest.approx(4 / 7)
    # Of each text by itself, and of a part of the rows.
    assert objective.scores(figures[:1])["span_f1"] == pytest.approx(0.5)
    # Words that are right make no span that is: of seven words five are.
    assert objective.scores(figures)["token_accuracy"] == pytest.approx(5 / 7)


def test_words_without_spans_have_no_such_figure() -> None:
    targets, outputs = torch.tensor([[0, 0]]), told([0, 0])
    plain = TokenTags(torch.ones(len(NAMES)))
    assert "span_f1" not in plain.scores(plain.figures(outputs, targets))
    spanning = TokenTags(torch.ones(len(NAMES)), NAMES)
    assert spanning.scores(spanning.figures(outputs, targets))["span_f1"] == 1.0


@pytest.mark.parametrize(("tags", "marked"), [("B-A I-A O", True), ("A B C", False)])
def test_a_run_about_spans_needs_tags_that_mark_them(
    tmp_path: Path, tiny_bert: Path, tags: str, marked: bool
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"a b {i},{tags}\n" for i in range(20)))
    tree = {
        "task": {"kind": "token-classification", "metric": "span_f1"},
        "data": {"files": {"north": str(path)}},
    }
    config = loads_config(tomli_w.dumps(tree))
    data = load_data(config.data, config.task, seed=0)
    tokenizer = load_tokenizer(str(tiny_bert))
    if marked:
        objective = prepare(config, data, tokenizer).objective
        assert isinstance(objective, TokenTags)
        assert objective.names == ("B-A", "I-A", "O")
    else:
        with pytest.raises(ConfigError, match="the tags mark no spans"):
            prepare(config, data, tokenizer)
