"""Labels: rare ones, and those that some sites have and others lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError
from hushtune.common.kinds import Targets
from hushtune.common.tasks.labels import names_of
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, places, quoted, share

_RARE = 0.2
"""Of an even share: a class that has less is said to be rare."""
_MOST = 6
NO_BALANCE = (
    "Rare classes cannot be drawn more often: each row is drawn at one public rate, on which the "
    "accounting of epsilon rests, and rates by class would follow from private labels"
)


def labels(
    rows: Mapping[str, Sequence[RawRow]], config: RunConfig, *, shares: Mapping[str, float]
) -> Iterator[Finding]:
    """What is to be said of classes, labels and tags; nothing of numbers and answers.

    ``shares``: public shares of the classes, from which weights are made.
    """
    targets = config.task.of.targets
    if targets in (Targets.NUMBER, Targets.ANSWER):
        return
    counts = {site: Counter(_each(found, targets)) for site, found in rows.items()}
    total = sum(counts.values(), Counter[str]())
    if not total:
        return
    if shares:
        yield _weights(total, shares)
    yield from _rare(total, weighted=bool(shares) or bool(config.data.class_weights))
    if config.data.partition == "natural" and len(counts) > 1:
        yield from _uneven(rows, counts, total, declared=config.data.labels is not None)


def _each(rows: Sequence[RawRow], targets: Targets) -> Iterator[str]:
    for row in rows:
        label = str(row.label)
        if targets is Targets.CLASSES:
            yield from names_of(label)
        elif targets is Targets.TAGS:
            yield from label.split()
        else:
            yield label


def _rare(total: Counter[str], *, weighted: bool) -> Iterator[Finding]:
    label, count = min(total.items(), key=lambda item: (item[1], item[0]))
    whole = sum(total.values())
    text = f"the rarest of {len(total)} labels, {quoted(label)}, has {share(count, whole)}"
    if len(total) < 2 or count >= _RARE * whole / len(total):
        yield Finding("imbalance", Level.NOTE, text)
        return
    how = (
        "set data.class_weights, from numbers that are public: `--public-share LABEL=SHARE` for "
        "each label, from a registry or a publication and never from these rows, prints them. "
    )
    yield Finding("imbalance", Level.WARNING, text, ("" if weighted else how) + f"{NO_BALANCE}.")


def _weights(total: Counter[str], shares: Mapping[str, float]) -> Finding:
    if set(shares) != set(total):
        raise ConfigError(
            "--public-share is needed of each label, and of no other",
            given=", ".join(sorted(shares)),
            expected=", ".join(map(quoted, sorted(total))),
            remedy="give one --public-share for each of these labels",
        )
    weights = class_weights(shares)
    written = ", ".join(f'"{name}" = {weight:.3g}' for name, weight in sorted(weights.items()))
    return Finding(
        "imbalance",
        Level.NOTE,
        "weights of the classes by the public shares that were given, by which each class weighs "
        "the same in the loss",
        f"data.class_weights = {{{written}}}",
    )


def class_weights(shares: Mapping[str, float]) -> dict[str, float]:
    """1 / (number of classes * share): each class weighs the same, and an average row 1.

    >>> class_weights({"rare": 0.1, "common": 0.9})["rare"]
    5.0
    """
    whole = sum(shares.values())
    return {name: whole / (len(shares) * share) for name, share in shares.items()}


def _uneven(
    rows: Mapping[str, Sequence[RawRow]],
    counts: Mapping[str, Counter[str]],
    total: Counter[str],
    *,
    declared: bool,
) -> Iterator[Finding]:
    at = {name: [site for site in sorted(counts) if counts[site][name]] for name in sorted(total)}
    alone = {name: sites[0] for name, sites in at.items() if len(sites) == 1}
    if alone:
        told = [f"{quoted(name)} at {site}" for name, site in alone.items()]
        yield Finding(
            "labels at one site",
            Level.WARNING,
            f"{_few(told)}: the model could tell the site by such a label, and every update about "
            "it is that site's" + ("" if declared else "; a run that is not told its labels stops"),
            "join rare labels, see whether the sites spell labels alike, or declare data.labels",
            places(
                row.place
                for _, found in sorted(rows.items())
                for row in found
                if row.label in alone
            ),
        )
    lacking = [
        f"{quoted(name)} at {site}"
        for name, sites in at.items()
        if len(sites) > 1
        for site in sorted(set(counts) - set(sites))
    ]
    if lacking:
        yield Finding(
            "missing labels",
            Level.WARNING,
            f"no row has {_few(lacking)}, where other sites have such rows",
            "see whether the sites spell labels alike",
        )


def _few(told: Sequence[str]) -> str:
    more = f" and {len(told) - _MOST} more" if len(told) > _MOST else ""
    return ", ".join(told[:_MOST]) + more
