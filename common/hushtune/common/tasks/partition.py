"""Deal one data set to K sites: at random, by skewed labels, by skewed sizes, or in shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hushtune.common.errors import TooFewRowsError
from hushtune.common.kinds import Targets
from hushtune.common.names import SEEN_BY
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hushtune.common.tasks.data import LabelledRows

_ATTEMPTS = 100
_MIN_ROWS = 10
_WIDE_BARS, _MOST_INCHES, _MOST_LABELS = 12, 30, 12


def partition(
    labels: Rows, *, how: str, sites: int, alpha: float, shards_per_site: int, seed: int
) -> list[Rows]:
    """Every index of ``labels`` at exactly one of ``sites`` sites; sorted within each.

    ``iid``: at random, equal sizes. ``dirichlet``: each label's shares over sites are drawn from
    Dirichlet(alpha) (Hsu et al. 1909.06335). ``quantity``: sizes from Dirichlet(alpha), labels at
    random. ``shards``: rows sorted by label, cut into ``sites * shards_per_site`` pieces, dealt
    (McMahan et al. 1602.05629). Skewed draws are repeated until each site has 10 rows.
    """
    least = min(_MIN_ROWS, len(labels) // (2 * sites))
    if least < 1:
        raise TooFewRowsError(
            "there are too few rows for that many sites",
            given=f"{len(labels)} rows, data.sites = {sites}",
            expected=f"data.sites <= {len(labels) // 2}",
            remedy="lower data.sites",
        )
    ways = {"iid": _iid, "dirichlet": _dirichlet, "quantity": _quantity, "shards": _shards}
    for attempt in range(_ATTEMPTS):
        random = rng(seed, "partition", how, attempt)
        if how == "shards":
            parts = _shards(labels, sites * shards_per_site, alpha, random)
            order = random.permutation(len(parts))
            parts = [
                np.concatenate([parts[i] for i in order[k * shards_per_site :][:shards_per_site]])
                for k in range(sites)
            ]
        else:
            parts = ways[how](labels, sites, alpha, random)
        if min(len(part) for part in parts) >= least:
            return [np.sort(part).astype(np.int64) for part in parts]
    raise TooFewRowsError(
        "the draw leaves a site almost without rows",
        given=f"{len(labels)} rows, data.sites = {sites}, data.alpha = {alpha}",
        remedy="raise data.alpha, or lower data.sites",
    )


def _iid(labels: Rows, sites: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    del alpha
    return np.array_split(random.permutation(len(labels)), sites)


def _dirichlet(labels: Rows, sites: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    parts: list[list[Rows]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, _cut(mine, sites, alpha, random), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _quantity(labels: Rows, sites: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    return _cut(random.permutation(len(labels)), sites, alpha, random)


def _shards(labels: Rows, pieces: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    del alpha
    shuffled = random.permutation(len(labels))
    return np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], pieces)


def _cut(rows: Rows, pieces: int, alpha: float, random: np.random.Generator) -> list[Rows]:
    shares = random.dirichlet(np.full(pieces, alpha))
    return np.split(rows, (np.cumsum(shares)[:-1] * len(rows)).round().astype(np.int64))


def table(data: LabelledRows) -> list[dict[str, Any]]:
    """Who has what: for each ``site`` its rows by use (``train``, ``validation``, ``test``) and,
    under ``labels``, by label, whose names are anybody's."""
    rows: list[dict[str, Any]] = []
    for site, split in data.sites.items():
        everything = np.concatenate([split.train, split.validation, split.test])
        counts = np.bincount(data.labels[everything], minlength=len(data.strata))
        rows.append(
            {
                "site": site,
                "train": len(split.train),
                "validation": len(split.validation),
                "test": len(split.test),
                "labels": {name: int(n) for name, n in zip(data.strata, counts, strict=True)},
            }
        )
    return rows


_TITLES = {
    Targets.CLASS: "label",
    Targets.CLASSES: "first label",
    Targets.NUMBER: "target",
}
"""What the bars are parted by; of tags and answers by nothing."""


def plot(data: LabelledRows, path: Path) -> None:
    """Draw who has what as stacked bars, one bar a site."""
    from hushtune.common.pictures import fonts, save_picture

    with fonts():
        save_picture(draw(data), path, dpi=150)


def draw(data: LabelledRows) -> Figure:
    """The figure of ``plot``: many sites in thinner bars, and so many that no name fits unnamed."""
    import matplotlib
    from matplotlib.figure import Figure

    from hushtune.common.pictures import explain, legible

    rows = table(data)
    places = range(len(rows))
    sites = legible(str(row["site"]) for row in rows)
    inches = 0.45 if len(rows) <= _WIDE_BARS else max(0.16, 4 / len(rows))
    height = min(0.9 + inches * len(rows), _MOST_INCHES)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(rows))
    colours = matplotlib.colormaps["cividis"](np.linspace(0.1, 0.9, len(data.strata)))
    labels = legible(data.strata)
    for name, colour in zip(data.strata, colours, strict=True):
        width = np.array([row["labels"][name] for row in rows])
        axes.barh(places, width, left=left, label=labels[name], color=colour)
        left += width
    axes.set_ylim(len(rows) - 0.4, -0.6)
    shown = len(data.strata) <= _MOST_LABELS
    named = list(labels) if shown else []
    if height < _MOST_INCHES:
        written = [sites[str(row["site"])] for row in rows]
        axes.set_yticks(places, written, fontsize=10 if inches > 0.3 else 7)
        named += sites
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(rows)} sites, by name")
    axes.set_xlabel(f"rows ({SEEN_BY})")
    explain(figure, named)
    if shown:
        title = _TITLES.get(data.kind.targets)
        axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
