"""What a search has done so far, kept for whoever goes on with it; the researcher's alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from hushtune.common.errors import CheckpointError
from hushtune.common.files import read_json, write_bytes
from hushtune.common.json_text import json_text

RECORD = "search.json"
_MEND = "begin anew in another folder; a choice that was charged is then charged again"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a search. `value`: its main metric on validation rows; None of one that failed,
    or that is not done. `digest`: of its adapter, which decides between equal values."""

    number: int
    settings: Mapping[str, Any]
    done: bool = False
    value: float | None = None
    digest: str = ""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Record:
    """A search: what it is about, how many runs there will be, and those there were.

    `name`: in the sites' ledgers. `drawn`: the number of runs, which for a charged choice nobody
    may learn who gets what it released.
    """

    about: Mapping[str, Any]
    drawn: int
    name: str = field(default_factory=lambda: f"search-{token_hex(8)}")
    trials: tuple[Trial, ...] = ()

    def having(self, trial: Trial) -> Record:
        """With a trial in place of the one of its number, or after the last."""
        kept = [old for old in self.trials if old.number != trial.number]
        return replace(self, trials=tuple(sorted([*kept, trial], key=lambda each: each.number)))


def write_record(folder: Path, record: Record) -> None:
    """Replace the record, which its owner alone may read."""
    told = {
        "about": dict(record.about),
        "drawn": record.drawn,
        "name": record.name,
        "trials": [
            {
                "number": trial.number,
                "settings": dict(trial.settings),
                "done": trial.done,
                "value": trial.value,
                "digest": trial.digest,
                "error": trial.error,
            }
            for trial in record.trials
        ],
    }
    write_bytes(folder / RECORD, (json_text(told, indent=2) + "\n").encode(), private=True)


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None without one, CheckpointError for a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        return None
    told = read_json(path, remedy=_MEND)
    try:
        return Record(
            about=dict(told["about"]),
            drawn=int(told["drawn"]),
            name=str(told["name"]),
            trials=tuple(Trial(**row) for row in told["trials"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the file {path} is damaged", given=str(error)[:200], remedy=_MEND
        ) from None


def best_of(trials: Sequence[Trial], *, higher_is_better: bool) -> Trial | None:
    """The best of all that have a value; None where none has.

    Of equal values the adapter's digest decides, never which run came first: the bound on a
    private choice is about an order of results, and not of runs.
    """
    sign = -1.0 if higher_is_better else 1.0
    told = [
        (sign * trial.value, trial.digest, trial) for trial in trials if trial.value is not None
    ]
    return min(told, key=lambda each: each[:2])[2] if told else None
