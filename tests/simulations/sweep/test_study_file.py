"""STUDY.toml: its points, and what is refused of it, by key and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from hushtune.common.errors import ConfigError, HushtuneError, MissingFileError, UnknownKeyError
from hushtune.simulations.sweep.points import points_of
from hushtune.simulations.sweep.study_file import read_study

from ...conftest import Settings

PRIVATE = {"privacy.trust": "site", "privacy.delta": 1e-3, "train.warmup_rounds": 1}


def study(settings: Settings, folder: Path, **parts: Any) -> Path:
    """A study over the tiny model and the three sites, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    settings.file(folder, train__rounds=1, train__warmup_rounds=1)
    tree = {"config": "run.toml", **{key: value for key, value in parts.items() if value}}
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(tree), encoding="utf-8")
    return path


def test_points_are_the_tables_times_the_grid(settings: Settings, tmp_path: Path) -> None:
    file = study(
        settings,
        tmp_path,
        set={"privacy": {"delta": 1e-3}},
        point=[
            {"name": "open", "privacy": {"trust": "off"}},
            {"privacy": {"trust": "site", "epsilon": 4.0}, "adapter.rank": 1},
        ],
        grid={"seed": [0, 1], "train.local_steps": [1, 3]},
    )
    points, notes = points_of(read_study(file), precision="float32")
    assert notes == []
    assert [point.name for point in points] == [
        "open seed=0 local_steps=1",
        "open seed=0 local_steps=3",
        "open seed=1 local_steps=1",
        "open seed=1 local_steps=3",
        "trust=site epsilon=4.0 rank=1 seed=0 local_steps=1",
        "trust=site epsilon=4.0 rank=1 seed=0 local_steps=3",
        "trust=site epsilon=4.0 rank=1 seed=1 local_steps=1",
        "trust=site epsilon=4.0 rank=1 seed=1 local_steps=3",
    ]
    # Every point tells every varied setting, whether it sets it or not; the seed stands apart.
    assert points[2].settings == {
        "privacy.trust": "off",
        "privacy.epsilon": 3.0,
        "adapter.rank": 2,
        "train.local_steps": 1,
    }
    assert [point.config.seed for point in points] == [0, 0, 1, 1] * 2
    assert points[5].config.train.local_steps == 3
    assert points[5].config.privacy.delta == 1e-3
    assert len({point.key for point in points}) == 8
    assert all(point.config.data.public_sizes for point in points)
    # Base and rows are shared by all, a workspace by those of one seed and rank.
    assert len({point.shares[0] for point in points}) == 1
    assert len({point.shares[1] for point in points}) == 4


def test_what_all_are_tested_against_is_one_of_the_points(
    settings: Settings, tmp_path: Path
) -> None:
    points: dict[str, Any] = {
        "point": [{"name": "few", "adapter.rank": 1}, {"name": "many", "adapter.rank": 2}],
        "grid": {"privacy.epsilon": [4.0], "seed": [0, 1]},
    }
    file = study(settings, tmp_path, against=["few epsilon=4.0"], **points)
    read = read_study(file)
    assert read.against == ("few epsilon=4.0",)
    assert len(points_of(read, precision="float32")[0]) == 4
    file = study(settings, tmp_path, against=["few"], **points)
    with pytest.raises(ConfigError) as caught:
        points_of(read_study(file), precision="float32")
    assert caught.value.given == "few"
    assert caught.value.expected == "one of: few epsilon=4.0; many epsilon=4.0"


def test_equal_points_run_once(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, point=[{"seed": 1}, {"seed": 2}, {"seed": 1}])
    points, notes = points_of(read_study(file), precision="float32")
    assert [point.config.seed for point in points] == [1, 2]
    assert notes == ["points 1 and 3 are one run, which runs once"]


CROSSED = {"privacy.epsilon": [2.0, 4.0], "aggregation.rule": ["ffa", "fedit"], "seed": [0, 1]}


@pytest.mark.parametrize(
    ("baselines", "compared"),
    [
        ({"aggregation.rule": "fedit"}, ["2.0 fedit", "4.0 fedit"]),
        # A number however it is written, a table as good as a dotted key.
        ({"privacy": {"epsilon": [2, 4]}}, ["2.0 fedit", "2.0 ffa", "4.0 fedit", "4.0 ffa"]),
        ({"aggregation.rule": ["ffa", "fedit"], "privacy.epsilon": 4.0}, ["4.0 fedit", "4.0 ffa"]),
        ({"aggregation.rule": ["fedit"], "privacy.epsilon": [2.0]}, ["2.0 fedit"]),
        # What all points share may be named too.
        ({"privacy.trust": "site", "aggregation.rule": "ffa"}, ["2.0 ffa", "4.0 ffa"]),
    ],
)
def test_chosen_points_are_compared_with_baselines(
    settings: Settings, tmp_path: Path, baselines: dict[str, Any], compared: list[str]
) -> None:
    file = study(settings, tmp_path, set=PRIVATE, grid=CROSSED, baselines=baselines)
    points, _ = points_of(read_study(file), precision="float32")
    found = {True: set[str](), False: set[str]()}
    for point in points:
        told = point.config.privacy.epsilon, point.config.aggregation.rule
        found[point.config.simulation.baselines].add(" ".join(map(str, told)))
    assert sorted(found[True]) == compared
    assert not found[True] & found[False]  # all seeds of a point, or none
    assert len(found[True] | found[False]) == 4


