"""To which sites a run that has ended was handed over, as its folder tells; loads nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune.common.site_files import STATEMENT_FILE, receipt_file


@dataclass(frozen=True)
class HandedOver:
    """Sites that have signed for a run's model, and why the others have not, by site."""

    signed: tuple[str, ...]
    missing: Mapping[str, str]

    def words(self, *, again: str) -> list[str]:
        """What to tell; ``again``: the command that asks those that are missing.

        >>> HandedOver(("north",), {}).words(again="")
        ['handed over to every site, each with a signed receipt: north']
        >>> for line in HandedOver((), {"west": "not connected"}).words(again="run it again"):
        ...     print(line)
        not handed over to west (not connected): it has neither the model nor a statement yet
        once it is connected: run it again
        """
        if not self.missing:
            sites = ", ".join(self.signed)
            return [f"handed over to every site, each with a signed receipt: {sites}"]
        one = len(self.missing) == 1
        they, have = ("it", "has") if one else ("they", "have")
        who = ", ".join(f"{site} ({reason})" for site, reason in self.missing.items())
        lines = [f"handed over, with a signed receipt: {', '.join(self.signed)}"]
        return (lines if self.signed else []) + [
            f"not handed over to {who}: {they} {have} neither the model nor a statement yet",
            f"once {they} {'is' if one else 'are'} connected: {again}",
        ]


def handed_over(out: Path, sites: Sequence[str]) -> HandedOver:
    """By the statement in a run's folder and the receipts beside it."""
    told = _sites(out)
    missing = {
        site: str(told.get(site, {}).get("missing") or "no receipt is kept")
        for site in sorted(sites)
        if told.get(site, {}).get("receipt") is None or not receipt_file(out, site).is_file()
    }
    return HandedOver(tuple(site for site in sorted(sites) if site not in missing), missing)


def again_command(run: Path) -> str:
    """The command that goes on with a run, or hands one that has ended to those that lack it.

    >>> again_command(Path("coordinator/runs/first"))
    'hushtune server run coordinator --resume --name first'
    """
    return f"hushtune server run {run.parent.parent} --resume --name {run.name}"


def _sites(out: Path) -> Mapping[str, Any]:
    """The statement's; empty where there is none that can be read, so that it is made again."""
    try:
        raw: Any = json.loads((out / STATEMENT_FILE).read_text(encoding="utf-8"))
        sites = raw.get("document", raw)["sites"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return sites if isinstance(sites, dict) else {}
