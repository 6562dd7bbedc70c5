"""RoundOrder and ClientUpdate as Flower records; the only file with wire keys.

A message carries one JSON text and, where there is one, an adapter as a single Flower ``Array``
whose bytes are safetensors: Flower chunks large arrays by itself, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hushtune.common import encoding as encodings
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.local_training import LocalTraining
from hushtune.common.lora_rules import RULES, sent_keys
from hushtune.common.privacy.ledger import LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.records import arrays_of, texts_of
from hushtune.common.wire_values import (
    read_count,
    read_text,
    read_truth,
    refuse_unknown,
)

_LONGEST_NAME = 200
METRICS_RUN, PERSONAL_RUN = "/metrics", "/personal"
"""What follows a run's name where a ledger charges its figures, or what a site trains for itself
alone; no run's own name ends so."""

TRAIN_ACTIONS = ("default", "keys", "shares", "received", "masked", "confirm", "open")
"""What a site can be asked in training: a round, or the exchanges of a secure sum."""

_BODY, _TEXT = "hushtune", "json"
_ADAPTER, _STATE, _CONTROL, _SAFETENSORS = "adapter", "state", "control", "safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOrder:
    """What the server asks of one site in one round.

    ``adapter`` is the complete global state, ``trainable`` the tensors to train, ``rule`` the
    aggregation that it is for, ``plan`` the site's plan over the whole run, of which this round
    takes ``local_steps`` steps. ``personal``: what is trained stays at the site, whole, and begins
    where the site's own adapter was. ``control``: SCAFFOLD's server variate (1910.06378), over
    ``trainable``. ``encoding`` is that of the update's numbers.
    """

    run: str
    round: int
    site: str
    adapter: AdapterState
    trainable: tuple[str, ...]
    rule: str
    plan: PrivacyPlan
    local_steps: int
    num_examples: int
    training: LocalTraining
    personal: bool = False
    control: AdapterState | None = None
    encoding: str = "float32"

    @property
    def sent(self) -> tuple[str, ...]:
        """Keys of the tensors that the site sends back, sorted."""
        return (
            () if self.personal else sent_keys(RULES[self.rule], self.adapter.spec, self.trainable)
        )

    @property
    def charged_run(self) -> str:
        """The name that the site's ledger charges this order under."""
        return f"{self.run}{PERSONAL_RUN}" if self.personal else self.run


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientUpdate:
    """One site's answer: the change of the tensors that it trained and sends.

    ``delta`` is float32 whatever the ``encoding`` in which it crosses, or has crossed, the wire.
    """

    run: str
    round: int
    site: str
    delta: AdapterState
    num_examples: int
    charge: LedgerEntry | None
    noise: str
    encoding: str = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A site's answer when it did not train: the error's stable code and its reason."""

    run: str
    round: int
    site: str
    code: str
    reason: str


def pack(
    body: Mapping[str, Any],
    adapter: AdapterState | None,
    *,
    encoding: str = "float32",
) -> RecordDict:
    """A JSON body, and an adapter where there is one, as Flower records."""
    return _packed(body, {} if adapter is None else {_STATE: _array(adapter, encoding)})


def _packed(body: Mapping[str, Any], arrays: dict[str, Array]) -> RecordDict:
    record = RecordDict({_BODY: ConfigRecord({_TEXT: json.dumps(body, sort_keys=True)})})
    if arrays:
        record[_ADAPTER] = ArrayRecord(arrays)
    return record


def _array(state: AdapterState, encoding: str) -> Array:
    data = encodings.encode(state, encoding)
    return Array(dtype="uint8", shape=(len(data),), stype=_SAFETENSORS, data=data)


def name_of_order(content: RecordDict) -> str:
    """SHA-256, in hexadecimal, of all that an order says: equal for equal orders."""
    digest = hashlib.sha256(str(texts_of(content)[_BODY][_TEXT]).encode())
    arrays = arrays_of(content)[_ADAPTER]
    for name in sorted(arrays):
        digest.update(arrays[name].data)
    return digest.hexdigest()


def unpack_body(content: RecordDict) -> dict[str, Any]:
    """The JSON body of a message; raises MessageError."""
    try:
        body = json.loads(str(texts_of(content)[_BODY][_TEXT]))
    except (KeyError, ValueError, RecursionError) as error:
        raise MessageError("a message is not one of hushtune's", given=str(error)) from error
    if not isinstance(body, dict):
        raise MessageError("a message's body is not an object", given=type(body).__name__)
    return body


def unpack_adapter(content: RecordDict, name: str = _STATE) -> AdapterState:
    """The float32 adapter that a message carries; raises MessageError."""
    return AdapterState.from_bytes(_adapter_bytes(content, name))


def _adapter_bytes(content: RecordDict, name: str = _STATE) -> bytes:
    try:
        array = arrays_of(content)[_ADAPTER][name]
    except KeyError as error:
        raise MessageError("a message carries no adapter", given=str(error)) from error
    if array.stype != _SAFETENSORS:
        raise MessageError(
            "an adapter is encoded in an unknown way", given=array.stype, expected=_SAFETENSORS
        )
    return array.data


def with_body(content: RecordDict, body: Mapping[str, Any]) -> RecordDict:
    """The same message with another JSON body."""
    return RecordDict({**content, **pack(body, None)})


def encode_order(order: RoundOrder) -> RecordDict:
    """Flower records for an order."""
    return encode_orders([order])[0]


def encode_orders(
    orders: Sequence[RoundOrder], also: Sequence[Mapping[str, Any]] | None = None
) -> list[RecordDict]:
    """Flower records for each order; what ``also`` has for it joins its body.

    A state that several orders carry is encoded once, and its bytes are theirs together.
    """
    known: dict[int, Array] = {}

    def array(state: AdapterState) -> Array:
        if id(state) not in known:
            known[id(state)] = _array(state, "float32")
        return known[id(state)]

    records: list[RecordDict] = []
    for order, more in zip(orders, [{}] * len(orders) if also is None else also, strict=True):
        states = {_STATE: order.adapter, _CONTROL: order.control}
        arrays = {name: array(state) for name, state in states.items() if state is not None}
        records.append(_packed({**more, **_order_body(order)}, arrays))
    return records


def _order_body(order: RoundOrder) -> dict[str, Any]:
    return {
        "run": order.run,
        "round": order.round,
        "site": order.site,
        "trainable": list(order.trainable),
        "rule": order.rule,
        "plan": order.plan.to_dict(),
        "local_steps": order.local_steps,
        "num_examples": order.num_examples,
        "training": asdict(order.training),
        "personal": order.personal,
        "control": order.control is not None,
        "encoding": order.encoding,
    }


def decode_order(content: RecordDict) -> RoundOrder:
    """Inverse of ``encode_order``; raises MessageError for anything else."""
    body = unpack_body(content)
    refuse_unknown(body, _ORDER_KEYS)
    adapter = unpack_adapter(content)
    try:
        order = RoundOrder(
            run=read_run(body),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            adapter=adapter,
            trainable=tuple(map(str, body["trainable"])),
            rule=read_text(body, "rule"),
            plan=PrivacyPlan.from_dict(body["plan"]),
            local_steps=read_count(body, "local_steps"),
            num_examples=read_count(body, "num_examples"),
            training=LocalTraining(**body["training"]),
            personal=read_truth(body, "personal"),
            control=unpack_adapter(content, _CONTROL) if read_truth(body, "control") else None,
            encoding=encodings.known(read_text(body, "encoding")),
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("an order is damaged", given=str(error)) from error
    _check_whole(order)
    return order


def _check_whole(order: RoundOrder) -> None:
    adapter = order.adapter
    missing = [key for key in adapter.spec.all_keys() if key not in adapter.tensors]
    unknown = [key for key in order.trainable if key not in adapter.tensors]
    if missing or unknown or not order.trainable or not adapter.is_whole():
        raise MessageError(
            "an order does not carry the adapter that it speaks of",
            given=", ".join(missing + unknown) or "nothing to train, or an unfit change of weights",
        )
    control = order.control
    if control is not None and (
        control.spec != adapter.spec
        or control.keys != tuple(sorted(order.trainable))
        or any(t.shape != adapter.tensors[key].shape for key, t in control.tensors.items())
    ):
        raise MessageError("an order's control variate is not over what it trains")


def encode_update(update: ClientUpdate) -> RecordDict:
    """Flower records for an update; equal updates give equal records."""
    body = {
        "run": update.run,
        "round": update.round,
        "site": update.site,
        "num_examples": update.num_examples,
        "charge": update.charge.to_dict() if update.charge else None,
        "noise": update.noise,
    }
    return pack(body, update.delta, encoding=update.encoding)


def encode_refusal(refusal: Refusal) -> RecordDict:
    """Flower records for a refusal."""
    return pack({**asdict(refusal), "refused": True}, None)


def decode_refusal(content: RecordDict) -> Refusal:
    """Inverse of ``encode_refusal``; raises MessageError."""
    body = unpack_body(content)
    try:
        texts = {name: read_text(body, name) for name in ("run", "site", "code", "reason")}
        return Refusal(round=read_count(body, "round"), **texts)
    except KeyError as error:
        raise MessageError("a refusal is damaged", given=str(error)) from error


def decode_reply(content: RecordDict) -> ClientUpdate | Refusal:
    """Inverse of ``encode_update`` and ``encode_refusal``; raises MessageError."""
    body = unpack_body(content)
    if body.get("refused"):
        return decode_refusal(content)
    try:
        charge, data = body["charge"], _adapter_bytes(content)
        return ClientUpdate(
            run=read_text(body, "run"),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            delta=encodings.decode(data),
            num_examples=read_count(body, "num_examples"),
            charge=None if charge is None else LedgerEntry.from_dict(charge),
            noise=read_text(body, "noise"),
            encoding=encodings.encoding_of(data),
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("a reply is damaged", given=str(error)) from error


_ORDER_KEYS = frozenset(
    (
        *("run", "round", "site", "trainable", "rule", "plan", "local_steps", "num_examples"),
        *("training", "personal", "control", "encoding"),
    )
)


def read_run(body: Mapping[str, Any]) -> str:
    """The name of an order's run, which must not be taken for that of another run's figures."""
    run = read_text(body, "run")
    for ending in (METRICS_RUN, PERSONAL_RUN):
        if run.endswith(ending):
            raise MessageError(f"a run's name must not end in {ending}", given=ascii(run)[:100])
    if len(run) > _LONGEST_NAME or not run.isprintable():
        raise MessageError(
            "a run's name is too long, or cannot be printed",
            given=ascii(run)[:100],
            expected=f"at most {_LONGEST_NAME} printable characters",
        )
    return run
