"""The statement of secure sums: whom it rests on, in words for the unit that is protected."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit
from hushtune.common.privacy.statement import statement
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown
from hushtune.common.privacy.statement_secure import lost, provided, towards
from hushtune.common.secagg.cohort import Cohort

from .statements import plan, site
from .test_statement_html import Parsed

NAMES = ("east", "north", "south", "west")


def shared(unit: Unit) -> PrivacyPlan:
    if unit is not Unit.CLIENT:
        return plan(trust=Trust.DISTRIBUTED, unit=unit, delta=1e-4)
    changes = {"public_size": 4, "delta": 1e-2, "sampling_probability": 1.0}
    return plan(trust=Trust.DISTRIBUTED, unit=unit, **changes)


def content(
    unit: Unit, *, least: int = 4, colluding: int = 1, lost_rounds: tuple[int, ...] = ()
) -> dict[str, Any]:
    cohort = Cohort(sites=NAMES, min_survivors=least, colluding=colluding)
    made = site(
        shared(unit),
        provided=provided(cohort),
        towards=towards(cohort),
        max_records=3 if unit is Unit.GROUP else 1,
    )
    return statement(sites=dict.fromkeys(NAMES, made), cohort=cohort, lost_rounds=lost_rounds)


def pages(told: dict[str, Any]) -> tuple[str, str]:
    return render_markdown(told), Parsed(render_html(told)).text


def test_no_page_speaks_of_single_records_where_clients_are_protected() -> None:
    """A reader with two records at one client must not read the figure for two of anything."""
    for page in pages(content(Unit.CLIENT)):
        assert "adding or removing all data of one client, any one of east, north" in page
        assert "All records of one client are covered by its figure, however many" in page
        assert "Whoever has records at two clients reads the figure for two clients" in page
        assert "the epsilon of a client that does not is" in page
        assert "Each site is one client" in page
        for wrong in (
            r"\b[128] records?\b",
            r"two records",
            r"given record",
            r"of a record",
            r"other records",
            r"each record in each step",
            r"record (was|were) used",
            r"this person.s record",
        ):
            assert not re.search(wrong, page), wrong
        assert "every client in every round" in page
    markdown, text = pages(content(Unit.CLIENT))
    assert "| epsilon, 1 client added or removed |" in markdown
    assert "| epsilon, 8 clients together added or removed |" in markdown
    assert "By clients, added or removed together" in text
    assert "whether a given client\u2019s data was used for training." in text
    assert "the data of all other clients" in text


@pytest.mark.parametrize(("unit", "one"), [(Unit.EXAMPLE, "record"), (Unit.GROUP, "group")])
def test_records_and_groups_of_all_sites_are_in_one_sum(unit: Unit, one: str) -> None:
    for page in pages(content(unit)):
        assert f"two {one}s, at one site or at two, reads the figure for two {one}s" in page
        assert f"the epsilon of a {one} of a site that does not is" in page
        assert page.count("All sites' records are in one sum") == 1
        assert "all data of one client" not in page
    assert f"all other {one}s of all sites" in Parsed(render_html(content(unit))).text


def test_the_sentence_says_who_has_to_be_honest() -> None:
    told = content(Unit.EXAMPLE)["sentences"][0]["sentence"]
    assert told.endswith(
        "-DP towards the server, the other sites and the public, the number of each site's records "
        "being public. This holds if the server keeps to the protocol and at most one other site "
        "tells it what that site knows; a sum was opened only with all 4 sites in it."
    )
    assert "everything that the sites sent in rounds 1 to 12" in told
    alone = content(Unit.EXAMPLE, colluding=0)["sentences"][0]["sentence"]
    assert "towards the server and the public, and not towards the other sites, the" in alone
    assert "protocol and no site tells it" in alone
    assert "up to 1 sites" not in "".join(pages(content(Unit.EXAMPLE)))


@pytest.mark.parametrize(
    ("least", "colluding", "words"),
    [
        (4, 0, "4 shares make up the noise that is promised, so no site may tell"),
        (4, 1, "3 shares make up the noise that is promised, so one site may tell"),
        (4, 3, "1 share makes up the noise that is promised, so up to 3 sites may tell"),
    ],
)
def test_both_pages_say_how_many_may_be_false(least: int, colluding: int, words: str) -> None:
    for page in pages(content(Unit.EXAMPLE, least=least, colluding=colluding)):
        assert words in page
        assert page.count("(promised)") == 1


def test_lost_rounds_are_named() -> None:
    assert lost(()) == ""
    for page in pages(content(Unit.EXAMPLE, lost_rounds=(7,))):
        assert "Round 7 was lost: the server stopped before the end." in page
    for page in pages(content(Unit.EXAMPLE)):
        assert "lost:" not in page
