"""Keys, sealed shares and commitments."""

from __future__ import annotations

import itertools
import os

import pytest

from hushtune.common.errors import MessageError
from hushtune.common.secagg import keys

HOLDERS = ["east", "north", "south", "west"]


def test_two_sites_derive_one_seed_and_another_for_each_purpose() -> None:
    one, other, third = (keys.private_key(os.urandom(16), "p") for _ in range(3))
    mine = keys.pair_seed(one, keys.public_bytes(other), "east", "west", "session", 1)
    theirs = keys.pair_seed(other, keys.public_bytes(one), "west", "east", "session", 1)
    assert mine == theirs
    assert mine != keys.pair_seed(one, keys.public_bytes(other), "east", "west", "session", 2)
    assert mine != keys.pair_seed(third, keys.public_bytes(other), "east", "west", "session", 1)
    assert keys.derive(b"secret", "ab", "c") != keys.derive(b"secret", "a", "bc")


def test_a_sealed_share_is_for_its_receiver_and_cannot_be_altered_or_turned_round() -> None:
    one, other, third = (keys.private_key(os.urandom(16), "p") for _ in range(3))
    labels = ("session", "east", "west")
    sealed = keys.seal(b"shares", one, keys.public_bytes(other), *labels)
    assert keys.unseal(sealed, other, keys.public_bytes(one), *labels) == b"shares"
    for place in range(len(sealed)):
        altered = bytes([*sealed[:place], sealed[place] ^ 1, *sealed[place + 1 :]])
        with pytest.raises(MessageError):
            keys.unseal(altered, other, keys.public_bytes(one), *labels)
    with pytest.raises(MessageError):
        keys.unseal(sealed, third, keys.public_bytes(one), *labels)
    for wrong in (("session", "west", "east"), ("another", "east", "west")):
        with pytest.raises(MessageError):
            keys.unseal(sealed, other, keys.public_bytes(one), *wrong)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(32), bytes(33)])
def test_a_public_key_that_is_none_is_refused(bad: bytes) -> None:
    with pytest.raises(MessageError, match="public key"):
        keys.agreed(keys.private_key(os.urandom(16), "p"), bad)


def test_any_threshold_of_shares_opens_a_seed_and_fewer_do_not() -> None:
    seed = os.urandom(16)
    shares = keys.split(seed, threshold=3, holders=HOLDERS)
    for chosen in itertools.combinations(HOLDERS, 3):
        some = {name: shares[name] for name in chosen}
        assert keys.combine(some, threshold=3, holders=HOLDERS) == seed
    for chosen in itertools.combinations(HOLDERS, 2):
        some = {name: shares[name] for name in chosen}
        assert keys.combine(some, threshold=2, holders=HOLDERS) != seed


def test_a_wrong_share_gives_a_seed_that_does_not_fit_its_commitment() -> None:
    seed = os.urandom(16)
    shares = keys.split(seed, threshold=3, holders=HOLDERS)
    published = keys.commitment(seed, "session", 1)
    shares["east"] = bytes(16)
    found = keys.combine(shares, threshold=3, holders=HOLDERS)
    assert keys.commitment(found, "session", 1) != published
    assert published != keys.commitment(seed, "session", 2)
    assert seed not in published
