"""Whole runs with updates in each encoding: fewer bytes, the same price, a model that learns."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.encoding import ENCODINGS
from hushtune.simulations import run

Told = dict[str, Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(out: Path) -> list[Told]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def runs(settings: Any, tmp_path: Path) -> dict[str, Path]:
    """A private run with each encoding; A and B are the longest there can be in this model."""
    for encoding in ENCODINGS:
        config = settings.config(
            aggregation__encoding=encoding,
            aggregation__rule="fedit",
            adapter__rank=32,
            adapter__layers=2,
            privacy__trust="site",
            train__rounds=2,
        )
        assert run(config, tmp_path / encoding)["rejected"] == {}
    return {encoding: tmp_path / encoding for encoding in ENCODINGS}


def test_fewer_bytes_go_up_at_the_same_price(runs: dict[str, Path]) -> None:
    told = {encoding: rows(out)[-1] for encoding, out in runs.items()}
    sizes = {encoding: row["bytes_up"] for encoding, row in told.items()}
    # The texts beside the numbers, and a scale a line, are about a tenth of these small adapters.
    assert 0.5 < sizes["bfloat16"] / sizes["float32"] < 0.55
    assert 0.25 < sizes["int8"] / sizes["float32"] < 0.36
    # The way down, and the price, are what they were.
    assert max(r["bytes_down"] for r in told.values()) < 1.001 * told["float32"]["bytes_down"]
    assert told["float32"]["epsilon"] == told["bfloat16"]["epsilon"] == told["int8"]["epsilon"]
    assert _charges(runs["float32"]) == _charges(runs["bfloat16"]) == _charges(runs["int8"])
    for encoding, out in runs.items():
        _check_statement(read(out / "privacy.json"), rows(out), encoding)


def _charges(out: Path) -> list[Told]:
    """What the statement says of each site's charges, and how many its ledger holds."""
    found: list[Told] = []
    for name, site in sorted(read(out / "privacy.json")["sites"].items()):
        with sqlite3.connect(out / "ledger" / f"{name}.sqlite") as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM charges").fetchone()
        ledger.close()
        found.append({k: site[k] for k in ("epsilon", "delta", "events", "steps")} | {"n": count})
    return found


def _check_statement(told: Told, rows: list[Told], encoding: str) -> None:
    """It tells the bytes that were sent, and what they were rounded to."""
    for row in rows:
        sent = [
            moved
            for site in told["sites"].values()
            for moved in site["released"]["updates"]
            if row["round"] in moved["rounds"]
        ]
        assert {moved["encoding"] for moved in sent} == {encoding}
        up = sum(moved["num_bytes"] for moved in sent)
        assert up < row["bytes_up"] < up + 1500 * len(told["sites"])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_federated_model_learns(settings: Any, tmp_path: Path, encoding: str) -> None:
    """Every word of a text tells its label, so that even a random model's features do."""
    drawn = random.Random(5)
    words = {
        "good": ("bright", "clear", "fine", "glad", "great", "kind", "lovely", "warm"),
        "bad": ("awful", "bleak", "cruel", "dull", "grim", "harsh", "nasty", "sour"),
    }
    texts = {" ".join(drawn.choices(words[label], k=4)): label for label in ("good", "bad") * 120}
    lines = [f"{('a', 'b')[i // 2 % 2]},{t},{label}" for i, (t, label) in enumerate(texts.items())]
    path = tmp_path / "easy.csv"
    path.write_text(
        "\n".join(["site,text,label", *drawn.sample(lines, len(lines))]) + "\n", encoding="utf-8"
    )
    config = settings.config(
        data__file=str(path),
        aggregation__encoding=encoding,
        train__rounds=8,
        train__warmup_rounds=6,
        train__local_steps=6,
        train__warmup_learning_rate=0.1,
    )
    assert run(config, tmp_path / "out")["value"] > 0.8


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_a_trusted_server_takes_rounded_updates_at_the_same_price(
    settings: Any, tmp_path: Path, encoding: str
) -> None:
    """It clips what it has decoded, so that rounding can lengthen nothing beyond the clip norm."""
    clients: dict[str, Any] = {
        "data__site": None,
        "data__partition": "iid",
        "data__sites": 10,
        "privacy__trust": "server",
        "privacy__unit": "client",
        "privacy__delta": 1e-2,
    }
    told: dict[str, Told] = {}
    for name in ("float32", encoding):
        config = settings.config(**clients, aggregation__encoding=name)
        assert run(config, tmp_path / name)["rejected"] == {}
        told[name] = read(tmp_path / name / "privacy.json")["server"]
    assert told[encoding]["epsilon"] == told["float32"]["epsilon"] <= 3.0
