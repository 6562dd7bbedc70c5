"""The labels of a run: enough of each, and none that only one site has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches

from hushtune.common.config import DataConfig
from hushtune.common.errors import LabelError
from hushtune.common.tasks.rows import RawRow


def label_names(rows: Sequence[RawRow], config: DataConfig) -> tuple[str, ...]:
    """All labels: those that are declared, or else those of the rows, sorted.

    Raises LabelError where a row has one that is not declared. Where none is, unless there are two,
    each occurs twice and, where the data say who holds what and there are more sites than one, at
    two sites.
    """
    if config.labels is not None:
        return _declared(rows, config.labels, column=config.label)
    return _checked(rows, config, sampled=None)


def check_sample(
    rows: Sequence[RawRow], names: Sequence[str], config: DataConfig, *, by: str
) -> None:
    """LabelError unless the rows that a subsample leaves have every label, as `label_names` wants.

    ``by``: the setting that leaves them, or several.
    """
    if config.labels is not None:  # a site may lack a label that others have
        return
    left = {row.label for row in rows}
    for name in names:
        if name not in left:
            raise _error(
                f"label {name!r} has no row left", "0 rows", "rows of each label", None, by
            )
    _checked(rows, config, sampled=by)


def _declared(rows: Sequence[RawRow], labels: tuple[str, ...], *, column: str) -> tuple[str, ...]:
    """The declared labels, in their order; LabelError for a row that has another."""
    for row in rows:
        if str(row.label) not in labels:
            near = get_close_matches(str(row.label), labels, n=1)
            raise LabelError(
                "a row has a label that data.labels does not have",
                given=f"{row.label!r} at {row.place}",
                expected=", ".join(labels),
                remedy=(f"did you mean {near[0]!r}? " if near else "")
                + f"Mend the row, or see whether column {column!r} is the label",
            )
    return labels


def _checked(rows: Sequence[RawRow], config: DataConfig, *, sampled: str | None) -> tuple[str, ...]:
    counts = Counter(str(row.label) for row in rows)
    if len(counts) < 2:
        raise _error(
            "the data have one label only, so there is nothing to learn",
            next(iter(counts)),
            "two labels or more",
            "check data.label",
            sampled,
        )
    for label, count in sorted(counts.items()):
        if count == 1:
            raise _error(
                f"label {label!r} occurs once only, so it cannot be both trained and tested",
                next(row.place for row in rows if row.label == label),
                "each label at least twice",
                f"is column {config.label!r} the label? Join rare labels, or remove the row",
                sampled,
            )
    sites = {row.site for row in rows}
    if config.partition == "natural" and len(sites) > 1:
        for label in sorted(counts):
            places = {row.site for row in rows if row.label == label}
            if len(places) == 1:
                raise _error(
                    f"label {label!r} occurs at site {next(iter(places))!r} only: the model could "
                    "tell the site in its place, and every update about it is that site's",
                    f"{counts[label]} rows",
                    "each label at two sites or more",
                    "join rare labels, or check that the sites spell labels alike",
                    sampled,
                )
    return tuple(sorted(counts))


def _error(
    what: str, given: str, expected: str, remedy: str | None, sampled: str | None
) -> LabelError:
    if sampled is None:
        return LabelError(what, given=given, expected=expected, remedy=remedy)
    return LabelError(
        what,
        given=f"{given}, of the rows left by {sampled}",
        expected=expected,
        remedy=f"raise {sampled}, or join rare labels",
    )
