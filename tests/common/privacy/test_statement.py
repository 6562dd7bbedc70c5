"""The statement: every key of the contract, the right sentence, and no false promise."""

import json
import math
import re
from typing import Any

import pytest

from hushtune.common.errors import PlanError
from hushtune.common.privacy import accountant
from hushtune.common.privacy.figures import at_least, upwards
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import DpSgdEvent, Relation, Trust, Unit
from hushtune.common.privacy.statement import SiteMetrics, Transfer, statement
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown

from .statements import full_site, plan, private_content, site
from .test_statement_html import Parsed


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    sites = {
        "north": site(plan(), refusals=("round 12: budget",), num_resent=2),
        "south": site(plan(sampling_probability=0.2), rounds=6, first_round=2, last_round=7),
    }
    return statement(sites=sites)


def test_every_key_of_the_contract_is_there(content: dict[str, Any]) -> None:
    assert {"trust", "unit", "relation", "accountant", "sites"} <= set(content)
    assert content["trust"] == "site"
    assert content["unit"] == "example"
    assert content["relation"] == "add_or_remove_one"
    assert content["accountant"] == accountant.ACCOUNTANT
    keys = {
        "epsilon",
        "delta",
        "sampling_probability",
        "noise_multiplier",
        "steps",
        "clip_norm",
        "denominator",
    }
    for told in content["sites"].values():
        assert keys <= set(told)
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_a_figure_without_bound_is_said_in_words_and_never_as_infinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = accountant.epsilon

    def only_at_large_delta(events: Any, *, delta: float, relation: Relation) -> float:
        return math.inf if delta < 1e-6 else real(events, delta=delta, relation=relation)

    monkeypatch.setattr(accountant, "epsilon", only_at_large_delta)
    monkeypatch.setattr(accountant, "epsilon_group", lambda *_, **__: math.inf)
    made = site(plan(), limit_epsilon=4.0, limit_delta=1e-7)
    told = statement(sites={"north": made})
    json.dumps(told, allow_nan=False)
    north = told["sites"]["north"]
    assert told["guarantee"] is True
    assert north["lifetime"]["epsilon"] is None
    assert {at["delta"]: at["epsilon"] for at in north["curve"]}[1e-7] is None
    page = render_markdown(told)
    assert "| epsilon at delta 1e-07 | no bound |" in page
    assert "no bound of 4" in page
    assert "no bound" in render_html(told)


def test_without_any_bound_nothing_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant, "epsilon", lambda *_, **__: math.inf)
    told = statement(sites={"north": site(plan())})
    json.dumps(told, allow_nan=False)
    assert told["guarantee"] is False
    assert told["federation"]["epsilon"] is None
    assert "NO PRIVACY" in render_markdown(told)
    assert "NO PRIVACY" in render_html(told)


def test_what_was_spent_is_told_and_not_what_was_planned(content: dict[str, Any]) -> None:
    north, south = content["sites"]["north"], content["sites"]["south"]
    made = plan(sampling_probability=0.2)
    assert 2.97 < north["epsilon"] <= 3.0
    assert north["steps"] == north["planned"]["steps"] == 36
    assert south["steps"] == 18
    expected = accountant.epsilon([made.event(18)], delta=1e-5, relation=made.relation)
    assert south["epsilon"] == expected < 2.5
    assert south["planned"]["epsilon"] == 3.0


def test_epsilon_is_told_in_other_ways(content: dict[str, Any]) -> None:
    north = content["sites"]["north"]
    both = north["epsilon_by_relation"]
    assert both["add_or_remove_one"] == north["epsilon"] < both["replace_one"]
    assert north["epsilon"] < north["epsilon_rdp"]
    curve = [(at["delta"], at["epsilon"]) for at in north["curve"]]
    assert curve == sorted(curve, reverse=True, key=lambda at: at[0])
    assert [e for _, e in curve] == sorted(e for _, e in curve)
    assert (1e-5, north["epsilon"]) in curve
    groups = list(north["epsilon_by_records"].values())
    assert groups == sorted(groups)
    assert groups[0] == north["epsilon"]
    assert groups[1] > 1.5 * groups[0]


def test_the_lifetime_of_the_data_is_told() -> None:
    made = plan()
    told = statement(sites={"a": site(made, lifetime=[made.event(36)] * 2)})["sites"]["a"]
    assert told["epsilon_lifetime"] > told["epsilon"] + 1


