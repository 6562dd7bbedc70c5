"""A few training examples of each label at each site, drawn with the run's seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hushtune.common.errors import ConfigError, TooFewRowsError
from hushtune.common.seeds import rng
from hushtune.common.tasks.splits import Split
from hushtune.common.tasks.units import Rows, Units


def few_shot(
    split: Split,
    units: Units,
    labels: Rows,
    *,
    shots: int,
    names: Sequence[str],
    seed: int,
    site: str,
) -> Split:
    """A site's split with ``shots`` of its training units of each label, and all else as it was.

    ``units``: the split's training rows by unit. A unit is taken whole and counts as its most
    frequent label, as it does when rows are split. The draw of a label is one shuffle, so that
    more shots hold all that fewer do. Raises TooFewRowsError that names a label with fewer units.
    """
    of_units, chosen = units.majority(labels), list[Rows]()
    for code, name in enumerate(names):
        mine = np.flatnonzero(of_units == code)
        if len(mine) < shots:
            raise TooFewRowsError(
                f"site {site!r} has too few of label {name!r} to draw data.shots from",
                given=f"{len(mine)} to train on, after validation and test are taken",
                expected=f"{shots} or more (data.shots), of each label at each site",
                remedy="lower data.shots, data.validation_fraction or data.test_fraction, or leave "
                "the label or the site out",
            )
        chosen.append(rng(seed, "shots", site, name).permutation(mine)[:shots])
    return replace(split, train=np.sort(units.take(np.concatenate(chosen)).rows))


def check_shots(shots: int | None, sizes: Mapping[str, int], num_labels: int) -> None:
    """ConfigError where declared public sizes are not those that ``shots`` make."""
    if shots is None:
        return
    expected = shots * num_labels
    for site, size in sorted(sizes.items()):
        if size != expected:
            raise ConfigError(
                "data.public_sizes does not fit data.shots: each site trains on as many examples "
                "of each label",
                given=f"{site} = {size}",
                expected=f"{expected}: {shots} of each of {num_labels} labels",
                remedy="leave data.public_sizes out, or set each to that number",
            )
