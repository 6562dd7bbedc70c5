"""The three trust models side by side, at equal epsilon."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hushtune.simulations.planner import plan_run
from hushtune.simulations.planner_outline import Outline
from hushtune.simulations.planner_trust import compare_trust


def run_ratio(sizes: dict[str, int], **outline: Any) -> dict[str, float]:
    asked = Outline(**outline)
    models = compare_trust(sizes, asked, plan_run(sizes, asked)["federation"])
    return {name: model["signal_to_noise"]["run"] for name, model in models.items()}


@pytest.mark.parametrize("number", [4, 9])
def test_shares_of_one_noise_are_as_much_better_as_there_are_sites(number: int) -> None:
    """Of n equal sites noise at each is sqrt(n) times that of one place; with shares it is
    sqrt(n / (n - 1)) times, as one site's share may be known to the server."""
    found = run_ratio({f"s{place}": 2000 for place in range(number)}, epsilon=1.0)
    assert found["distributed"] / found["site"] == pytest.approx(math.sqrt(number - 1), rel=1e-3)


def test_with_few_clients_noise_at_the_server_leaves_nothing_and_with_many_it_does() -> None:
    few = run_ratio({f"s{place}": 2000 for place in range(4)})
    assert few["server"] < 0.1
    assert few["site"] > 10
    many = run_ratio({f"s{place}": 2000 for place in range(1000)}, delta=1e-7)
    assert many["server"] > 200 * few["server"]


def test_two_sites_gain_nothing_where_one_may_side_with_the_server() -> None:
    found = run_ratio({"a": 2000, "b": 2000})
    assert found["distributed"] == pytest.approx(found["site"], rel=1e-3)


def test_what_cannot_be_had_says_why() -> None:
    asked = Outline(delta=0.01)
    sizes = {"a": 90, "b": 60}
    models = compare_trust(sizes, asked, plan_run(sizes, asked)["federation"])
    assert "delta must be below" in models["distributed"]["refused"]
    assert models["site"]["refused"] is None