@pytest.mark.parametrize(
    ("relation", "words"),
    [
        (Relation.ADD_OR_REMOVE_ONE, "adding or removing one training record at site north"),
        (Relation.REPLACE_ONE, "replacing one training record at site north"),
    ],
)
def test_the_sentence_is_filled_in(relation: Relation, words: str) -> None:
    made = plan(relation=relation)
    content = statement(sites={"north": site(made, rounds=5, first_round=2, last_round=6)})
    told = content["sites"]["north"]
    assert words in told["sentence"]
    assert "rounds 2 to 6" in told["sentence"]
    assert "1e-05)-DP" in told["sentence"]
    promised = float(told["sentence"].rsplit("is (", 1)[1].split(",")[0])
    assert told["epsilon"] <= promised <= told["epsilon"] + 1.01e-4
    assert told["epsilon"] == told["epsilon_by_relation"][relation]
    assert told["sentence"] in render_markdown(content)


def test_a_group_is_named_as_the_unit() -> None:
    told = statement(sites={"a": site(plan(unit=Unit.GROUP), max_records=3)})
    assert "one group with at most 3 records at site a" in told["sites"]["a"]["sentence"]


def test_the_page_has_each_site_s_numbers(content: dict[str, Any]) -> None:
    page = render_markdown(content)
    assert "NO PRIVACY" not in page
    for name, told in content["sites"].items():
        section = page.split(f"## Site {name}\n")[1].split("\n## ")[0]
        assert f"| noise multiplier | {at_least(told['noise_multiplier'])} |" in section
        assert f"| denominator | {told['denominator']:g} |" in section
        assert f"{told['steps']} of 36" in section
        assert "| public number of records | 4000 |" in section
        assert told["ledger_head"] in section
        assert "ChaCha20" in section
    assert page.count("Public numbers of records: declared.") == 1
    assert "round 12: budget" in page.split("## Site south")[0]
    assert "What is not covered" in page
    assert accountant.ACCOUNTANT in page


def test_off_says_loudly_that_there_is_no_privacy() -> None:
    content = statement(sites={"north": site(plan(trust=Trust.OFF))})
    told = content["sites"]["north"]
    assert content["trust"] == "off"
    assert content["guarantee"] is False
    assert told["epsilon"] is None
    assert told["noise_multiplier"] == 0.0
    assert told["clip_norm"] is None
    assert told["sentence"].startswith("NO PRIVACY")
    json.dumps(content, allow_nan=False)
    page = render_markdown(content)
    assert page.count("NO PRIVACY") == 2
    assert "-DP" not in page.replace("DP-SGD", "")
    assert "covered" not in page
    for reassuring in ("ChaCha20", "noise multiplier", "PLD", "entropy"):
        assert reassuring not in page + render_html(content) + json.dumps(content["sites"]).replace(
            '"noise_multiplier"', ""
        ), reassuring
    assert content["mechanism"] == "none"


def test_what_is_the_same_at_all_sites_is_said_once() -> None:
    made = plan()
    names = [f"site-{number}" for number in range(50)]
    content = statement(
        sites={name: site(made) for name in names}
        | {"other": site(made, rounds=6, last_round=6, public_size_source="a letter")}
    )
    both = render_markdown(content), Parsed(render_html(content)).text
    for page in both:
        assert page.count("For neighbouring datasets") == 2
        assert (
            f"at any one of the sites {', '.join(sorted(names))}, everything that this site" in page
        )
        assert content["sites"]["other"]["sentence"] in page
        assert "(a letter)" in page
    assert sorted(told for alike in content["sentences"] for told in alike["sites"]) == sorted(
        [*names, "other"]
    )


def _cells(page: str) -> list[list[str]]:
    """Of each line of a table, but for one without words."""
    lines = [line for line in page.splitlines() if line.startswith("| ") and line != "| | |"]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


@pytest.mark.parametrize("trust", [Trust.SITE, Trust.OFF])
def test_a_page_of_many_sites_tells_all_that_a_section_of_each_would(trust: Trust) -> None:
    """What is the same once, what is not in a row a site; and what a site refused."""
    made = plan(trust=trust)
    sites = {f"site-{place}": site(made, ledger_head=f"{place:064x}") for place in range(40)}
    sites["late"] = site(made, rounds=6, last_round=6, refusals=["round 7: HT401 | spent"])
    content = statement(sites=sites)
    page = render_markdown(content)
    few = [
        render_markdown(statement(sites={name: sites[name], "other": sites["site-0"]}))
        for name in ("site-7", "late")
    ]
    shared = page.split("## What is the same at all 41 sites\n")[1].split("\n## ")[0]
    differs = page.split("## What differs between sites\n")[1].split("\n## ")[0]
    told = dict(_cells(shared))
    head, *lines = _cells(differs)
    rows = {cells[0]: dict(zip(head, cells, strict=True)) for cells in lines}
    assert rows.keys() == sites.keys()
    for name, whole in zip(("site-7", "late"), few, strict=True):
        section = whole.split(f"## Site {name}\n")[1].split("\n## ")[0]
        alone = dict(_cells(section))
        assert len(alone) > 5
        together = {**told, **rows[name]}
        assert {label: together[label] for label in alone} == alone
        figures = together["figures of its rows"]
        assert f"Figures of its rows: {figures}." in section
    assert "- round 7: HT401 \\| spent" in page.split("## Site late\n")[1].split("\n## ")[0]
    assert page.count("## Site") == 1
    assert len(page.splitlines()) < 200


