"""Privacy for a patient or user: all of its records are drawn, clipped and counted as one."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.planning import site_plans
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run

from .families import (
    CASES,
    NUM_ROWS,
    TensorTask,
    make_task,
    moved,
    one_gradient,
    summed,
)

CODES = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3])  # four units of 4, 2, 1 and 2 rows
UNITS = Units.by_code(np.arange(NUM_ROWS), CODES)
CLIP = 0.05


def without(place: int) -> Units:
    return UNITS.take(np.array([p for p in range(len(UNITS)) if p != place]))


@pytest.mark.parametrize(("family", "head"), CASES)
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(family: str, head: str) -> None:
    """Whatever the number of its records: the sensitivity that the noise is made for."""
    task = make_task(family, head)
    state = moved(task.model)
    whole = summed(task, UNITS, state=state, clip_norm=CLIP)
    for place in range(len(UNITS)):
        less = summed(task, without(place), state=state, clip_norm=CLIP)
        assert float((whole - less).norm()) <= CLIP * (1 + 1e-6)
        assert float((whole - less).norm()) > 0.9 * CLIP  # gradients here are longer than C


@pytest.mark.parametrize(("family", "head"), [("bert", "mean"), ("gpt2", "own"), ("vit", "mean")])
def test_equals_one_unit_at_a_time(family: str, head: str) -> None:
    """The mean of a unit's own gradients, clipped as one, by plain autograd."""
    task = make_task(family, head)
    state = moved(task.model)
    for clip in (CLIP, 1e3):
        lora.install(task.model, state)
        trained = lora.set_trainable(task.model, state.keys)
        task.model.training_mode()
        expected = torch.zeros(state.num_values(), dtype=torch.float64)
        for place in range(len(UNITS)):
            rows = UNITS.rows[UNITS.starts[place] : UNITS.starts[place + 1]]
            mean = sum(one_gradient(task, int(row), trained) for row in rows) / len(rows)
            expected += mean * min(1.0, clip / float(mean.norm()))
        found = summed(task, UNITS, state=state, clip_norm=clip)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("microbatch", [1, 2, 3, 5, 100])
def test_a_unit_is_never_cut_by_a_microbatch(microbatch: int) -> None:
    """Clipping the parts of a cut unit would let it move the sum by several times C."""
    task = make_task("bert", "mean")
    state = moved(task.model)
    whole = summed(task, UNITS, state=state, clip_norm=CLIP)
    pieces = summed(task, UNITS, state=state, clip_norm=CLIP, microbatch=microbatch)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-7)


def test_units_are_drawn_whole_and_independently() -> None:
    sizes = np.zeros(4)
    draws = 2000
    random = rng(0, "group draws")
    for _ in range(draws):
        batch = dp.poisson_batch(UNITS, 0.3, random)
        for place, code in enumerate(range(4)):
            mine = np.flatnonzero(code == CODES)
            there = np.isin(mine, batch.rows)
            assert there.all() or not there.any()
            sizes[place] += there.all()
    assert np.abs(sizes / draws - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / draws)


def test_a_record_that_is_not_finite_takes_its_unit_with_it() -> None:
    task = make_task("vit", "mean")
    state = moved(task.model)
    good = summed(task, without(0), state=state, clip_norm=CLIP)
    pixels = task.inputs["pixel_values"].clone()
    pixels[int(UNITS.rows[1])] = float("nan")
    bad = TensorTask(task.model, {"pixel_values": pixels}, task.labels, task.class_weights)
    torch.testing.assert_close(summed(bad, UNITS, state=state, clip_norm=CLIP), good)


# ------------------------------------------------------------------------------- a whole run ----


def visits(path: Path, rows: Sequence[tuple[str, str, str]], *, each: int) -> Path:
    """The rows of a file, ``each`` in a row of one site being one patient's."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("site", "patient", "text", "label"))
        for number, (site, text, label) in enumerate(rows):
            writer.writerow((site, f"p{number // each}", text, label))
    return path


@pytest.fixture
def grouped(three_sites: Path, settings: Any, tmp_path: Path) -> Any:
    with three_sites.open(encoding="utf-8") as file:
        rows = [(row["site"], row["text"], row["label"]) for row in csv.DictReader(file)]
    path = visits(tmp_path / "visits.csv", rows, each=2)
    return settings.config(
        data__file=str(path),
        data__group="patient",
        privacy__unit="group",
        privacy__trust="site",
        privacy__records_per_group=2,
    )


def test_sizes_denominators_and_delta_count_groups(grouped: Any) -> None:
    config = resolve(grouped)
    assert all(size < 35 for size in config.data.public_sizes.values())  # of 60 to 80 rows
    for site, plan in site_plans(config).items():
        assert plan.denominator == pytest.approx(0.3 * config.data.public_sizes[site])
        assert plan.unit == "group"


def test_a_run_promises_and_charges_by_group(grouped: Any, tmp_path: Path) -> None:
    summary = run(grouped, tmp_path / "out")
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text(encoding="utf-8"))
    assert privacy["unit"] == "group"
    for site, row in privacy["sites"].items():
        assert row["max_records_per_unit"] == 2
        assert "group with at most 2 records" in row["sentence"]
        assert 0 < row["epsilon"] <= grouped.privacy.epsilon
        assert row["public_size"] < summary["sites"][site]["train_rows"]
