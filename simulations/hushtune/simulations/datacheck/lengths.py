"""How much of the texts a model would read: rows that are cut at ``model.max_tokens``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, places
from hushtune.simulations.datacheck.near import sampled

MOST_ROWS = 2_000
_MUCH = 0.05


def lengths(rows: Sequence[RawRow], config: RunConfig, model: str | None) -> Iterator[Finding]:
    """The share of rows that are cut, by the tokenizer of ``model``; without one a note."""
    if config.task.of.inputs is Inputs.IMAGE or not rows:
        return
    if model is None:
        yield Finding(
            "length", Level.NOTE, "not judged, as no tokenizer was named", "--model NAME does"
        )
        return
    from hushtune.simulations.tokens import UNCUT, tokenizer_of, tokens_of

    try:
        tokenizer, two_parts = tokenizer_of(model)
    except HushtuneError as error:
        yield Finding("length", Level.NOTE, f"not judged: {error.message}", error.remedy or "")
        return
    most = config.model.max_tokens
    chosen = [rows[i] for i in sampled(len(rows), MOST_ROWS)]
    found: list[tuple[int, str]] = []
    for row in chosen:
        tokens = tokens_of(
            tokenizer,
            config.task.kind,
            str(row.text),
            row.label,
            max_tokens=UNCUT,
            two_parts=two_parts,
        )
        learnt = sum(tokens.learnt or ())
        # A model of two parts reads and writes up to so many each.
        length = max(learnt, len(tokens.ids) - learnt) if two_parts else len(tokens.ids)
        found.append((length, row.place))
    cut = [place for length, place in found if length > most]
    of = f"of {len(chosen)} rows" + (
        f" (evenly from {len(rows)})" if len(chosen) < len(rows) else ""
    )
    longest = max(length for length, _ in found)
    text = f"{len(cut)} {of} have more than {most} tokens (model.max_tokens); the longest {longest}"
    if not cut:
        yield Finding("length", Level.NOTE, text)
        return
    yield Finding(
        "length",
        Level.WARNING if len(cut) >= _MUCH * len(chosen) else Level.NOTE,
        f"{text}: what is beyond is not read",
        "raise model.max_tokens as far as the model goes, or cut the texts into parts and keep "
        "those of one text together: data.split_by",
        places(cut),
    )