@pytest.mark.parametrize(
    ("unit", "one", "more"), [(Unit.EXAMPLE, "record", "records"), (Unit.GROUP, "group", "groups")]
)
def test_one_record_is_no_records(unit: Unit, one: str, more: str) -> None:
    page = render_markdown(statement(sites={"a": site(plan(unit=unit))}))
    assert f"| epsilon, 1 {one} added or removed |" in page
    assert f"| epsilon, 2 {more} together added or removed |" in page
    assert "1 records" not in page


def test_a_site_s_words_cannot_break_a_table() -> None:
    name = "a|b`c` [x](y) *z*"
    page = render_markdown(
        statement(sites={name: site(plan(), noise_source=f"dice | {name}", refusals=[name])})
    )
    assert "| noise | dice \\| a\\|b\\`c\\` \\[x\\](y) \\*z\\* |\n" in page
    for line in page.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line


def test_reproducible_noise_voids_the_promise() -> None:
    source = NoiseSource.insecure(3)
    bad = site(plan(), noise_secure=source.secure, noise_source=source.description)
    content = statement(sites={"north": site(plan()), "south": bad})
    assert content["guarantee"] is False
    assert content["sites"]["south"]["epsilon"] is None
    assert content["sites"]["north"]["epsilon"] is not None
    page = render_markdown(content)
    assert page.index("NO PRIVACY") < page.index("## Site north")
    assert "INSECURE" in page


def test_a_site_that_refused_everything_released_nothing() -> None:
    told = statement(sites={"a": site(plan(), rounds=0, first_round=0)})["sites"]["a"]
    assert told["epsilon"] == 0.0
    assert told["steps"] == 0
    assert told["sentence"].startswith("Nothing was released by site a,")


def test_mixed_or_missing_sites_are_refused() -> None:
    mixed = {"a": site(plan()), "b": site(plan(relation=Relation.REPLACE_ONE))}
    with pytest.raises(PlanError, match="one trust model"):
        statement(sites=mixed)
    with pytest.raises(PlanError, match="no sites"):
        statement(sites={})


def test_events_are_told_so_that_anyone_can_recompute_epsilon() -> None:
    north = private_content()["sites"]["north"]
    assert [event["count"] for event in north["events"]] == [12]
    assert [event["count"] for event in north["lifetime"]["events"]] == [13, 1]
    for told, delta, epsilon in (
        (north["events"], north["delta"], north["epsilon"]),
        (north["lifetime"]["events"], 2e-5, north["lifetime"]["epsilon"]),
    ):
        events = [
            DpSgdEvent.from_dict({k: v for k, v in event.items() if k != "count"})
            for event in told
            for _ in range(event["count"])
        ]
        relation = Relation.ADD_OR_REMOVE_ONE
        assert accountant.epsilon(events, delta=delta, relation=relation) == epsilon


def test_the_federation_s_figure_is_the_largest_of_any_site() -> None:
    content = private_content()
    epsilons = [site["epsilon"] for site in content["sites"].values()]
    assert content["federation"] == {"epsilon": max(epsilons), "delta": 1e-5}
    assert len(set(epsilons)) == 3
    bad = full_site(plan(), noise_secure=False)
    mixed = statement(sites={"north": full_site(plan()), "south": bad})
    assert mixed["federation"]["epsilon"] is None


def test_what_crosses_the_border_is_told() -> None:
    north = private_content()["sites"]["north"]
    warmup, adapter = north["released"]["updates"]
    assert warmup["num_values"] == 770
    assert adapter["rounds"] == [9, 10, 11, 12]
    assert adapter["tensors"]["encoder.layer.5.attention.output.dense.lora_B"] == 1536
    assert north["released"]["metrics"].startswith("none")
    assert any("charge" in line for line in north["released"]["declared"])
    off = statement(sites={"a": full_site(plan(trust=Trust.OFF))})["sites"]["a"]
    assert not any("charge" in line for line in off["released"]["declared"])


def test_a_site_s_words_cannot_forge_the_page() -> None:
    lie = "all\n\n## Site south\n\nNothing was released. <b>Trust me</b>"
    told = SiteMetrics(release="public", num_reports=1)
    page = render_markdown(statement(sites={lie: site(plan(), refusals=[lie], metrics=told)}))
    assert "\n## Site south" not in page
    assert "<b>" not in page
    assert page.count("Trust me") == 5


