"""benchmarks/tasks.py, and the table that it made for the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hushtune.common.kinds import higher_is_better
from hushtune.common.presets import PRESETS

from .programs import benchmark

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tasks() -> Any:
    return benchmark("tasks")


def summary(value: float, *, metric: str = "rmse", **baselines: float) -> dict[str, Any]:
    return {
        "metric": metric,
        "higher_is_better": higher_is_better(metric),
        "value": value,
        "baselines": baselines,
        "sites": {"a": {"epsilon": 2.9911}, "b": {"epsilon": 2.0}},
        "source_commit": "c0ffee",
    }


def rows_of(table: str) -> list[list[str]]:
    """The cells of each row of a Markdown table, header and rule left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_preset_has_a_row_with_privacy_and_one_without(tasks: Any) -> None:
    ours = {
        ("private", "inprocess"): summary(
            1.25, majority=1.5, untrained=2.0, alone_private=1.75, head_private=1.3, pooled=1.1
        ),
        ("off", "inprocess"): summary(1.125),
        ("private", "flower"): summary(1.26),
        ("off", "flower"): summary(1.125),
    }
    table = tasks.as_markdown({"text-regression": ours})
    assert rows_of(table) == [
        [
            *("`text-regression`", "rmse, lower is better", "epsilon 3.00", "1.250", "1.260"),
            *("1.500", "2.000", "1.750", "1.300", "-", "-", "", "-", ""),
        ],
        [
            *("", "", "none", "1.125", "1.125", "1.500", "2.000", *[""] * 4, "1.100", "", "-"),
        ],
    ]
    assert table.endswith("Source commit of these runs: c0ffee.")


def test_the_runs_are_those_of_the_commands_in_the_readme(tasks: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    off = ["privacy.trust=off", "simulation.engine=inprocess", "simulation.baselines=false"]
    assert tasks.settings("private", "inprocess") == ["simulation.engine=inprocess"]
    assert tasks.settings("off", "inprocess") == off
    assert tasks.settings("private", "flower") == [
        *("simulation.engine=flower", "simulation.baselines=false")
    ]
    assert "--set privacy.trust=off" in readme
    assert "--engine flower" in readme
    assert {"demo", "clients", "tiny", "bench-w", *tasks.TASKS} == {*PRESETS}


def test_the_readme_s_table_has_every_kind_of_supervision(tasks: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = rows_of(readme.split(tasks.BEGIN)[1].split(tasks.END)[0])
    assert [row[0].strip("`") for row in rows[::2]] == list(tasks.TASKS)
    for private, off in zip(rows[::2], rows[1::2], strict=True):
        assert private[2].startswith("epsilon ")
        assert float(private[2].split()[1]) <= 3.0
        assert off[2] == "none"
        for cells in (private, off):  # what looks at no input
            assert float(cells[5]) > 0
        ours = [cell for cells in (private, off) for cell in cells[3:5] if cell != "-"]
        assert len(ours) == 4
        assert all(float(cell) > 0 for cell in ours)
        # Without noise both ways through the code make one model, but for rounding.
        assert float(off[3]) == pytest.approx(float(off[4]), rel=0.02)
