"""Cross-validation: one of K parts of each site's rows, or one site, is tested on, and the rest
trained on."""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np

from hushtune.common.errors import ConfigError, TooFewRowsError
from hushtune.common.tasks.report import DataReport, rows_text
from hushtune.common.tasks.splits import Split
from hushtune.common.tasks.units import Rows, Units


def fold_units(
    units: Units,
    labels: Rows,
    *,
    fold: int,
    folds: int,
    validation: float,
    random: np.random.Generator,
    site: str = "",
) -> Split:
    """The split of one fold, counted from 1; with equal ``random`` the folds belong together.

    Label by label the shuffled units are dealt to the folds in turn, so that each fold has the
    labels in about the same shares and each unit is tested on in exactly one fold, as a whole. A
    unit counts as its most frequent label. ``validation``: share of the site's units that is taken
    from what is left. Raises TooFewRowsError where nothing is left to train on or to test.
    """
    of_units, dealt = units.majority(labels), 0
    parts: dict[str, list[Rows]] = {"train": [], "validation": [], "test": []}
    owed = 0.0
    for label in np.unique(of_units):
        mine = random.permutation(np.flatnonzero(of_units == label))
        tested = (dealt + np.arange(len(mine))) % folds == fold - 1
        dealt += len(mine)
        rest = mine[~tested]
        owed += validation * len(mine)
        for_validation = max(0, min(round(owed), len(rest) - 1))
        owed -= for_validation
        parts["test"].append(mine[tested])
        parts["validation"].append(rest[:for_validation])
        parts["train"].append(rest[for_validation:])
    split = Split.of_units(units, parts)
    if split.lacks:
        raise TooFewRowsError(
            f"site {site!r} has too few rows for so many folds",
            given=f"{len(units)} to deal to {folds} folds; none to {split.lacks} on in fold {fold}",
            expected="as many as folds, or more",
            remedy="fewer folds, or join the site with another",
        )
    return split


def take_out(
    sites: MutableMapping[str, Units], name: str | None, blocks: Rows | None, report: DataReport
) -> Rows:
    """The rows of the site that takes no part in training, which is taken out of ``sites``.

    ``blocks (n,)``: what must not be parted, if anything. Raises ConfigError where there is no such
    site or no other one, and where another one has a part of a block.
    """
    if name is None:
        return np.empty(0, dtype=np.int64)
    if name not in sites or len(sites) == 1:
        raise ConfigError(
            "data.left_out names no site of the data, or the only one",
            given=name,
            expected=f"one of several sites: {', '.join(sorted(sites))}",
            remedy="name a site of the data, of which there must be two",
        )
    rows = np.sort(sites.pop(name).rows)
    if blocks is not None:
        others = np.concatenate([units.rows for units in sites.values()])
        if shared := len(np.intersect1d(blocks[rows], blocks[others])):
            raise ConfigError(
                "the site that is left out shares values of data.split_by with others, so they "
                "would be trained on and tested on",
                given=f"{name}: {shared} of {len(np.unique(blocks[rows]))} values",
                expected="values that no other site has",
                remedy="leave data.split_by or data.left_out out",
            )
    report.notes.append(
        f"site {name} takes no part in training: its {rows_text(len(rows))} are tested on"
    )
    return rows
