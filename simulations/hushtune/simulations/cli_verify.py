"""``hushtune verify``: hashes, signatures and figures of a run's results, checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hushtune.common.errors import MissingFileError

FAILED = 1
_WORDS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("not checked", "yellow")}


def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="a site's runs/RUN, or a run's folder at a coordinator"),
    ],
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="FILE", help="federation.toml, or a site's NAME.pub"),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option("--ledger", metavar="FILE", help="the site's policy.sqlite")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the last line printed is JSON")] = False,
) -> None:
    """Check a run's results: hashes, signatures, the ledger, and the figures that follow from it.

    Keys are taken from the site's or the coordinator's folder around DIR, and from --key.
    """
    from hushtune.client.deployment.handover import RECORD_FILE
    from hushtune.client.deployment.verify import verify_site
    from hushtune.common.site_files import STATEMENT_FILE
    from hushtune.common.verify_federation import verify_federation
    from hushtune.simulations.reporting.points import SUMMARY
    from hushtune.simulations.verify_keys import keys_around, site_of

    known = keys_around(folder, key or ())
    if (folder / RECORD_FILE).is_file():
        checks = verify_site(
            folder,
            sign_key=known.coordinator,
            site_key=known.sites.get(site_of(folder / RECORD_FILE)),
            ledger=ledger or known.ledger,
        )
    elif (folder / STATEMENT_FILE).is_file():
        checks = verify_federation(folder, sign_key=known.coordinator, site_keys=known.sites)
    elif (folder / SUMMARY).is_file():
        raise MissingFileError(
            "this is a simulation's folder, in which nothing is signed",
            file=folder,
            expected=f"{RECORD_FILE} of a site, or {STATEMENT_FILE} of a coordinator",
            remedy=f"`hushtune ledger verify {folder}` checks the ledgers that its figures rest on",
        )
    else:
        raise MissingFileError(
            "this folder has no results of a run that was handed over",
            file=folder,
            expected=f"{RECORD_FILE} of a site, or {STATEMENT_FILE} of a coordinator",
            remedy="name a site's runs/RUN, or a run's folder in the coordinator's runs",
        )
    good = not any(check.ok is False for check in checks)
    table = Table("what", "", "", box=None)
    for check in checks:
        word, style = _WORDS[check.ok]
        table.add_row(Text(check.what), Text(word, style=style), Text(check.told, overflow="fold"))
    Console(stderr=as_json).print(table)
    if as_json:
        said: dict[str, Any] = {"ok": good, "checks": [asdict(check) for check in checks]}
        typer.echo(json.dumps(said, sort_keys=True))
    if not good:
        raise typer.Exit(FAILED)
