"""privacy.html: every number is on it, no text of a site is markup, and no page lies."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from hushtune.common.privacy import figures
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Relation, Trust, Unit
from hushtune.common.privacy.statement import statement
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown

from .statements import UPDATES, full_site, plan, private_content, site

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
VOID = {"meta", "link", "rect", "line", "polyline", "circle"}
REASSURING = ("epsilon", "delta", "-dp", "differential", "guarantee", "covered", "at most")
REASSURING += ("promise", "bound", "secure", "verif", "accountant", "policy", "budget", "safe")


class Parsed(HTMLParser):
    """The tags of a page with their attributes, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return private_content()


@pytest.fixture(scope="module")
def page(content: dict[str, Any]) -> str:
    return render_html(content)


def unprotected() -> Iterator[Any]:
    source = NoiseSource.insecure(3)
    bad = {"noise_secure": source.secure, "noise_source": source.description}
    yield pytest.param(full_site(plan(trust=Trust.OFF)), id="off")
    yield pytest.param(full_site(plan(), **bad), id="insecure noise")


# ------------------------------------------------------------------------------ content ----


def numbers(content: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(content, list):
        for value in content:
            yield from numbers(value, path)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path, content


def fields(told: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each number of a site (a path, or the beginning of several), and where it must stand: the
    heading of a row, and what its cells are."""
    up, most = figures.upwards, figures.at_most
    planned = told["planned"]
    promised = f"{up(told['epsilon'])}, {most(told['delta'])}; {up(planned['epsilon'])} was planned"
    yield from ((path, "Epsilon, delta", promised) for path in (".epsilon", ".delta"))
    yield ".planned.epsilon", "Epsilon, delta", promised
    lifetime = f"{up(told['epsilon_lifetime'])} at delta {most(told['delta'])}, of all"
    yield ".epsilon_lifetime", "Epsilon of all charges", lifetime
    first, last = told["rounds"]["first"], told["rounds"]["last"]
    steps = f"{told['steps']} of {planned['steps']} planned, in {figures.rounds_text(first, last)}"
    for path in (".steps", ".planned.steps", ".rounds."):
        yield path, "Steps charged", steps
    rate = f"with probability {most(told['sampling_probability'])}"
    yield ".sampling_probability", "Sampling", rate
    sigma = figures.at_least(told["noise_multiplier"])
    yield ".noise_multiplier", "Noise multiplier (sigma)", sigma
    clip = f"{told['clip_norm']:.10g}, {told['denominator']:.10g}"
    yield from ((path, "Clip norm (C), denominator", clip) for path in (".clip", ".denominator"))
    yield ".public_size", "Public number of records", str(told["public_size"])
    counts = f"{told['num_resent']} answered again"
    yield ".num_resent", "Rounds", counts
    yield ".num_aborted", "Rounds", f"{told['num_aborted']} aborted"
    for kind, epsilon in told["epsilon_by_relation"].items():
        yield f".epsilon_by_relation.{kind}", kind.replace("_", " "), up(epsilon)
    rdp = told["epsilon_rdp"]
    looser = "looser " if rdp > told["epsilon_by_relation"]["add_or_remove_one"] else ""
    yield ".epsilon_rdp", f"add or remove one, by the {looser}Rényi bound", up(rdp)
    for count, epsilon in told["epsilon_by_records"].items():
        yield f".epsilon_by_records.{count}", count, up(epsilon)
    for pair in told["curve"]:
        yield ".curve.", most(pair["delta"]), up(pair["epsilon"])
    same = told["events"] == told["lifetime"]["events"]
    for path, label, events in (
        (".events.", "in this run and in all" if same else "in this run", told["events"]),
        (".lifetime.events.", "in all runs", [] if same else told["lifetime"]["events"]),
    ):
        for event in events:
            keys = ("count", "steps", "sampling_probability", "noise_multiplier")
            yield path, label, " ".join(str(event[key]) for key in keys)
    for path, label, moves in (
        (".released.updates.", "Left: change of the trained tensors", told["released"]["updates"]),
        (".received.", "Entered: the whole adapter", told["received"]),
    ):
        for moved in moves:
            sizes = f"{len(moved['tensors'])} {moved['num_values']} {moved['num_bytes']}"
            yield path, label, f"{figures.spans(moved['rounds'])} {sizes}"


def test_every_number_of_the_json_is_on_the_page_in_its_place(
    content: dict[str, Any], page: str
) -> None:
    parsed = Parsed(page)
    text, cut = parsed.text, re.findall(r'<section class="site".*?</section>', page, re.DOTALL)
    sections = dict(zip(content["sites"], map(Parsed, cut), strict=True))
    for name, told in content["sites"].items():
        section = sections[name]
        shown = [(head, " ".join(cells)) for head, *cells in section.rows]
        found = list(fields(told))
        for path, label, cells in found:
            if path not in (".steps", ".planned.steps", ".rounds.") or told["steps"]:
                assert any(a == label and cells in b for a, b in shown), (name, path, label, cells)
        limit = told["lifetime"]
        if limit["limit_epsilon"] is not None:
            spent = f"Epsilon {figures.upwards(limit['epsilon'])} of {limit['limit_epsilon']:g} "
            assert spent in section.text
        else:
            assert f"Epsilon {figures.upwards(told['epsilon_lifetime'])} at" in section.text
        assert f"at delta {figures.at_most(limit['delta'])}" in section.text
        assert told["released"]["metrics"] in section.text
        # Above; in the sentence; in the line on metrics.
        elsewhere = (".lifetime.", ".max_records_per_unit", ".metrics.")
        known = (*(path for path, *_ in found), *elsewhere)
        for path, value in numbers(told):
            if ".tensors." in path:
                assert [path.split(".tensors.")[1], str(value)] in parsed.rows, path
            else:
                assert path.startswith(known), path
        rounds = "none"
        if told["rounds"]["last"]:
            rounds = figures.spans(range(told["rounds"]["first"], told["rounds"]["last"] + 1))
        promise = [figures.upwards(told["epsilon"]), figures.at_most(told["delta"])]
        assert [name, rounds, *promise] in parsed.rows
        assert told["sentence"] in text
        assert told["ledger_head"] in section.text
    whole = content["federation"]
    promise = [figures.upwards(whole["epsilon"]), figures.at_most(whole["delta"])]
    assert ["Federation: the largest of any site", "", *promise] in parsed.rows
    assert content["run"] in text
    assert content["accountant"] in text
    for name, number in content["libraries"].items():
        assert f"{name} {number or 'absent'}" in text
    for line in (*content["covered"], *content["not_covered"]):
        assert line in text


def test_the_sum_for_two_sites_and_the_overdrawn_budget_are_told() -> None:
    made = plan()
    content = statement(
        sites={
            "north": site(made, limit_epsilon=2.0),
            "south": site(made, limit_epsilon=12.0),
            "west": site(made, spent=[made.event(1)]),
        }
    )
    text = Parsed(render_html(content)).text
    twice = 2 * content["federation"]["epsilon"]
    assert f"the two largest, added up {figures.upwards(twice)} 2e-05" in text
    assert text.count("MORE THAN ALLOWED") == 1
    assert re.search(r"of 12 that the site.s policy allows, ever, at delta 1e-05 \(25.0 %\)", text)


@pytest.mark.parametrize("relation", Relation)
@pytest.mark.parametrize("unit", Unit)
def test_other_relations_and_units_have_their_page(relation: Relation, unit: Unit) -> None:
    content = statement(sites={"a": full_site(plan(relation=relation, unit=unit))})
    text = Parsed(render_html(content)).text
    assert content["sites"]["a"]["sentence"] in text
    one = {Unit.EXAMPLE: "record", Unit.GROUP: "group", Unit.CLIENT: "client"}[unit]
    one_s, two_s = f"a given {one}", f"{one}s"
    if unit is Unit.CLIENT:
        one_s, two_s = "a given client\u2019s data", "clients\u2019 data"
    asked = f"which of two {two_s}" if relation is Relation.REPLACE_ONE else f"whether {one_s}"
    assert f"find out {asked} was used" in text
    assert f"The most {one}s that any test can recognise" in text
    assert content["selection"] in text


def test_the_column_that_makes_a_group_is_named() -> None:
    made = plan(unit=Unit.GROUP)
    content = statement(sites={"a": full_site(made, max_records=8)}, group="patient")
    assert "with one value in column patient" in Parsed(render_html(content)).text
    assert "with one value of `patient`" in render_markdown(content)


def test_which_code_ran_is_on_both_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hushtune.common.privacy.statement.source_commit", lambda: "ab12, with local changes"
    )
    content = statement(sites={"a": full_site(plan())})
    assert content["source_commit"] == "ab12, with local changes"
    for page in (Parsed(render_html(content)).text, render_markdown(content)):
        assert "ommit" in page
        assert "ab12, with local changes" in page


# ------------------------------------------------------------------------------- markup ----


@pytest.mark.parametrize(
    "bad",
    [
        "<script>alert(1)</script>",
        "</title></style></bdi><img src=x onerror=alert(1)>",
        "\"'><svg onload=alert(1)>{{ 7*7 }}{% raw %}",
    ],
)
def test_a_site_s_texts_are_never_markup(bad: str) -> None:
    made = full_site(plan(), refusals=[bad], ledger_head=bad, public_size_source=bad)
    plain = {"x": full_site(plan(), refusals=["y"], ledger_head="z")}
    page = Parsed(render_html(statement(sites={bad: made}, run=bad)))
    same = Parsed(render_html(statement(sites=plain, run="r")))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in same.tags]
    for (_, attributes), (_, expected) in zip(page.tags, same.tags, strict=True):
        assert attributes.keys() == expected.keys()
    assert page.text.count(" ".join(bad.split())) >= 8
    assert page.open == []


def test_the_page_is_whole_and_asks_for_nothing(page: str) -> None:
    parsed = Parsed(page)
    names = [tag for tag, _ in parsed.tags]
    assert page.lstrip().startswith("<!doctype html>")
    policies = [a["content"] for _, a in parsed.tags if "http-equiv" in a]
    assert policies == [POLICY]
    assert not {"script", "iframe", "img", "form", "object", "base"} & set(names)
    for tag, attributes in parsed.tags:
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), tag
    assert "url(" not in page
    assert "@import" not in page
    assert "://" not in html.unescape(page)


def test_headings_tables_and_pictures_can_be_read_aloud(page: str) -> None:
    parsed = Parsed(page)
    assert ("html", {"lang": "en"}) in parsed.tags
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for tag, a in parsed.tags if tag == "th")
    drawn = [a for tag, a in parsed.tags if tag == "svg"]
    assert drawn
    assert all(a.get("role") == "img" and a.get("aria-label") for a in drawn)
    ids = [str(a["id"]) for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [str(a["aria-labelledby"]) for _, a in parsed.tags if "aria-labelledby" in a]
    assert set(named) <= set(ids)


# --------------------------------------------------------------------------- no privacy ----


@pytest.mark.parametrize("told", list(unprotected()))
def test_without_privacy_the_page_says_so_and_nothing_reassuring(told: Any) -> None:
    page = render_html(statement(sites={"north": told, "south": told}))
    text = Parsed(page).text
    assert text.startswith("NO PRIVACY")
    assert text.count("NO PRIVACY") == 3  # title, alarm, one sentence for both sites
    assert text.index("without any protection") < text.index("Site north")
    lowered = text.casefold().replace("without any protection", "").replace("not protected", "")
    # What was sent is told in the same words on every page.
    for neutral in ("declared public number of records", "data protection officer"):
        lowered = lowered.replace(neutral, "")
    assert "protect" not in lowered
    assert "insecure" in lowered or "none" in lowered
    for word in REASSURING:
        assert word not in lowered.replace("insecure", ""), word


def test_one_bad_site_takes_the_page_s_promise_away() -> None:
    source = NoiseSource.insecure(3)
    bad = full_site(plan(), noise_secure=source.secure, noise_source=source.description)
    text = Parsed(render_html(statement(sites={"north": full_site(plan()), "south": bad}))).text
    assert text.startswith("NO PRIVACY")
    assert "Federation" not in text
    assert "What is covered" not in text
    assert text.count(")-DP, ") == 1  # what north's own records were promised stays true


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_the_page_says_what_updates_were_rounded_to(encoding: str) -> None:
    released = [replace(moved, encoding=encoding) for moved in UPDATES]
    content = statement(run="run", sites={"north": full_site(plan(), released=released)})
    sites = content["sites"]["north"]["released"]["updates"]
    assert {moved["encoding"] for moved in sites} == {encoding}
    text = Parsed(render_html(content)).text
    assert ("updates rounded to int8, else float32" in text) is (encoding == "int8")
    assert ("float32, four bytes a value" in text) is (encoding == "float32")
