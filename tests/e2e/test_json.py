"""What a run writes is JSON that any reader takes, whatever its figures are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hushtune.common.json_text import json_text
from hushtune.simulations import run, study


def strict(text: str) -> Any:
    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null_however_deep() -> None:
    told = json_text({"b": (math.inf, {"a": -math.inf}), "a": [math.nan, 1.5, "inf"]}, indent=1)
    assert strict(told) == {"a": [None, 1.5, "inf"], "b": [None, {"a": None}]}


def test_a_run_with_a_loss_that_is_no_number_still_writes_json(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = study.Judge._evaluate
    monkeypatch.setattr(study.Judge, "_evaluate", lambda *asked: {**real(*asked), "loss": math.nan})
    out = tmp_path / "out"
    run(settings.config(privacy__trust="site", train__rounds=1), out)
    (row,) = map(strict, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["loss"] is None
    assert 0 <= row["accuracy"] <= 1
    for name in ("summary.json", "privacy.json"):
        strict((out / name).read_text(encoding="utf-8"))
