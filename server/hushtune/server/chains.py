"""Whether the charges that a site shows continue one chain: a ledger that was rolled back does not.

A site's charges are numbered and chained by hashes over all runs (``ledger_chain``). The server
sees some of them: those of its own runs whose answers arrived. What a site shows for the first time
must come after all that it has shown before, and directly after the last one only with that one's
hash. A ledger that was put back to an earlier state, head file and all, gives a number a second
time, or a number whose neighbour it does not fit, and is found out here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hushtune.common.errors import CheckpointError
from hushtune.common.files import write_text
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.site_files import site_stem

log = logging.getLogger(__name__)

Rows = Mapping[str, tuple[dict[str, Any], ...]]


@dataclass(frozen=True)
class Head:
    """The last charge that a site has shown: its number and hash; ``broken``: why its chain does
    not hold any more, "" while it does."""

    sequence: int = 0
    hash: str = GENESIS
    broken: str = ""

    def after(self, charge: Mapping[str, Any]) -> Head:
        """With a charge (``LedgerEntry.to_dict``) that is shown for the first time.

        Once broken, a chain stays so.
        """
        number, why = int(charge["sequence"]), ""
        if self.broken:
            return self
        if number <= self.sequence:
            why = f"charge {number} after charge {self.sequence} had been shown"
        elif number == self.sequence + 1 and charge["previous"] != self.hash:
            why = f"charge {number}, which does not follow the charge {self.sequence} shown"
        return replace(self, broken=why) if why else Head(number, str(charge["hash"]))


Heads = Mapping[str, Head]


@dataclass(frozen=True)
class Shown:
    """What sites have shown of their ledgers, by name: the charges of the run so far, each once and
    in the order in which they were shown, and the last one before the run."""

    charges: Rows = field(default_factory=dict[str, tuple[dict[str, Any], ...]])
    heads: Heads = field(default_factory=dict[str, Head])

    def head(self, site: str) -> Head:
        """After all that a site has shown."""
        head = self.heads.get(site, Head())
        for row in self.charges.get(site, ()):
            head = head.after(row)
        return head

    def with_charge(self, site: str, entry: LedgerEntry) -> Shown:
        """With a charge more; one that is shown again, with an answer sent again, is no news."""
        rows = self.charges.get(site, ())
        if any(row["hash"] == entry.hash for row in rows):
            return self
        return replace(self, charges={**self.charges, site: (*rows, entry.to_dict())})

    def objection(self, site: str, entry: LedgerEntry) -> str | None:
        """Why an answer that shows this charge must not be used; None where it may be."""
        broken = self.with_charge(site, entry).head(site).broken
        return f"its ledger was rolled back or replaced: it shows {broken}" if broken else None


NOTHING_SHOWN = Shown()


# ------------------------------------------------------------------------- between runs ----


def heads_before(folder: Path, run: str, *, resumed: bool) -> Heads:
    """What sites had shown when a run began, by name; CheckpointError for a damaged file.

    Of a run that goes on, its own checkpoint has what was shown since; where another run came in
    between, nothing is known here, as its charges are later ones.
    """
    found: dict[str, Head] = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        site, last, before, of = _read(path)
        if last.broken or not resumed:
            found[site] = last
        elif of == run:
            found[site] = before
    return found


def note_heads(folder: Path, run: str, charges: Rows, before: Heads) -> None:
    """Keep the last charge that each site has shown, after a run's checkpoint has it.

    A chain that broke stays broken for all later runs, until somebody who has looked into it
    removes the site's file.
    """
    for site, rows in charges.items():
        began = before.get(site, Head())
        head = Shown({site: rows}, {site: began}).head(site)
        path = folder / f"{site_stem(site)}.json"
        if path.is_file():
            _, last, first, of = _read(path)
            if last.broken or (last.sequence > head.sequence and not head.broken):
                continue
            began = first if of == run else began
        if head.broken:
            words, of = "site %s: its ledger was rolled back: it shows %s", {"site": site}
            log.error(words, site, head.broken, extra=of)
        text = {"site": site, "run": run, "last": asdict(head), "before": asdict(began)}
        write_text(path, json.dumps(text, indent=1, sort_keys=True) + "\n")


def _read(path: Path) -> tuple[str, Head, Head, str]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        return str(raw["site"]), _head(raw["last"]), _head(raw["before"]), str(raw["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "what the server noted of a site's ledger cannot be read",
            given=f"{path}: {error}"[:200],
            expected="the file as it was written",
            remedy="put it back from a backup; without it a ledger that was rolled back between "
            "runs is not noticed",
        ) from error


def _head(raw: Mapping[str, Any]) -> Head:
    return Head(int(raw["sequence"]), str(raw["hash"]), str(raw["broken"]))
