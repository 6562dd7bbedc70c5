"""Texts that occur more than once: at one site, at several, with other labels, nearly equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hushtune.common.kinds import Inputs, Kind, Targets
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, places, share
from hushtune.simulations.datacheck.near import ALIKE, MOST_ROWS, near_pairs, sampled
from hushtune.simulations.datacheck.tables import repeated_rows


def repeats(rows: Sequence[RawRow], kind: Kind, *, inconsistent: str) -> Iterator[Finding]:
    """Equal texts, but for white space, as a run finds them; then nearly equal ones."""
    if kind.repeats:
        yield from repeated_rows(rows, kind)
        return
    first: dict[str, RawRow] = {}
    within: list[str] = []
    across: list[str] = []
    other: list[str] = []
    distinct: list[RawRow] = []
    for row in rows:
        known = first.setdefault(kind.identity(str(row.text), str(row.label)), row)
        if known is row:
            distinct.append(row)
        elif known.label != row.label:
            other += [row.place, known.place]
        elif known.site == row.site:
            within.append(row.place)
        else:
            across.append(row.place)
    if within:
        yield Finding(
            "duplicates",
            Level.WARNING,
            f"{share(len(within), len(rows))} repeat another of the same site; a run leaves them "
            "out",
            "see whether a file was joined to itself",
            places(within),
        )
    if across:
        yield Finding(
            "duplicates across sites",
            Level.WARNING,
            f"{share(len(across), len(rows))} repeat one of another site; a simulation leaves them "
            "out, real sites cannot know of them",
            "see whether the sites took their rows from one source: who is at two sites is "
            "protected by both their epsilons added up",
            places(across),
        )
    if other:
        what = {
            "drop": "all of them are left out",
            "keep": "the first stays",
            "error": "which ends a run",
        }
        yield Finding(
            "inconsistent labels",
            Level.WARNING,
            f"{share(len(other) // 2, len(rows))} have a text that has another label elsewhere; "
            f"{what[inconsistent]} (data.inconsistent)",
            "mend the labels",
            places(other),
        )
    if kind.inputs in (Inputs.TEXT, Inputs.PAIR, Inputs.MESSAGES):
        yield from _near(distinct, kind)


def _near(rows: Sequence[RawRow], kind: Kind) -> Iterator[Finding]:
    looked = sampled(len(rows), MOST_ROWS)
    chosen = [rows[i] for i in looked]
    found = {later: before for later, before in near_pairs([_words(row, kind) for row in chosen])}
    of = f"of {len(chosen)} rows that were compared" + (
        f" (evenly from {len(rows)})" if len(chosen) < len(rows) else ""
    )
    if found:
        sites = sum(chosen[a].site != chosen[b].site for a, b in found.items())
        yield Finding(
            "near duplicates",
            Level.WARNING,
            f"{len(found)} {of} have at least {ALIKE:.0%} of their three-word sequences in common "
            f"with another, {sites} with one of another site; a run keeps them all",
            "remove copies that differ in a word or two; or keep them in one part of the split: "
            "data.split_by",
            places(chosen[row].place for pair in found.items() for row in pair),
        )
    elif len(chosen) < len(rows):
        yield Finding("near duplicates", Level.NOTE, f"none {of}")


def _words(row: RawRow, kind: Kind) -> str:
    """What is compared: where a text is learnt, this as well."""
    return f"{row.text} {row.label}" if kind.targets is Targets.ANSWER else str(row.text)
