"""One site's rows by use: a seeded draw, stratified by label, whole units together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hushtune.common.errors import TooFewRowsError
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Rows, Units


@dataclass(frozen=True, slots=True)
class Split:
    """One site's rows by use; indices into the table, each in one part only."""

    train: Rows
    validation: Rows
    test: Rows

    @classmethod
    def of_units(cls, units: Units, parts: Mapping[str, Sequence[Rows]]) -> Split:
        """The rows of whole units, by the places of these in each part."""
        return cls(
            **{part: np.sort(units.take(np.concatenate(p)).rows) for part, p in parts.items()}
        )

    @property
    def lacks(self) -> str | None:
        """The first part that a site cannot do without and that has no row."""
        return next((part for part in ("train", "test") if not len(getattr(self, part))), None)


def subsample(indices: Rows, limit: int | None, seed: int, site: str) -> Rows:
    """At most ``limit`` of a site's rows, drawn at random; sorted."""
    if limit is None or len(indices) <= limit:
        return indices
    chosen = rng(seed, "subsample", site).permutation(indices)[:limit]
    return np.sort(chosen)


def split_sites(
    sites: Mapping[str, Units], split: Callable[[str, Units], Split], *, blocks: Rows | None = None
) -> Mapping[str, Split]:
    """The split of each site, by name; ``split`` makes it of the site's name and units.

    ``blocks (n,)``: which rows must be in one part, at whatever sites they are. A block that
    several sites have goes where the first of them by name puts it: also in cross-validation it
    is tested in one fold alone.
    """
    placed: dict[int, str] = {}
    found: dict[str, Split] = {}
    for site, units in sorted(sites.items()):
        own = split(site, units)
        found[site] = own if blocks is None else _kept_together(own, blocks, placed, site)
    return found


def _kept_together(split: Split, blocks: Rows, placed: dict[int, str], site: str) -> Split:
    """A split that follows where blocks were placed before, which hears where the others are."""
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for own in parts:
        for row in getattr(split, own).tolist():
            parts[placed.setdefault(int(blocks[row]), own)].append(row)
    moved = Split(**{part: np.array(sorted(rows), dtype=np.int64) for part, rows in parts.items()})
    if moved.lacks:
        raise TooFewRowsError(
            f"site {site!r} has no rows for the {moved.lacks} part: others have the same values of "
            "data.split_by, and they are in other parts",
            given=f"{sum(map(len, parts.values()))} rows after cleaning",
            remedy="leave data.split_by out, or join the sites",
        )
    return moved


def split_units(
    units: Units,
    labels: Rows,
    *,
    validation: float,
    test: float,
    random: np.random.Generator,
    site: str = "",
) -> Split:
    """Split label by label, so that each part has the labels in the same shares.

    A unit is in one part as a whole and counts as its most frequent label: a patient in training
    must not be tested on as well. A label's test units come first, then its validation units; a
    label with two units or more always keeps one to train on. Raises TooFewRowsError if nothing is
    left to train on or to test.
    """
    parts: dict[str, list[Rows]] = {"train": [], "validation": [], "test": []}
    # Counts are rounded cumulatively, so that many rare labels still add up to the fractions.
    owed_test = owed_validation = 0.0
    of_units = units.majority(labels)
    for label in np.unique(of_units):
        mine = random.permutation(np.flatnonzero(of_units == label))
        owed_test += test * len(mine)
        owed_validation += validation * len(mine)
        for_test = min(round(owed_test), len(mine) - 1)
        for_validation = min(round(owed_validation), len(mine) - 1 - for_test)
        owed_test -= for_test
        owed_validation -= for_validation
        parts["test"].append(mine[:for_test])
        parts["validation"].append(mine[for_test : for_test + for_validation])
        parts["train"].append(mine[for_test + for_validation :])
    split = Split.of_units(units, parts)
    if split.lacks:
        raise TooFewRowsError(
            f"site {site!r} has too few rows to train and to test on",
            given=f"{len(units.rows)} rows after cleaning",
            remedy="remove the site, join it with another, or change data.test_fraction",
        )
    return split