def test_the_sentence_does_not_promise_what_a_policy_declares_public() -> None:
    for release, excepted in (("none", False), ("noised", False), ("public", True)):
        told = SiteMetrics(release=release, noise_multiplier=5.0, num_reports=3)
        content = statement(sites={"north": site(plan(), metrics=told)})
        said = content["sites"]["north"]["sentence"]
        assert ("except its accuracy and loss on held-out rows" in said) is excepted
        lines = " ".join(content["not_covered"])
        assert ("of north: these figures left the site as they are" in lines) is excepted
        covered = " ".join(content["covered"])
        assert ("that a site told with noise" in covered) is (release == "noised")


@pytest.mark.parametrize(("share", "useless"), [(0.4, False), (2.84, True)])
@pytest.mark.parametrize("unit", Unit)
def test_both_pages_tell_of_figures_that_left_a_site(
    unit: Unit, share: float, useless: bool
) -> None:
    figures = SiteMetrics(
        release="noised", noise_multiplier=5.0, num_reports=3, rounds=(2, 3, 7), noise_share=share
    )
    asked = Transfer(rounds=(2, 3, 7), tensors={"w": 1}, num_bytes=9, purpose="evaluation")
    made = site(plan(unit=unit), metrics=figures, received=[asked])
    content = statement(sites={"north": made})
    text = Parsed(render_html(content)).text
    one = {Unit.EXAMPLE: "record", Unit.GROUP: "group", Unit.CLIENT: "client"}[unit]
    for page in (text, render_markdown(content)):
        assert "3 times its accuracy and loss on held-out rows, in rounds 2 to 3, 7, with" in page
        assert f"noise of 5 times what one {one} can change" in page
        assert ("2.9 times the range" in page) is useless
        assert "the accuracy and the loss of the model on held-out rows, in an answer" in page
        assert "in an order for accuracy and loss, the adapter" in page
        assert "learning rate, optimiser" in page
    assert "Left: accuracy and loss on held-out rows 2 to 3, 7 0 2 " in text
    assert "Entered: the whole adapter, to tell figures of it 2 to 3, 7 1 1 9" in text


def test_where_no_figures_left_no_page_speaks_of_any() -> None:
    content = statement(sites={"north": full_site(plan())})
    for page in (Parsed(render_html(content)).text, render_markdown(content)):
        assert "none: a site sends no loss, no accuracy" in page
        assert "in an answer of their own" not in page
        assert "in an order for accuracy" not in page


def test_groups_are_called_groups_wherever_they_are_what_is_counted() -> None:
    content = statement(sites={"north": site(plan(unit=Unit.GROUP), max_records=2)})
    assert "per-group clipping" in content["mechanism"]
    assert "number of its groups being public" in content["sites"]["north"]["sentence"]
    for page in (render_markdown(content), render_html(content)):
        assert "ublic number of groups" in page
        assert not re.search(r"(?<!declared )public numbers? of records", page, re.IGNORECASE)
        assert "each record in each step" not in page


def test_one_round_is_said_alike_everywhere() -> None:
    content = statement(sites={"a": site(plan(), rounds=1, first_round=3, last_round=3)})
    text = Parsed(render_html(content)).text
    assert "released in round 3 to the server" in content["sites"]["a"]["sentence"]
    assert "3 of 36 planned, in round 3 " in text
    assert "rounds 3" not in text


@pytest.mark.parametrize("relation", Relation)
def test_a_figure_of_another_relation_than_the_promise_s_says_so(relation: Relation) -> None:
    content = statement(sites={"a": site(plan(relation=relation))})
    told, text = content["sites"]["a"], Parsed(render_html(content)).text
    removed = told["epsilon_by_relation"]["add_or_remove_one"]
    assert told["epsilon_rdp_relation"] == "add_or_remove_one"
    assert told["epsilon_by_records"]["1"] == removed < told["epsilon_rdp"]
    assert told["epsilon_by_records_relation"] == "add_or_remove_one"
    shown = upwards(told["epsilon_rdp"])
    assert f"add or remove one, by the looser Rényi bound {shown}" in text
    other = relation is Relation.REPLACE_ONE
    assert ("together, which is not the relation of the promise" in text) is other
    assert ("section, which are about adding or removing them" in text) is other
    assert "epsilon, 1 record added or removed |" in render_markdown(content)


def test_a_bound_that_is_not_looser_is_not_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountant, "epsilon_rdp", lambda *_, **__: 0.5)
    text = Parsed(render_html(statement(sites={"a": site(plan())}))).text
    assert "add or remove one, by the Rényi bound 0.5000" in text


def test_what_is_said_of_floating_point_agrees_with_the_grid() -> None:
    """Low-order bits are withheld, so they are not what lacks a promise; a proof is lacking."""
    (line,) = [line for line in private_content()["not_covered"] if "Mironov" in line]
    assert "on a public grid, which withholds the low-order bits" in line
    assert "is not proved" in line
