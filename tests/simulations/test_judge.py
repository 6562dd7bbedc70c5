"""The researcher's look at each round's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.common.adapter import AdapterState
from hushtune.common.planning import POOLED
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.units import Rows
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.simulations import run


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_the_last_round_s_test_rows_are_not_gone_through_again(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: float
) -> None:
    """Where rounds are judged on test rows the summary takes the last one's figures; where they are
    judged on validation rows, which are others, it has its own pass over the test rows."""
    config = settings.config(
        data__validation_fraction=validation,
        train__warmup_rounds=0,
        simulation__train_sample=0,
        simulation__forgetting=False,
    )
    judged: list[Rows] = []
    figures = Supervised.figures

    def counted(self: Supervised, state: AdapterState, rows: Rows, **how: Any) -> Any:
        judged.append(np.sort(rows))
        return figures(self, state, rows, **how)

    monkeypatch.setattr(Supervised, "figures", counted)
    summary = run(config, tmp_path / "run")
    of_test = np.sort(open_workspace(resolve(config)).rows(POOLED, "test"))
    passes = sum(np.array_equal(rows, of_test) for rows in judged)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    if validation:
        assert passes == 1  # the final model's
        assert last["evaluated_on"] == "validation"
        return
    assert passes == 3  # one in each round
    assert summary["metrics"]["loss"] == last["loss"]
    for site, row in last["sites"].items():
        assert summary["sites"][site]["metrics"] == row
