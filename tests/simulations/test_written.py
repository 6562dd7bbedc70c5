"""How near written answers are to the rows' own, counted by hand."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from hushtune.simulations.show import show_summary
from hushtune.simulations.written import word_f1, written, written_line

from .test_show import summary


@pytest.mark.parametrize(
    ("reference", "answer", "f1"),
    [
        ("it is red", "It is RED!", 1.0),
        ("it is red", "red it is", 1.0),  # words, in whatever order
        ("it is red", "blue", 0.0),
        ("a a b", "a b b", 2 * 2 / 6),  # each counted as often as it is there
        ("it is red", "it is", 2 * 2 / 5),
        ("it is red", "", 0.0),
        ("...", "", 1.0),
    ],
)
def test_f1_of_words(reference: str, answer: str, f1: float) -> None:
    assert word_f1(reference, answer) == pytest.approx(f1)
    assert word_f1(answer, reference) == pytest.approx(f1)


SAMPLES = [
    {"site": "a", "prompt": "?", "reference": "it is red", "untrained": "no", "trained": "It is"},
    {"site": "b", "prompt": "?", "reference": "Yes.", "untrained": "yes no", "trained": "yes"},
]


def test_before_and_after_over_the_samples() -> None:
    found = written(SAMPLES)
    assert found == {
        "rows": 2,
        "untrained": {"word_f1": pytest.approx((0 + 2 / 3) / 2), "exact_match": 0.0},
        "trained": {"word_f1": pytest.approx((4 / 5 + 1) / 2), "exact_match": 0.5},
    }
    assert written_line(found) == (
        "On these 2 rows: F1 of the words written 0.333 untrained, 0.900 trained; word for word 0% "
        "untrained, 50% trained."
    )
    assert written([]) is None


def test_it_is_shown_below_the_answers() -> None:
    file = StringIO()
    told = summary(["a", "b"], samples=SAMPLES, written=written(SAMPLES))
    show_summary(Console(file=file, width=100), told)
    assert "0.333 untrained, 0.900 trained" in file.getvalue()
