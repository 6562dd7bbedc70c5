"""The scores of classes are scikit-learn's, which is not loaded for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from hushtune.common.tasks.scores import Detection, label_f1, macro_f1

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(pairs)
def test_macro_f1(rows: Sequence[tuple[int, int]]) -> None:
    held, told = np.array(rows).T
    assert macro_f1(held, told) == pytest.approx(f1_score(held, told, average="macro"), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 1), min_size=6, max_size=6), min_size=1, max_size=20))
def test_f1_of_labels(rows: Sequence[Sequence[int]]) -> None:
    held, told = np.array(rows)[:, :3], np.array(rows)[:, 3:]
    how: dict[str, Any] = {"zero_division": 0.0}
    expected = [f1_score(held, told, average=kind, **how) for kind in ("micro", "macro")]
    assert label_f1(held, told) == pytest.approx(expected, abs=1e-12)


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(-5, 5)), min_size=1, max_size=40),
    floor=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
)
def test_what_is_detected(rows: Sequence[tuple[bool, int]], floor: float) -> None:
    """Equal numbers among them."""
    positive = np.array([is_positive for is_positive, _ in [*rows, (True, 0)]])
    by = np.array([number / 4 for _, number in [*rows, (True, 0)]])
    found = Detection.of(positive, by)
    assert found.average_precision == pytest.approx(
        average_precision_score(positive, by), abs=1e-12
    )
    area = 0.5 if positive.all() else roc_auc_score(positive, by)
    assert found.roc_auc == pytest.approx(area, abs=1e-12)
    precision, recall, _ = precision_recall_curve(positive, by)
    expected = recall[precision >= floor].max()
    assert found.recall_at(floor) == pytest.approx(expected, abs=1e-12)


def test_what_is_no_number_tells_nothing() -> None:
    """In whatever order."""
    for positive in ([True, False, False], [False, False, True]):
        found = Detection.of(np.array(positive), np.full(3, np.nan))
        assert (found.roc_auc, found.average_precision) == (0.5, pytest.approx(1 / 3))
        alike = Detection.of(np.array(positive), np.full(3, np.inf))
        assert alike.roc_auc == 0.5
    mixed = Detection.of(np.array([True, False, False]), np.array([np.nan, -np.inf, 3.0]))
    assert mixed.roc_auc == 0.25  # below a number, and beside the least


def test_judging_loads_no_scikit_learn() -> None:
    code = """
import sys, torch
from hushtune.common.tasks.objectives import Classification
figures = torch.tensor([[0.1, 0.9, 1.0], [0.5, 0.2, 1.0], [0.3, 0.1, 0.0]])
print(Classification(torch.ones(2)).scores(figures))
sys.exit("sklearn" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
