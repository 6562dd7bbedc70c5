"""The public keys that a run's results are checked by: of the folder around them, or given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune.client.deployment.site_file import SITE_FILE, SiteFile
from hushtune.common.deployment import Invitation, SiteCard
from hushtune.common.signing import load_signing_key, public_text

INVITATION = "federation.toml"


@dataclass(frozen=True)
class Keys:
    """Public keys in base64, those of the sites by name, and where a site's ledger is."""

    coordinator: str | None
    sites: Mapping[str, str]
    ledger: Path | None


def keys_around(folder: Path, given: Iterable[Path]) -> Keys:
    """``folder``: ``runs/RUN`` of a site or a coordinator. What is given goes before what is there.

    Raises what reading a given file raises.
    """
    home = folder.absolute().parent.parent
    coordinator, ledger = None, None
    sites: dict[str, str] = {}
    if (home / SITE_FILE).is_file():
        own = SiteFile.read(home)
        coordinator, ledger = own.table.server.sign_key, own.ledger
        sites[own.name] = _own_key(own)
    elif (home / INVITATION).is_file():
        coordinator = Invitation.read(home / INVITATION).sign_key
        for path in sorted((home / "sites").glob("*.json")):
            card = _enrolled(path)
            if card is not None:
                sites[card.name] = card.sign_key
    for file in given:
        if file.suffix == ".toml":
            coordinator = Invitation.read(file).sign_key
        else:
            card = SiteCard.read(file)
            sites[card.name] = card.sign_key
    return Keys(coordinator, sites, ledger)


def site_of(record: Path) -> str:
    """Whose results a record is of, as it says itself; "" where it says nothing."""
    try:
        raw: Any = json.loads(record.read_text(encoding="utf-8"))
        return str(raw["document"]["site"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _own_key(own: SiteFile) -> str:
    """Of the site's card, so that whoever verifies need not be able to sign."""
    card = own.folder / f"{own.name}.pub"
    if card.is_file():
        return SiteCard.read(card).sign_key
    return public_text(load_signing_key(own.sign_key))


def _enrolled(path: Path) -> SiteCard | None:
    """The card in an enrolled site's file, which has more in it; None for another file."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        return SiteCard.model_validate({key: raw[key] for key in SiteCard.model_fields})
    except (OSError, ValueError, KeyError, TypeError):
        return None
