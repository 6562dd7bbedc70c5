"""How the rows of each kind of supervision are read, checked, kept once and parted."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import BadValueError, ConfigError, HushtuneError, LabelError
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.kinds.texts import columns_text, tokenize
from hushtune.common.tasks.kinds.token_classification import tokens_of_words
from hushtune.common.tasks.partition import draw
from hushtune.common.tasks.tokenizer import load_tokenizer

WORDS = ("red", "blue", "green", "old", "new", "tall")


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path: Path, kind: str, *, task: dict[str, Any] | None = None, **data: Any) -> LabelledRows:
    config = DataConfig(file=path, partition="iid", sites=2, **data)
    return load_data(config, TaskConfig.model_validate({"kind": kind, **(task or {})}), seed=3)


def used(data: LabelledRows) -> np.ndarray:
    return np.sort(
        np.concatenate(
            [np.concatenate([s.train, s.validation, s.test]) for s in data.sites.values()]
        )
    )


def test_a_pair_is_two_columns_and_repeated_as_a_whole_only(tmp_path: Path) -> None:
    rows = [(a, b, "same" if a == b else "other") for a in WORDS for b in WORDS]
    path = table(tmp_path / "a.csv", ["first", "then", "label"], [*rows, rows[0]])
    data = read(path, "text-pair-classification", text="first", second="then")
    assert len(data.texts) == len(rows)
    assert json.loads(data.texts[1]) == ["red", "blue"]
    assert data.label_names == ("other", "same")


def test_equal_rows_of_a_table_are_different_persons(tmp_path: Path) -> None:
    rows = [(20 + i % 3, "", "yes" if i % 2 else "no") for i in range(24)]
    path = table(tmp_path / "a.csv", ["age", "job", "label"], rows)
    data = read(path, "tabular-classification", columns=("age", "job"))
    assert len(used(data)) == 24
    assert json.loads(data.texts[0]) == {"age": "20", "job": None}
    assert columns_text(data.texts[0]) == "age: 20"


def test_a_row_of_which_every_column_is_empty_is_left_out(tmp_path: Path) -> None:
    rows = [(20 + i, "a", "yes" if i % 2 else "no") for i in range(20)]
    path = table(tmp_path / "a.csv", ["age", "job", "label"], [*rows, ("", "", "yes")])
    data = read(path, "tabular-classification", columns=("age", "job"))
    assert len(data.texts) == 20
    assert "no text" in " ".join(data.report.lines())


def test_the_target_cannot_be_read_as_an_input_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the target is none of them"):
        DataConfig(file=tmp_path / "x.csv", columns=("age", "label"))


@pytest.mark.parametrize("bad", ["7.5", "much", "inf", "-4.01"])
def test_a_number_outside_the_public_range_is_named_with_its_row(tmp_path: Path, bad: str) -> None:
    rows = [(f"text {i}", i % 5 - 2) for i in range(20)]
    rows[13] = ("text 13", bad)
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    with pytest.raises(BadValueError, match=r"no number within task\.range") as caught:
        read(path, "text-regression", task={"range": [-4.0, 4.0]})
    told = str(caught.value)
    assert str(path) in told
    assert "15" in told  # the header is row 1


def test_numbers_are_parted_by_bins_of_their_public_range(tmp_path: Path) -> None:
    rows = [(f"text {i}", i / 10) for i in range(100)]  # 0 to 9.9 of 0 to 10
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    data = read(path, "text-regression", task={"range": [0.0, 10.0]})
    assert data.strata == ("0 to 2", "2 to 4", "4 to 6", "6 to 8", "8 to 10")
    assert np.bincount(data.labels).tolist() == [20] * 5
    assert data.label_names == ()
    # Each part has of each bin about its share.
    test = np.concatenate([split.test for split in data.sites.values()])
    assert np.bincount(data.labels[test], minlength=5).min() >= 3


def test_the_ends_of_the_range_belong_to_it(tmp_path: Path) -> None:
    rows = [(f"text {i}", 10 if i % 2 else 0) for i in range(30)]
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    data = read(path, "text-regression", task={"range": [0.0, 10.0]})
    assert set(data.labels.tolist()) == {0, 4}


def test_several_labels_are_names_between_bars(tmp_path: Path) -> None:
    held = ["b|a", "|", "c", "a | c"]
    rows = [(f"text {i}", held[i % 4]) for i in range(40)]
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    data = read(path, "multi-label")
    assert data.label_names == ("a", "b", "c")
    assert data.strata == ("a", "b", "c", "none of them")
    assert data.labels[:4].tolist() == [0, 3, 2, 0]


def test_a_text_needs_a_tag_for_each_word(tmp_path: Path) -> None:
    rows = [(f"one two {i}", "N V N") for i in range(20)]
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    assert read(path, "token-classification").label_names == ("N", "V")
    rows[4] = ("one two 4", "N V")
    table(path, ["text", "label"], rows)
    with pytest.raises(LabelError, match="another number of tags"):
        read(path, "token-classification")


def test_an_answer_may_be_one_of_several_to_the_same_prompt(tmp_path: Path) -> None:
    rows = [("hello", f"answer {i % 15}") for i in range(30)]  # each twice
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    data = read(path, "seq2seq")
    assert len(data.texts) == 15
    assert "repeated" in " ".join(data.report.lines())


def test_an_image_is_known_by_what_is_in_it() -> None:
    kind = TaskConfig.model_validate({"kind": "image-classification"}).of
    assert kind.identity("ab12:/x/a.png", "cat") == kind.identity("ab12:/y/b.png", "dog")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task__kind": "text-regression"}, "has to be public"),
        ({"task__range": [0.0, 1.0]}, "for targets that are numbers"),
        ({"task__kind": "text-regression", "task__range": [1.0, 0.0]}, "the smaller number"),
        ({"task__metric": "rmse"}, "no figure of this name"),
        ({"task__kind": "text-pair-classification"}, "the second text"),
        ({"task__kind": "tabular-classification"}, "columns that are read"),
        ({"data__second": "b"}, "does not read data.second"),
        ({"task__kind": "causal-lm", "train__warmup_rounds": 1}, "trains no head"),
        ({"task__kind": "token-classification", "model__head": "own"}, "own head"),
        (
            {
                "task__kind": "text-regression",
                "task__range": [0.0, 1.0],
                "data__class_weights": {"a": 1.0},
            },
            "no classes to weigh",
        ),
        ({"task__kind": "multi-label", "simulation__attack": "label_flip"}, "can be flipped"),
        ({"task__kind": "text-clasification"}, "text-classification"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(
    settings: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.config(**changes)
    assert said in str(caught.value)


def test_a_kind_without_a_head_has_no_warm_up(settings: Any) -> None:
    config = settings.config(task__kind="causal-lm", train__warmup_rounds=None)
    assert config.train.warmup_rounds == 0
    assert settings.config(train__warmup_rounds=None).train.warmup_rounds > 0


def test_detection_is_of_two_classes(settings: Any, tmp_path: Path) -> None:
    from hushtune.common.tasks.kinds.classification import objective

    config = settings.config(task__metric="roc_auc")
    assert objective(config, ("bad", "good")).positive == 1
    with pytest.raises(ConfigError, match="one of two classes"):
        objective(config, ("a", "b", "c"))
    with pytest.raises(ConfigError, match=r"task\.positive is no class"):
        objective(settings.config(task__positive="fine"), ("bad", "good"))


def test_pairs_and_tables_as_tokens(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    rows = tokenize(tokenizer, ['["the door", "my song"]'], max_tokens=32, inputs=Inputs.PAIR)
    assert tokenizer.decode(rows.ids.tolist()) == "[CLS] the door [SEP] my song [SEP]"
    rows = tokenize(
        tokenizer, ['{"door": "old", "song": null}'], max_tokens=32, inputs=Inputs.COLUMNS
    )
    assert "song" not in tokenizer.decode(rows.ids.tolist())


def test_a_word_s_tag_is_at_its_first_token(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_bert))
    rows, words = tokens_of_words(tokenizer, ["the zq door"], max_tokens=32)
    pieces = tokenizer.convert_ids_to_tokens(rows.ids.tolist())
    firsts = {word: pieces[at] for at, word in enumerate(words[0]) if word is not None}
    assert firsts == {0: "the", 1: "z", 2: "door"}
    assert pieces == ["[CLS]", "the", "z", "##q", "door", "[SEP]"]
    _, cut = tokens_of_words(tokenizer, ["the zq door"], max_tokens=4)
    assert [word for word in cut[0] if word is not None] == [0, 1]


def test_every_error_says_what_to_do(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", ["text", "label"], [("a b", "N"), ("c", "N")])
    with pytest.raises(HushtuneError) as caught:
        read(path, "token-classification")
    assert caught.value.expected


@pytest.mark.parametrize(
    ("kind", "cells", "task", "title", "named"),
    [
        ("text-classification", ("no", "yes"), {}, "label", ["no", "yes"]),
        ("multi-label", ("b|a", "|"), {}, "first label", ["a", "b", "none of them"]),
        ("text-regression", ("1", "9"), {"range": [0.0, 10.0]}, "target", ["0 to 2", "8 to 10"]),
        ("token-classification", ("N V N", "V V N"), {}, "", ["sentences"]),
        ("seq2seq", ("hm", "ah"), {}, "", ["answers"]),
    ],
)
def test_the_picture_of_the_sites_names_what_its_bars_are_of(
    tmp_path: Path, kind: str, cells: Sequence[str], task: Any, title: str, named: list[str]
) -> None:
    rows = [(f"one two {i}", cells[i % 2]) for i in range(40)]
    path = table(tmp_path / "a.csv", ["text", "label"], rows)
    (axes, *_) = draw(read(path, kind, task=task)).axes
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == title
    assert set(named) <= {text.get_text() for text in legend.get_texts()}
    assert "texts" not in {text.get_text() for text in legend.get_texts()}
