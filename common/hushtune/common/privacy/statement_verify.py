"""How somebody else verifies a privacy statement, for both of its pages."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from hushtune.common.site_files import site_stem

ASKED = (
    "At each site, with DIR the folder that holds its ledger, this checks every charge and its "
    "link to the one before, and that the ledger holds the last charge that this statement "
    "counts. It may hold more by now: later runs add to it."
)
ANSWERS: Mapping[str, str] = {
    "ok, and the noted head is its last": "nothing was charged since this statement was written",
    "ok, and the ledger has grown since the noted head": "later charges were added; all that this "
    "statement counts is there, unchanged",
    "HT402, it does not hold the noted charge": "an older copy was put back, the charges were "
    "rewritten, or this is another ledger: the statement does not hold for it",
    "HT402 with other words": "a charge, a kept reply or a file of the ledger is damaged, missing "
    "or open to others",
}
"""What `hushtune ledger verify` prints, and what that means."""
STEPS = (
    "The server checks in the same way with the hash that came with any update of the site: what "
    "was charged after that update makes the ledger grow, and changes nothing before it.",
    "`hushtune ledger show DIR` lists the charges by run; those of a run's figures on held-out "
    "rows stand under its name with /metrics.",
    "Give the events of a site to any accountant of differential privacy: each is so many steps of "
    "a Gaussian mechanism with that noise multiplier and sensitivity 1, on a Poisson sample with "
    "that probability, composed. A correct accountant must not find an epsilon above the one here "
    "by more than its own error; a looser one finds more.",
    "All numbers of this page are in `privacy.json`, unrounded; the events are there too.",
)


def commands(content: Mapping[str, Any]) -> Sequence[str]:
    """The command for each site with a ledger, with the head that the statement was made from."""
    return [
        f"hushtune ledger verify DIR --head {shlex.quote(f'{_ledger(name)}={head}')}"
        for name, site in content["sites"].items()
        if (head := site["ledger_head"])
    ]


def _ledger(site: str) -> str:
    """What a site's ledger goes by on the command line; SITE where that cannot be told in a line of
    code, to be filled in by hand."""
    name = unquote(site_stem(site))
    return name if name.isprintable() and not set(name) & set("`<>|") else "SITE"
