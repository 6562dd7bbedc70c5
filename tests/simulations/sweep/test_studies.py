"""The studies that come with the project: every point of them is sound."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hushtune.simulations.sweep.foresight import privacy_of
from hushtune.simulations.sweep.points import points_of
from hushtune.simulations.sweep.study_file import read_study

from ...conftest import Command

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "simulations" / "studies").glob("*.toml"))
POINTS = {
    "forgetting-and-worst-site": 30,
    "number-of-sites": 60,
    "rules-by-epsilon": 75,
    "rules-by-epsilon-newsgroups": 90,
    "trust-models": 35,
    "trust-models-clients": 35,
    "where-lora-pays": 65,
    "where-lora-pays-images": 100,
    "where-lora-pays-images-again": 50,
    "where-lora-pays-pairs": 110,
    "where-lora-pays-topics": 30,
}
SEEDS = re.compile(r"^seed = \[(\d+)((?:, \d+)+)\]$", re.MULTILINE)


def test_all_studies_are_known() -> None:
    assert {path.stem for path in STUDIES} == POINTS.keys()
    for path in STUDIES:
        assert len(read_study(path).asked) == POINTS[path.stem]


def test_the_documentation_counts_them_right() -> None:
    text = (ROOT / "docs" / "laboratory.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([\w-]+)` \| (\d+) \|", text, re.MULTILINE)
    assert {name: int(count) for name, count in told} == POINTS


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_point_is_sound(path: Path, tmp_path: Path) -> None:
    """All that --dry-run checks, of one seed; what it times is left to the night."""
    text = path.read_text(encoding="utf-8")
    ((first, others),) = (found.groups() for found in SEEDS.finditer(text))
    (tmp_path / path.name).write_text(SEEDS.sub(f"seed = [{first}]", text), encoding="utf-8")
    points, notes = points_of(read_study(tmp_path / path.name), precision="float32")
    assert notes == []
    assert len(points) * (1 + others.count(",")) == POINTS[path.stem]
    assert len({point.name for point in points}) == len(points)
    for point in points:
        told = privacy_of(point)
        assert (told["epsilon"] is None) == (point.config.privacy.trust == "off")


@pytest.mark.nightly
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_passes_its_dry_run(path: Path, hushtune: Command) -> None:
    answer = hushtune("sweep", path, "--dry-run", "--json")
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    assert len(told["points"]) == POINTS[path.stem]
    assert told["minutes"] > 0
