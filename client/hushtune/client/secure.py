"""A site's part in a secure sum: keys, sealed shares, and masked sums; ``opening`` has the rest.

What the site must remember between messages lies in the node's own Flower state: a site that lost
it has dropped out. What it must never decide again is in its ledger.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from flwr.app import RecordDict

from hushtune.client.charging import check_whole_run
from hushtune.client.rounds import trained
from hushtune.client.session import OWN, PAIR, Session, begin, begun, current, hold, load, save
from hushtune.client.site import Site
from hushtune.client.train import gradient_sum
from hushtune.common.errors import MessageError, SecureSumError
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.discrete import discrete_gaussian
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Unit
from hushtune.common.records import texts_of
from hushtune.common.secagg import agreement
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.ring import mask, to_ring
from hushtune.common.secagg.wire import (
    Received,
    ReceivedOrder,
    SharesOrder,
    SiteKeys,
    decode_keys_order,
    decode_received_order,
    decode_shares_order,
    encode_keys,
    encode_received,
    encode_shares,
)
from hushtune.common.secagg.wire_step import StepOrder

log = logging.getLogger(__name__)


def answer_keys(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """Begin a session: make its secrets, and publish the keys."""
    order = decode_keys_order(content)
    site.policy.check_session(order)
    known = load(state, site.name)
    digest = _digest(content)
    if known is None or known.name != order.session:
        if site.ledger is not None:
            check_whole_run(order.run, site=site, ledger=site.ledger)
        known = begun(order, site.name, digest)
        begin(site, known)
        save(state, known)
    elif known.raw["order"] != digest:
        raise SecureSumError("a session was begun with other sites, steps or a plan")
    return encode_keys(order.session, site.name, known.published())


def answer_shares(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """Split the seeds of this site's masks among its neighbours, sealed for each."""
    order = decode_shares_order(content)
    session = current(state, site, order.run, order.session)
    begins = not session.raw["keys"]
    if begins:
        _check_keys(order, session)
    changed = "the keys of a session were changed while it was going on"
    hold(site, session, "keys", agreement.keys_digest(order.keys), changed=changed)
    if begins:
        session.keep_keys(order.keys)
        _share(session, order.keys)
        save(state, session)
    sealed = {name: bytes.fromhex(text) for name, text in session.raw["sealed"].items()}
    return encode_shares(session.name, site.name, sealed)


def _check_keys(order: SharesOrder, session: Session) -> None:
    keys, cohort, number = order.keys, session.cohort, len(session.steps)
    if keys.get(session.site) != session.published():
        raise SecureSumError("this site's own keys came back changed, or not at all")
    strange = sorted(set(keys) - set(cohort.sites))
    if strange or len(keys) < cohort.min_survivors:
        raise SecureSumError(
            "the keys are not those of enough sites of this session",
            given=strange[0][:100] if strange else f"{len(keys)} sites",
            expected=f"{cohort.min_survivors} or more of {len(cohort.sites)} sites",
        )
    if any(len(own.pair) != number or len(own.own) != number for own in keys.values()):
        raise SecureSumError("a site has not a key for each step of the session")
    public = [key for own in keys.values() for key in (own.seal, own.sign, *own.pair)]
    if len(set(public)) != len(public):
        raise SecureSumError("two sites have one key: somebody claims to be two")


def _share(session: Session, keys: Mapping[str, SiteKeys]) -> None:
    around = session.neighbours()
    holders = sorted((*around, session.site))
    threshold = session.cohort.share_threshold
    if len(holders) < threshold:
        raise SecureSumError(
            "too few sites hold shares", given=len(holders), expected=f"{threshold} or more"
        )
    shares: dict[str, list[list[str]]] = {name: [] for name in holders}
    for place in range(len(session.steps)):
        split = [
            crypto.split(session.seed(kind, place), threshold=threshold, holders=holders)
            for kind in (OWN, PAIR)
        ]
        for name in holders:
            shares[name].append([part[name].hex() for part in split])
    mine = session.sealing()
    for name in around:
        text = b"".join(bytes.fromhex(part) for pair in shares[name] for part in pair)
        labels = (session.name, session.site, name)
        session.raw["sealed"][name] = crypto.seal(text, mine, keys[name].seal, *labels).hex()
    session.raw["received"] = {session.site: shares[session.site]}


