"""What a site remembers of a session of secure sums, in the node's own Flower state.

The node gets that state after the answer has left, and a crash in between puts back the one before.
What a site decides once and for all is therefore in its ledger before its answer leaves (``hold``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict

from hushtune.client.site import Site
from hushtune.common.errors import SecureSumError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.records import texts_of
from hushtune.common.secagg import agreement
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.wire import KeysOrder, SiteKeys

_STATE, _TEXT = "hushtune.secure", "json"
PAIR, OWN = "pair", "own"


@dataclass
class Session:
    """What a site knows of a session; all secrets of it but what the ledger has."""

    raw: dict[str, Any]
    site: str

    @property
    def name(self) -> str:
        return self.raw["session"]

    @property
    def cohort(self) -> Cohort:
        sites, least, false = self.raw["cohort"]
        return Cohort(sites=tuple(sites), min_survivors=least, colluding=false)

    @property
    def steps(self) -> list[int]:
        return self.raw["steps"]

    def place(self, step: int) -> int:
        """Of a step in the session; SecureSumError for one that is not in it."""
        if step not in self.steps:
            raise SecureSumError("a step is not one of this session", given=step)
        return self.steps.index(step)

    def seed(self, kind: str, place: int) -> bytes:
        return bytes.fromhex(self.raw[kind][place])

    def sealing(self) -> crypto.X25519PrivateKey:
        return crypto.private_key(bytes.fromhex(self.raw["seal"]), "seal", self.name)

    def signing(self) -> Ed25519PrivateKey:
        return agreement.signing_key(bytes.fromhex(self.raw["seal"]), self.name)

    def pairing(self, place: int) -> crypto.X25519PrivateKey:
        return pair_key(self.seed(PAIR, place), self.name, self.steps[place])

    def published(self) -> SiteKeys:
        places = range(len(self.steps))
        return SiteKeys(
            seal=crypto.public_bytes(self.sealing()),
            sign=self.signing().public_key().public_bytes_raw(),
            pair=tuple(crypto.public_bytes(self.pairing(place)) for place in places),
            own=tuple(
                crypto.commitment(self.seed(OWN, place), self.name, self.steps[place])
                for place in places
            ),
        )

    @property
    def kept_as(self) -> str:
        """What the site's ledger knows the session by: its name, and a key that is made with its
        secrets. A server that has a session of the same name begun anew, when the ledger has let
        go of it, does not bring back what those secrets were asked for."""
        return f"{self.name} {self.signing().public_key().public_bytes_raw().hex()}"

    def keep_keys(self, keys: Mapping[str, SiteKeys]) -> None:
        """Remember what all sites have published; of their commitments the digest will do."""
        self.raw["digest"] = agreement.keys_digest(keys)
        self.raw["keys"] = {
            name: {
                "seal": own.seal.hex(),
                "sign": own.sign.hex(),
                "pair": [key.hex() for key in own.pair],
            }
            for name, own in keys.items()
        }

    def pair_keys(self) -> dict[str, list[bytes]]:
        """The public keys for masks of all sites of the session, by name."""
        return {n: [bytes.fromhex(k) for k in own["pair"]] for n, own in self.raw["keys"].items()}

    def signing_keys(self) -> dict[str, bytes]:
        """The keys that signatures are checked by, of all sites of the session."""
        return {n: bytes.fromhex(own["sign"]) for n, own in self.raw["keys"].items()}

    def neighbours(self) -> tuple[str, ...]:
        """Those among whom this site splits its secrets, of the sites whose keys it has."""
        around = self.cohort.neighbours(self.site, session=self.name)
        return tuple(name for name in around if name in self.raw["keys"])

    def partners(self) -> tuple[str, ...]:
        """Those with whom this site shares masks: neighbours that have shared their secrets."""
        return tuple(name for name in self.neighbours() if name in self.raw["sharing"])

    def shared_text(self) -> bytes:
        """What this site signs of who has shared secrets."""
        return agreement.shared_text(self.name, self.raw["digest"], self.raw["sharing"])

    def arrived_text(self, step: int, survivors: Sequence[str]) -> bytes:
        """What this site signs of whose sums of a step arrived."""
        return agreement.arrived_text(
            self.name, self.raw["digest"], self.raw["sharing"], step=step, survivors=survivors
        )

    def agree(self, signatures: Mapping[str, bytes], text: bytes) -> bool:
        """Whether enough sites have signed a text; see ``agreement`` for why none must where all
        have to stay."""
        if not self.cohort.needs_agreement:
            return True
        signed = agreement.agreeing(signatures, text, keys=self.signing_keys())
        return len(signed) >= self.cohort.min_survivors

    def received(self) -> dict[str, list[list[str]]]:
        """By sender, this site's share of each step's own and pair seed; its own share too."""
        return self.raw["received"]


def pair_key(seed: bytes, session: str, step: int) -> crypto.X25519PrivateKey:
    """The private key for the masks that a site shares in one step."""
    return crypto.private_key(seed, PAIR, session, step)


def begun(order: KeysOrder, site: str, digest: str) -> Session:
    def seeds(count: int) -> list[str]:
        return [os.urandom(crypto.SEED_BYTES).hex() for _ in range(count)]

    raw = {
        "session": order.session,
        "run": order.run,
        "order": digest,
        "cohort": [list(order.cohort.sites), order.cohort.min_survivors, order.cohort.colluding],
        "plan": order.plan.to_dict(),
        "steps": list(order.steps),
        "seal": seeds(1)[0],
        PAIR: seeds(len(order.steps)),
        OWN: seeds(len(order.steps)),
        "digest": "",
        "keys": {},
        "sealed": {},
        "sharing": [],
        "received": {},
        "false": [],
        "agreed": False,
    }
    return Session(raw, site)


def current(state: RecordDict, site: Site, run: str, session: str) -> Session:
    known = load(state, site.name)
    if known is None or (known.name, known.raw["run"]) != (session, run):
        raise SecureSumError("this site knows nothing of the session", given=session)
    return known


def load(state: RecordDict, site: str) -> Session | None:
    record = texts_of(state).get(_STATE)
    return None if record is None else Session(json.loads(str(record[_TEXT])), site)


def begin(site: Site, session: Session) -> None:
    """Let the site's ledger know that a session begins."""
    _ledger(site).begin_session(session.kept_as)


def hold(site: Site, session: Session, about: str, value: object, *, changed: str) -> None:
    """Hold a session to the first ``value`` (JSON), durably; SecureSumError, ``changed``, for
    another one, or where the site's ledger does not know the session."""
    if not _ledger(site).decide(session.kept_as, about, json.dumps(value).encode()):
        raise SecureSumError(changed)


def _ledger(site: Site) -> Ledger:
    if site.ledger is None:
        raise SecureSumError("a site without a ledger takes part in no secure sum")
    return site.ledger


def save(state: RecordDict, session: Session) -> None:
    state[_STATE] = ConfigRecord({_TEXT: json.dumps(session.raw)})
