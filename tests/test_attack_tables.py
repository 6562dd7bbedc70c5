"""benchmarks/attacks.py: what is run, and the tables that are made of it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config import AggregationConfig, SimulationConfig

from .programs import benchmark

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def attacks() -> Any:
    return benchmark("attacks")


def options(**changes: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "estimates": ["mean", "krum"],
        "attacks": ["scale", "nan"],
        "shares": [0.2, 0.4],
        "scale": 10.0,
        "deal": ["iid"],
        "phases": ["head"],
        "epsilons": ["off", "8"],
        "seeds": 2,
        "set": [],
        "part": "test",
    }
    return argparse.Namespace(**{**given, **changes})


def test_an_honest_run_is_run_once_for_all_shares(attacks: Any) -> None:
    found = list(attacks.keys(options()))
    assert len(found) == 2 * 2 * 2 * (1 + 2 * 2)
    honest = [key for key in found if key["attack"] == "none"]
    assert {(key["share"], key["scale"]) for key in honest} == {(None, None)}
    assert {key["scale"] for key in found if key["attack"] == "nan"} == {None}
    assert {key["epsilon"] for key in found} == {None, 8.0}


def test_the_benchmark_knows_every_attack_and_estimate(attacks: Any) -> None:
    def allowed(model: Any, key: str) -> set[str]:
        return set(model.model_fields[key].annotation.__args__)

    assert {"none", *attacks.ATTACKS} == allowed(SimulationConfig, "attack")
    assert set(attacks.ESTIMATES) == allowed(AggregationConfig, "estimate")


def test_a_table_for_each_share_beside_the_honest_accuracy(attacks: Any) -> None:
    rows = [
        {
            **key,
            # Of the second seed 0.02 more; an attack costs as much as its share.
            "accuracy": 0.8 + 0.02 * key["seed"] - (key["share"] or 0),
            "attackers": round(10 * (key["share"] or 0)),
            "source_commit": "abc",
        }
        for key in attacks.keys(options(epsilons=["off"]))
    ]
    refused = {"accuracy": None, "reason": "HT1 no", "attackers": 0}
    rows = [{**r, **refused} if (r["estimate"], r["share"]) == ("krum", 0.4) else r for r in rows]
    first, second, note = attacks.as_markdown(rows).split("\n\n")
    head = "of 10 attack; rows dealt at random; head only; no privacy | no attack | `scale` | `nan`"
    assert first.splitlines()[0] == f"| 2 {head} |"
    assert second.splitlines()[0] == f"| 4 {head} |"
    assert "| `mean` | 0.810 (0.014) | 0.610 (0.014) | 0.610 (0.014) |" in first
    assert "| `mean` | 0.810 (0.014) | 0.410 (0.014) | 0.410 (0.014) |" in second
    assert "| `krum` | 0.810 (0.014) | - | - |" in second
    assert note == (
        "Accuracy on all test rows, 2 seeds; `simulation.attack_scale` 10. "
        "Source commit of these runs: abc."
    )
