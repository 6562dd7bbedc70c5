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


def test_what_false_and_lost_sites_cost_is_seen_beforehand() -> None:
    """Of the noise that is really in a sum the multiplier of the plan tells nothing."""
    sizes = {f"s{place}": 2000 for place in range(9)}
    asked = Outline(epsilon=1.0)
    federation = plan_run(sizes, asked)["federation"]

    def ratio(name: str, **how: int) -> float:
        return compare_trust(sizes, asked, federation, **how)[name]["signal_to_noise"]["run"]

    for name in ("distributed", "distributed, of clients"):
        assert ratio(name) / ratio(name, colluding=5) == pytest.approx(math.sqrt(8 / 4))
        least = ratio(name, colluding=1, min_survivors=6)
        assert ratio(name) / least == pytest.approx(math.sqrt(8 / 5))
    assert ratio("site", colluding=5) == ratio("site")


def test_secure_sums_of_clients_are_noise_at_a_server_in_shares() -> None:
    found = run_ratio({f"s{place}": 2000 for place in range(9)})
    assert found["server"] / found["distributed, of clients"] == pytest.approx(math.sqrt(9 / 8))


def test_a_site_without_rows_adds_no_noise() -> None:
    asked = Outline()
    sizes = {"a": 2000, "b": 2000, "c": 2000}
    federation = plan_run(sizes, asked)["federation"]
    with_none = compare_trust({**sizes, "none": 0}, asked, federation)
    assert with_none == compare_trust(sizes, asked, federation)


def test_one_site_is_told_that_sums_need_two() -> None:
    asked = Outline()
    models = compare_trust({"only": 900}, asked, plan_run({"only": 900}, asked)["federation"])
    assert models["distributed"]["refused"].startswith("a secure sum needs two sites or more")


def test_the_command_knows_both_and_refuses_options_of_the_other_kind(hushtune: Any) -> None:
    sites = ("plan", "--sites", "2000,2000,2000,2000,2000")
    said = hushtune(*sites, "--colluding-sites", "2", "--json")
    assert said.status == 0, said.err
    assert "2 sites that side with it" in " ".join(said.err.split())
    for extra in (("--client-turns", "3"), ("--client-sampling-probability", "0.5")):
        said = hushtune(*sites, *extra)
        assert said.status == 2
        assert f"leave {extra[0]} out" in said.err
    clients = ("plan", "--clients", "240", "--delta", "1e-4")
    for extra in (("--batch", "3"), ("--local-steps", "2"), ("--min-survivors", "200")):
        said = hushtune(*clients, *extra)
        assert said.status == 2
        assert f"leave {extra[0]} out" in said.err


@pytest.mark.parametrize(
    "wrong",
    [
        ("--sites", "900,900", "--epsilon", "nan"),
        ("--sites", "900,900", "--rounds", "10000000"),
        ("--sites", "900,900", "--clip-norm", "1e-300"),
        ("--clients", "240", "--client-sampling-probability", "2"),
        ("--clients", "240", "--client-turns", "50"),
        ("--clients", "240", "--client-turns", "5", "--client-sampling-probability", "0.5"),
    ],
)
def test_every_refusal_says_what_to_do(hushtune: Any, wrong: tuple[str, ...]) -> None:
    said = hushtune("plan", *wrong)
    assert said.status == 2
    assert "do:" in said.err
    assert "expected:" in said.err


def test_what_cannot_be_had_says_why() -> None:
    asked = Outline(delta=0.01)
    sizes = {"a": 90, "b": 60}
    models = compare_trust(sizes, asked, plan_run(sizes, asked)["federation"])
    assert "delta must be below" in models["distributed"]["refused"]
    assert "one of their n = 150 records" in models["distributed"]["refused"]
    assert models["site"]["refused"] is None