def answer_received(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """Take in what other sites have sealed for this one, and sign who has shared."""
    order = decode_received_order(content)
    session = current(state, site, order.run, order.session)
    begins = not session.raw["sharing"]
    if begins:
        _check_sharing(order, session)
    changed = "who has shared secrets was changed after this site had signed it"
    hold(site, session, "sharing", order.sharing, changed=changed)
    if begins:
        session.raw["sharing"] = list(order.sharing)
        _receive(session, order.sealed)
        save(state, session)
    return encode_received(
        Received(
            session=session.name,
            site=site.name,
            false=tuple(session.raw["false"]),
            signature=session.signing().sign(session.shared_text()),
        )
    )


def _check_sharing(order: ReceivedOrder, session: Session) -> None:
    names, cohort = order.sharing, session.cohort
    known = set(session.raw["keys"])
    if session.site not in names or not set(names) <= known or list(names) != sorted(set(names)):
        raise SecureSumError("who has shared is not this site and others of the session, each once")
    around = 1 + sum(name in names for name in session.neighbours())
    if len(names) < cohort.min_survivors or around < cohort.share_threshold:
        raise SecureSumError(
            "too few sites have shared what opens their masks",
            given=f"{len(names)} sites, {around} of them at this site",
            expected=f"{cohort.min_survivors} or more, and {cohort.share_threshold} at each",
        )


def _receive(session: Session, sealed: Mapping[str, bytes]) -> None:
    """Open the shares that other sites have sealed for this one.

    One that cannot be opened is as good as none: this site then has nothing to add where that
    sender's masks have to come off. It shares masks with the sender all the same.
    """
    mine = session.sealing()
    for name in session.partners():
        theirs = bytes.fromhex(session.raw["keys"][name]["seal"])
        labels = (session.name, name, session.site)
        try:
            text = crypto.unseal(sealed.get(name, b""), mine, theirs, *labels)
            session.raw["received"][name] = _read_shares(text, len(session.steps))
        except (MessageError, SecureSumError) as error:
            log.warning("site %s has no share from %s: %s", session.site, name, error)
            session.raw["false"].append(name)


def _read_shares(text: bytes, steps: int) -> list[list[str]]:
    """Of each step a share of the own and of the pair seed, hexadecimal, 16 bytes each."""
    size = crypto.SEED_BYTES
    if len(text) != steps * 2 * size:
        raise SecureSumError("a sealed share does not hold two seeds for each step")
    parts = [text[place : place + size].hex() for place in range(0, len(text), size)]
    return [parts[place : place + 2] for place in range(0, len(parts), 2)]


def masked(order: StepOrder, site: Site, state: RecordDict) -> Callable[[RoundOrder, int], bytes]:
    """What computes this site's masked sum for an order that fits its session."""
    asked = order.order
    session = current(state, site, asked.run, order.session)
    place = session.place(asked.round)
    if asked.plan.to_dict() != session.raw["plan"]:
        raise SecureSumError("an order has another plan than its session")
    if not session.raw["sharing"]:
        raise SecureSumError("a step was ordered before keys and shares were exchanged")
    if not session.raw["agreed"]:
        if not session.agree(order.agreed, session.shared_text()):
            raise SecureSumError(
                "too few sites have confirmed who has shared secrets: they were told otherwise",
                expected=f"{session.cohort.min_survivors} or more",
            )
        session.raw["agreed"] = True
        save(state, session)

    def compute(order: RoundOrder, sequence: int) -> bytes:
        values = one_vector(_clipped(order, site, sequence=sequence))
        std = session.cohort.share_std(order.plan.noise_multiplier, values.size)
        total = to_ring(values, clip_norm=order.plan.clip_norm)
        total += discrete_gaussian(site.noise, values.size, std=std).view(np.uint64)
        for sign, seed in _mask_seeds(session, place):
            total = total + mask(seed, total.size) if sign > 0 else total - mask(seed, total.size)
        return total.astype("<u8").tobytes()

    return compute


def described(noise: NoiseSource) -> str:
    """One line on where a share of the noise came from."""
    if not noise.secure:
        return noise.description
    return (
        "ChaCha20 keystream, a fresh 256-bit key from the operating system for each draw; discrete "
        "Gaussian by rejection in float64, in whole numbers"
    )


def _mask_seeds(session: Session, place: int) -> list[tuple[int, bytes]]:
    """The masks of this site in a step: its own, and one for each neighbour, added by one of the
    two and taken away by the other."""
    step, name = session.steps[place], session.name
    mine, keys = session.pairing(place), session.pair_keys()
    found = [(1, crypto.own_seed(session.seed(OWN, place), name, step))]
    for other in session.partners():
        seed = crypto.pair_seed(mine, keys[other][place], session.site, other, name, step)
        found.append((1 if session.site < other else -1, seed))
    return found


def _clipped(order: RoundOrder, site: Site, *, sequence: int) -> Mapping[str, torch.Tensor]:
    """The site's vector: a sum of clipped gradients, or the clipped change of a client."""
    if order.plan.unit is not Unit.CLIENT:
        random = site.batch_randomness(order.run, order.round, sequence)
        return gradient_sum(order, task=site.task, units=site.units, random=random)
    if not len(site.units):  # a client without records is one that is not there
        return order.adapter.select(order.sent).map(torch.zeros_like).tensors
    found = trained(order, site, sequence=sequence)
    found.keep()
    change = found.sent
    norm = change.norm()
    if not math.isfinite(norm):
        return change.map(torch.zeros_like).tensors
    factor = min(1.0, order.plan.clip_norm / max(norm, 1e-300))
    return {key: factor * tensor.double() for key, tensor in change.tensors.items()}


def one_vector(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """All values in the order of their keys, float64."""
    return np.concatenate([tensors[key].double().numpy().reshape(-1) for key in sorted(tensors)])


def _digest(content: RecordDict) -> str:
    record = next(iter(texts_of(content).values()))
    return hashlib.sha256("".join(map(str, record.values())).encode()).hexdigest()
