"""One charge of the privacy ledger, and the hash that chains it to the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hushtune.common.errors import HushtuneError, LedgerError, MessageError
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.privacy.selection import Charged

GENESIS = "0" * 64
"""What stands for the hash before the first charge."""

RECORD = "example"
"""The unit of a charge that was clipped and noised record by record; see `unit_name`."""


def unit_name(group: str | None) -> str:
    """What a ledger calls a unit: a record, or all records with one value in a column.

    >>> unit_name(None), unit_name("patient")
    ('example', 'group patient')
    """
    return RECORD if group is None else f"group {group}"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One charge; `hash` covers all other fields, `previous` chains it to the one before.

    The clock is left out: it would add nothing to the order, and what time it was is not certain.
    """

    sequence: int
    dataset: str
    run: str
    round: int
    unit: str
    event: Charged
    previous: str
    hash: str

    @classmethod
    def after(
        cls,
        sequence: int,
        previous: str,
        *,
        dataset: str,
        run: str,
        round: int,
        unit: str,
        event: Charged,
    ) -> LedgerEntry:
        """The charge that follows the one with this number and hash (0 and GENESIS for none)."""
        entry = cls(sequence + 1, dataset, run, round, unit, event, previous, "")
        return replace(entry, hash=entry.content_hash())

    @property
    def release(self) -> DpSgdEvent:
        """What was released in a run; LedgerError for a choice among runs, which no run makes."""
        if not isinstance(self.event, DpSgdEvent):
            raise LedgerError("a run was charged a choice among runs", given=str(self.event))
        return self.event

    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON of all fields but `hash`, in hexadecimal."""
        content = {key: value for key, value in self.to_dict().items() if key != "hash"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "sequence": self.sequence,
            "dataset": self.dataset,
            "run": self.run,
            "round": self.round,
            "unit": self.unit,
            "event": self.event.to_dict(),
            "previous": self.previous,
            "hash": self.hash,
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LedgerEntry:
        """Inverse of `to_dict` for what a site releases; MessageError for anything else, a wrong
        hash included. A choice among runs is in ledgers alone, and nothing that is sent."""
        try:
            entry = cls(
                sequence=int(raw["sequence"]),
                dataset=str(raw["dataset"]),
                run=str(raw["run"]),
                round=int(raw["round"]),
                unit=str(raw["unit"]),
                event=DpSgdEvent.from_dict(raw["event"]),
                previous=str(raw["previous"]),
                hash=str(raw["hash"]),
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            HushtuneError,
        ) as error:
            raise MessageError("a charge is damaged", given=str(error)) from error
        if entry.hash != entry.content_hash():
            raise MessageError("a charge's hash does not fit its content", given=entry.hash)
        return entry