def test_without_the_table_settings_say_who_is_compared(settings: Settings, tmp_path: Path) -> None:
    both = {"simulation.baselines": [True, False]}
    points, _ = points_of(read_study(study(settings, tmp_path, grid=both)), precision="float32")
    assert [point.config.simulation.baselines for point in points] == [True, False]


@pytest.mark.parametrize(
    ("baselines", "told"),
    [
        ({"privacy.epsilon": [2.0, 3.0]}, ["privacy.epsilon = 3.0"]),
        ({"aggregation.rule": "fedsb"}, ['aggregation.rule = "fedsb"']),
        ({"privacy.epsilon": 2.0, "aggregation.rule": "ffa"}, ["together"]),
        ({"seed": []}, ["together"]),
    ],
)
def test_baselines_of_points_that_are_not_there(
    settings: Settings, tmp_path: Path, baselines: dict[str, Any], told: list[str]
) -> None:
    """They would be missed in the report, after all points have run."""
    tables = [
        {"privacy.epsilon": 2.0, "aggregation.rule": "fedit"},
        {"privacy.epsilon": 4.0, "aggregation.rule": "ffa"},
    ]
    found = read_study(study(settings, tmp_path, set=PRIVATE, point=tables, baselines=baselines))
    with pytest.raises(ConfigError) as caught:
        points_of(found, precision="float32")
    for word in ["[baselines]", "leave [baselines] out", *told]:
        assert word in str(caught.value)


BOTH = {"grid": {"seed": [0, 1]}, "baselines": {"seed": 0}}


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({**BOTH, "set": {"simulation.baselines": True}}, ["[baselines]", "leave", "both"]),
        ({"grid": {"simulation.baselines": [True, False]}, "baselines": {"seed": 0}}, ["both"]),
        ({"point": [{"simulation": {"baselines": True}}], "baselines": {"seed": 0}}, ["both"]),
        ({**BOTH, "baselines": {"adapter.rnk": 3}}, ["adapter.rnk", "[baselines]", "adapter.rank"]),
        ({"grid": {"seed": [0, 1]}, "baseline": {"seed": 0}}, ["baseline", "perhaps baselines"]),
        ({"grid": {"privacy.epsilom": [1.0]}}, ["privacy.epsilom", "[grid]", "privacy.epsilon"]),
        ({"grid": {"privacy": {"epsilon": 1.0}}}, ["privacy.epsilon", "a list"]),
        ({"grid": {"seed": []}}, ["seed", "[]", "a list of one value or more"]),
        ({"grid": {"seed": 3}}, ["seed", "a list, such as seed = [3]"]),
        ({"set": {"seed": 1}, "grid": {"seed": [1]}}, ["seed", "[set]", "[grid]"]),
        ({"point": [{"seed": 1}], "grid": {"seed": [1]}}, ["seed", "[[point]]", "[grid]"]),
        ({"grids": {"seed": [1]}}, ["grids", "perhaps grid"]),
        ({"set": {"seed": 1}}, ["no [grid] and no [[point]]", "hushtune simulate"]),
        ({"preset": "demo", "grid": {"seed": [1]}}, ["preset", "both"]),
        ({"point": [{"name": 3, "seed": 1}]}, ["[[point]] 1", "text"]),
        ({"point": [{"name": "a\x1b[31m", "seed": 1}]}, ["[[point]] 1", "\\x1b", "control"]),
        ({"point": {"seed": 1}}, ["point", "[[point]], with two brackets"]),
        (
            {"grid": {"privacy": {"epsilon": {"x": [1]}}}},
            ["privacy.epsilon", "a list of one value"],
        ),
        ({**BOTH, "baselines": {"simulation.baselines": False}}, ["leave", "seed = 0"]),
        ({"grid": {"seed": [1]}, "zzz": 3}, ["zzz", "preset, config, set, grid, point, against"]),
        ({"grid": {"seed": [*range(200)], "adapter.rank": [*range(1, 100)]}}, ["19800", "10000"]),
    ],
)
def test_what_is_no_study(
    settings: Settings, tmp_path: Path, parts: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(study(settings, tmp_path, **parts))
    for word in told:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"privacy.epsilon": [1.0, -1.0]}, ["privacy.epsilon", "point 2"]),
        # What is found with the data alone: no guarantee at this delta for sites this small.
        ({"privacy.delta": [1e-3, 0.5]}, ["delta", "point 2: privacy.delta = 0.5"]),
        ({"data.max_rows_per_site": [60, 2]}, ["point 2"]),
    ],
)
def test_a_bad_point_is_named(
    settings: Settings, tmp_path: Path, grid: dict[str, Any], told: list[str]
) -> None:
    fixed = {"privacy": {"trust": "site"}}
    found = read_study(study(settings, tmp_path, set=fixed, grid=grid))
    with pytest.raises(HushtuneError) as caught:
        points_of(found, precision="float32")
    for word in told:
        assert word in str(caught.value)


def test_a_study_that_was_run_says_what_it_began_with(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, grid={"seed": [0, 1]})
    (tmp_path / "run.toml").rename(tmp_path / "base.toml")
    with pytest.raises(MissingFileError) as caught:
        read_study(file)
    assert caught.value.remedy is not None
    assert 'write config = "base.toml"' in caught.value.remedy


def test_unknown_files_and_keys_are_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such study"):
        read_study(tmp_path / "none.toml")
    file = study(settings, tmp_path, point=[{"adaptr": {"rank": 1}}])
    with pytest.raises(UnknownKeyError, match=r"\[\[point\]\] 1"):
        read_study(file)
