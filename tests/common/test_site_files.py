"""What a site's files are called, whatever the site is called."""

from __future__ import annotations

from itertools import pairwise
from urllib.parse import unquote

from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.site_files import MOST_CHARACTERS, site_stem

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)


@given(NAMES)
def test_a_stem_is_one_short_visible_name(site: str) -> None:
    stem = site_stem(site)
    assert len(stem.encode()) <= MOST_CHARACTERS
    assert not stem.startswith(".")
    assert not set(stem) & set("/\\:\0\n")
    assert unquote(stem) == site or stem[-65] == "+"


@given(NAMES, NAMES)
def test_distinct_sites_have_distinct_stems(one: str, other: str) -> None:
    assert (site_stem(one) == site_stem(other)) is (one == other)


def test_long_names_keep_a_readable_beginning_and_never_meet() -> None:
    names = ["n" * 300, "n" * 301, "\u5317\u4eac" * 15, "\u5317\u4eac" * 16, site_stem("n" * 300)]
    stems = sorted(map(site_stem, names))
    assert all(one != other for one, other in pairwise(stems))
    assert site_stem("\u5317\u4eac" * 15).startswith("%E5%8C%97%E4%BA%AC")
    assert unquote(site_stem("\u5317\u4eac" * 15)).startswith("\u5317\u4eac\u5317\u4eac")


def test_no_name_leaves_its_folder_or_hides() -> None:
    assert site_stem("../evil") == "%2E.%2Fevil"
    assert site_stem(".hidden") == "%2Ehidden"
