"""Which sites a coordinator knows: a card becomes a node of Flower's, and can be taken back."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import Field

from hushtune.common.deployment import SiteCard
from hushtune.common.errors import DeploymentError, EnrolmentError
from hushtune.common.files import write_text
from hushtune.server.deployment.control import control
from hushtune.server.deployment.home import Home

log = logging.getLogger(__name__)


class _SiteFile(SiteCard):
    """``sites/NAME.json``."""

    node_id: Annotated[int, Field(gt=0)]
    enrolled: str


@dataclass(frozen=True)
class Enrolled:
    """An enrolled site: its card, the node that Flower knows its key by, and since when."""

    card: SiteCard
    node: int
    since: str


def pem_key(card: SiteCard) -> bytes:
    """A card's node key as Flower's messages carry it."""
    key = load_ssh_public_key(card.node_key.encode("ascii"))
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def enrolled_sites(home: Home) -> dict[str, Enrolled]:
    """The enrolled sites by name, sorted; DeploymentError for a file that is none."""
    found = [_read(path) for path in home.sites.glob("*.json")]
    return {site.card.name: site for site in sorted(found, key=lambda site: site.card.name)}


def enrol(home: Home, card: SiteCard) -> Enrolled:
    """Register a site's node at the running server and keep its card.

    What an enrolment that was interrupted, or revoked, has left is taken up.

    Raises:
        EnrolmentError: its name or one of its keys is enrolled already.
        UnreachableError: the server does not run.
    """
    from flwr.proto.control_pb2 import (  # pylint: disable=no-name-in-module
        ListNodesRequest,
        RegisterNodeRequest,
    )

    _check_new(card, enrolled_sites(home), home)
    key = pem_key(card)
    with control(home) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
        known = [node.node_id for node in nodes if node.public_key == key]
        if known:
            node_id = known[0]
        else:
            asked = RegisterNodeRequest(public_key=key, name=card.name)
            node_id = client.RegisterNode(asked).node_id
    since = datetime.now(UTC).isoformat(timespec="seconds")
    kept = _SiteFile(**card.model_dump(), node_id=node_id, enrolled=since)
    write_text(home.sites / f"{card.name}.json", json.dumps(kept.model_dump(), indent=1) + "\n")
    return Enrolled(card, node_id, since)


def revoke(home: Home, name: str) -> Enrolled:
    """Let a site in no more, at once, until it is enrolled again.

    The guard lets in whoever has a card here. Flower keeps the node: of one that it has let go it
    never takes the key again.
    """
    sites = enrolled_sites(home)
    if name not in sites:
        raise EnrolmentError(
            "no site of that name is enrolled",
            given=name,
            expected=", ".join(sites) or "there is none yet",
            remedy="name one of these",
        )
    (home.sites / f"{name}.json").unlink()
    return sites[name]


class KnownKeys:
    """The keys of the enrolled sites, read again whenever a card comes, goes or is changed.

    A file that cannot be read keeps out its own site alone; the commands of this machine refuse it.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._stamp: tuple[tuple[str, int, int], ...] | None = None
        self._keys: Mapping[bytes, str] = {}

    def __call__(self) -> Mapping[bytes, str]:
        with self._lock:
            paths = sorted(self._home.sites.glob("*.json"))
            stamp = tuple(mark for path in paths for mark in _mark(path))
            if stamp != self._stamp:
                self._keys = {key: name for path in paths for key, name in _key(path)}
                self._stamp = stamp
            return self._keys


def _mark(path: Path) -> list[tuple[str, int, int]]:
    """What changes whenever a file does; nothing for one that has just been removed."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [(path.name, found.st_mtime_ns, found.st_ino)]


def _key(path: Path) -> list[tuple[bytes, str]]:
    """The key of the site of one file, and its name; nothing where it cannot be read."""
    try:
        card = _read(path).card
        return [(pem_key(card), card.name)]
    except (DeploymentError, ValueError, UnsupportedAlgorithm) as error:
        if path.exists():
            log.warning("a site is not let in: %s", error)
        return []


def _check_new(card: SiteCard, sites: Mapping[str, Enrolled], home: Home) -> None:
    keys = {"node_key": "node's key", "sign_key": "signing key"}
    # On a file system that knows no capitals NORTH.json would be north.json.
    same = [name for name in sites if name.lower() == card.name.lower()]
    if same:
        equal = all(getattr(sites[same[0]].card, key) == getattr(card, key) for key in keys)
        how = "with the same keys" if equal else "with another key"
        raise EnrolmentError(
            f"a site of that name is enrolled already, {how}",
            given=card.name,
            expected="a new name",
            remedy="nothing is left to do"
            if equal
            else f"if its keys were made anew: hushtune server revoke {home.folder} {same[0]}",
        )
    for key, words in keys.items():
        own = getattr(card, key)
        other = [name for name, site in sites.items() if getattr(site.card, key) == own]
        if other:
            raise EnrolmentError(
                f"the {words} of this card is enrolled already, as another site's",
                given=f"{card.name}, with the key of {other[0]}",
                expected="keys of its own for each site",
                remedy="ask the site for the card that its own `hushtune site init` wrote",
            )


def _read(path: Path) -> Enrolled:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        kept = _SiteFile.model_validate(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise DeploymentError(
            "the file of an enrolled site cannot be read",
            given=f"{path}: {str(error).splitlines()[0][:150]}",
            expected="the file that `hushtune server enrol` has written",
            remedy="put it back from a backup, or remove it and enrol the site again",
        ) from error
    card = SiteCard(name=kept.name, node_key=kept.node_key, sign_key=kept.sign_key)
    return Enrolled(card, kept.node_id, kept.enrolled)
