"""Whole runs of language models: under each trust and rule, saved, told, and asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hushtune.common.lora_rules import RULES
from hushtune.common.tasks import partition
from hushtune.simulations import plots, run

from ..client.words import make_words, write_conversations
from ..conftest import Settings

SIZES = {"east": 40, "north": 50, "south": 45}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn elsewhere."""
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("asked") / "all.csv", SIZES)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_words(tmp_path_factory.mktemp("words") / "llama", "llama")


def settings(model: Path, rows: Path, **changes: Any) -> Any:
    usual = {
        "task__kind": "causal-lm",
        "train__warmup_rounds": None,
        "train__rounds": 2,
        "train__learning_rate": 0.02,
        "adapter__layers": 2,
    }
    return Settings(model, rows).config(**{**usual, **changes})


@pytest.mark.parametrize("rule", RULES)
def test_rule(llama: Path, rows: Path, tmp_path: Path, rule: str) -> None:
    summary = run(settings(llama, rows, aggregation__rule=rule), tmp_path / "run")
    print(rule, summary["value"], summary["table"]["untrained"]["pooled"])


@pytest.mark.parametrize("trust", ["off", "site", "distributed", "server"])
def test_trust(llama: Path, rows: Path, tmp_path: Path, trust: str) -> None:
    made = settings(llama, rows, privacy__trust=trust, simulation__baselines=True)
    summary = run(made, tmp_path / "run")
    print(trust, summary["value"], summary["table"])
