"""Which published keys a session can begin with: one false site must not stop the honest ones."""

from __future__ import annotations

from collections.abc import Mapping

from hushtune.common.errors import MessageError
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.wire import SiteKeys

_ANY_KEY = crypto.private_key(bytes(crypto.SEED_BYTES), "any")
"""To try whether a public key is one; nothing is sealed with it."""


def check_keys(keys: SiteKeys, *, steps: int) -> None:
    """MessageError for keys that are not one for each step, are alike, or agree with nobody's."""
    if {len(keys.pair), len(keys.own)} != {steps}:
        raise MessageError("not a key for each step", given=len(keys.pair))
    if len({keys.seal, keys.sign, *keys.pair}) != 2 + steps:
        raise MessageError("two of its keys are the same")
    for key in (keys.seal, *keys.pair):
        crypto.agreed(_ANY_KEY, key)


def copied(keys: Mapping[str, SiteKeys]) -> list[str]:
    """Sites that publish a key of another: one who claims two names has but one."""
    owner: dict[bytes, set[str]] = {}
    for site, own in keys.items():
        for key in (own.seal, own.sign, *own.pair):
            owner.setdefault(key, set()).add(site)
    return sorted({site for sites in owner.values() if len(sites) > 1 for site in sites})
