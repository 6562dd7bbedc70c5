"""What the terminal shows of four sites and of fifty, and of small epsilons."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from hushtune.common.names import METHODS
from hushtune.simulations.show import show_estimate, show_partition, show_summary
from hushtune.simulations.show_progress import ProgressView

FEW = ["amazon", "movie", "nyt", "tweets"]
MANY = [f"hospital-{number:02}" for number in range(50)]


def console(width: int = 110) -> Console:
    return Console(width=width, file=StringIO(), color_system=None)


def said(at: Console) -> str:
    assert isinstance(at.file, StringIO)
    return at.file.getvalue()


def summary(names: Sequence[str], *, epsilon: float = 2.0, **changes: Any) -> dict[str, Any]:
    """Later sites are worse and spent more."""
    value = {name: 0.9 - place / 100 for place, name in enumerate(names)}
    spent = {name: epsilon * (1 + place / 100) for place, name in enumerate(names)}
    baselines = {name: {"pooled": 0.5, **value} for name in METHODS if name != "alone_private"}
    own = {f"alone_private/{name}": {name: 0.432, "pooled": 0.5} for name in names}
    return {
        "task": "text-classification",
        "samples": [],
        "written": None,
        "metric": "accuracy",
        "higher_is_better": True,
        "trust": "site",
        "group": None,
        "unit": "example",
        "sites": {
            name: {"value": value[name], "epsilon": spent[name], "delta": 1e-5, "public_size": 90}
            for name in names
        },
        "table": {**baselines, **own},
        "baselines": {"alone_private": 0.5},
        "worst_site": {"site": names[-1], "value": value[names[-1]]},
        "spread": value[names[0]] - value[names[-1]],
        "aggregation_bias": None,
        "largest_bias": None,
        "rejected": {},
        "attack": None,
        "data_notes": [],
        "out": "runs/x",
        "seconds": {"total": 1.0},
        **changes,
    }


@pytest.mark.parametrize("width", [80, 110])
def test_of_few_sites_every_one_is_shown(width: int) -> None:
    at = console(width)
    show_summary(at, summary(FEW))
    text = said(at)
    assert all(text.count(name) >= 2 for name in FEW)
    assert "0.432" in text
    assert "2.000" in text
    assert "more sites" not in text
    mean = "each site alone, private: under all, the mean of the sites' own models on all test rows"
    assert mean in " ".join(text.split())
    without = {name: row for name, row in summary(FEW)["table"].items() if "alone" not in name}
    at = console(width)
    show_summary(at, summary(FEW, table=without))
    assert "under all" not in said(at)


@pytest.mark.parametrize("width", [80, 110])
def test_of_many_sites_the_worst_are_shown_and_the_others_counted(width: int) -> None:
    at = console(width)
    rejected = {name: [{"round": 1, "reason": "late"}] for name in MANY}
    show_summary(at, summary(MANY, rejected=rejected))
    text = said(at)
    assert max(map(len, text.splitlines())) <= width
    accuracy, privacy = text.split("Privacy at each site")
    for table in (accuracy, privacy):
        assert "46 more sites" in " ".join(table.split())
    assert "0.410" in accuracy  # of the last, the worst
    assert "0.900" not in accuracy
    assert "hospital-49" in privacy
    assert "2.980" in privacy
    assert text.count("did not count") == 4


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (FEW, "epsilon spent: amazon 0.0032 movie 0.0032 nyt 0.0032 tweets 0.0033"),
        (MANY, "epsilon spent: from 0.0032 (hospital-00) to 0.0047 (hospital-49)"),
    ],
)
def test_a_round_s_line_stays_short_and_a_small_epsilon_is_not_zero(
    names: list[str], told: str
) -> None:
    at = console(200)
    spent = {name: 0.00312 * (1 + place / 100) for place, name in enumerate(names)}
    with ProgressView(at) as view:
        view.started(1, 0)
        view.round_done({"round": 1, "epsilon": spent, "rejected": dict.fromkeys(names, "late")})
    (line,) = [line for line in said(at).splitlines() if line.startswith("round   1")]
    assert told in line
    assert len(line) < 200
    assert ("and 46 more" in line) == (names is MANY)


def round_line(row: dict[str, Any], **how: Any) -> str:
    at = console(200)
    with ProgressView(at, **how) as view:
        view.started(1, 0)
        view.round_done({"round": 1, "epsilon": dict.fromkeys(FEW, 1.4321), "rejected": {}, **row})
    return next(line for line in said(at).splitlines() if line.startswith("round   1"))


def test_who_spent_is_said_as_it_is() -> None:
    """Where the server adds the noise no site spends anything; turns are charged at the start."""
    own = {"noise": dict.fromkeys(FEW, "ChaCha20"), "accepted": FEW}
    assert "epsilon 1.44 spent at every site" in round_line(own)
    server = {"noise": {"the server": "ChaCha20"}, "accepted": FEW}
    assert round_line(server).rstrip().endswith("epsilon 1.44 spent by the server")
    assert "charged at the start for the whole run" in round_line(server, turns=True)


def test_a_round_that_nobody_counts_in_says_why() -> None:
    lost = {"noise": {}, "accepted": [], "rejected": dict.fromkeys(FEW, "the server stopped")}
    assert "nobody counted: the server stopped" in round_line(lost)


@pytest.mark.parametrize("epsilon", [2.0, None])
def test_on_whom_the_promise_rests_is_said_beside_it_and_not_without_one(
    epsilon: float | None,
) -> None:
    told = "This holds if the server keeps to the protocol and no site tells it what it knows"
    figures = summary(FEW, trust="distributed", rests_on=told)
    for row in figures["sites"].values():
        row["epsilon"] = epsilon
    at = console()
    show_summary(at, figures)
    assert (told in said(at)) == (epsilon is not None)


def test_small_epsilons_are_not_shown_as_zero() -> None:
    at = console()
    show_summary(at, summary(FEW, epsilon=1.2001e-4))
    assert "0.00013" in said(at)
    assert " 0.000 " not in said(at)


def test_a_dry_run_s_bytes_add_up_and_its_dropped_rows_are_told() -> None:
    row = {"public_size": 9, "batch": 3.0, "sampling_probability": 0.3, "steps": 2}
    figures: dict[str, Any] = {
        "trains_a_head": True,
        "trust": "site",
        "group": None,
        "unit": "example",
        "sites": {"a": {**row, "noise_multiplier": 1.0, "epsilon": 1.2001e-3, "delta": 1e-5}},
        "who_has_what": [
            {"site": "a", "train": 9, "validation": 1, "test": 2, "labels": {"good": 12}}
        ],
        "attack": None,
        "data_notes": ["3 rows left out: no text (such as a.csv:7)"],
        **{"rounds": 5, "warmup_rounds": 3, "bytes_per_warmup_round": 1000},
        **{"bytes_per_round": 20000, "bytes_total": 43000, "memory_megabytes": 1, "minutes": 0.1},
    }
    at = console()
    show_estimate(at, figures)
    text = " ".join(said(at).split())
    assert "3 rows left out: no text (such as a.csv:7)" in text
    assert "0.0013" in text
    assert "bytes per warmup round 1,000 in each of 3:" in text
    assert "bytes per round 20,000 in each of 2:" in text
    assert "bytes total 43,000" in text


@pytest.mark.parametrize("many", [20, 21, 300])
def test_of_many_sites_a_dry_run_shows_the_smallest_and_says_so(many: int) -> None:
    def row(place: int) -> dict[str, Any]:
        size = 1000 + 7 * (place * 11 % many)
        return {"site": f"s{size}", "train": size, "validation": 1, "test": 2, "labels": {"a": 1}}

    at = console()
    show_partition(at, [row(place) for place in range(many)])
    text = said(at)
    shown = [size for size in range(1000, 1000 + 7 * many) if f"s{size} " in text]
    assert shown == [1000 + 7 * rank for rank in range(20 if many == 20 else 10)]
    told = f"The 10 smallest of {many} sites; --json tells of all."
    assert (told in " ".join(text.split())) == (many > 20)


def test_labels_called_as_columns_stand_beside_them() -> None:
    at = console()
    labels = {"site": 61, "train": 62, "rows": 63}
    show_partition(at, [{"site": "a", "train": 9, "validation": 1, "test": 2, "labels": labels}])
    text = " ".join(said(at).replace("┃", "|").replace("│", "|").split())
    assert "| site | train | validation | test | label site | label train | rows |" in text
    assert "| a | 9 | 1 | 2 | 61 | 62 | 63 |" in text


def test_groups_are_counted_where_groups_are_protected() -> None:
    at = console(110)
    show_summary(at, summary(FEW, group="patient"))
    assert "public groups by patient" in said(at)
    assert "training rows" not in said(at)


def test_the_worst_site_the_spread_and_what_a_rule_loses_are_told() -> None:
    at = console()
    show_summary(at, summary(["east", "north"]))
    text = said(at)
    assert "worst site: north, 0.890; best and worst are 0.010 apart" in text
    assert "lost" not in text


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            "fedit",
            "averaging A and B apart lost 31% of the sites' mean adapter in the last round, at "
            "most 42% (layer.1.query): other rules, such as ffa, fedex and fedsb, lose none",
        ),
        (
            "hetlora",
            "averaging A and B apart lost 31% of the sites' mean adapter in the last round, at "
            "most 42% (layer.1.query): other rules, such as ffa, fedex and fedsb, lose none",
        ),
        (
            "flexlora",
            "cutting to rank 4 lost 31% of the sites' mean adapter in the last round, at most 42% "
            "(layer.1.query): raise adapter.rank, or use flora or fedex",
        ),
    ],
)
def test_what_a_rule_loses_and_by_which_step(rule: str, told: str) -> None:
    at = console()
    largest = {"module": "layer.1.query", "value": 0.42, "rule": rule, "rank": 4}
    show_summary(at, summary(["east", "north"], aggregation_bias=0.312, largest_bias=largest))
    assert told in " ".join(said(at).split())
    at = console()
    largest["value"] = 0.09
    show_summary(at, summary(["east", "north"], aggregation_bias=0.05, largest_bias=largest))
    assert "lost" not in said(at)
