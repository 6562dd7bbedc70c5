"""RoundOrder and ClientUpdate as Flower records; the only file with wire keys.

A message carries one JSON text and, where there is one, an adapter as a single Flower ``Array``
whose bytes are safetensors: Flower chunks large arrays by itself, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.privacy.ledger import LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan

_LARGEST = 2**53
"""Numbers in messages stay below what JSON's numbers hold exactly."""
_LONGEST_NAME = 200
METRICS_RUN = "/metrics"
"""What follows a run's name where a ledger charges its figures; no run's own name ends so."""

TRAIN_ACTIONS = ("default", "keys", "shares", "received", "masked", "confirm", "open")
"""What a site can be asked in training: a round, or the exchanges of a secure sum."""

_BODY, _TEXT = "hushtune", "json"
_ADAPTER, _STATE, _SAFETENSORS = "adapter", "state", "safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTraining:
    """How a site trains in one round; nothing in here can change what privacy costs."""

    learning_rate: float
    optimizer: str
    schedule: str
    weight_decay: float
    first_step: int
    schedule_steps: int
    microbatch: int
    sampling_probability: float = 1.0
    """Of a record, where the plan is about clients and says nothing of records."""

    def __post_init__(self) -> None:
        allowed = {
            "learning_rate": _is_number(self.learning_rate) and self.learning_rate > 0,
            "optimizer": self.optimizer in ("adamw", "sgd"),
            "schedule": self.schedule in ("constant", "linear", "cosine"),
            "weight_decay": _is_number(self.weight_decay) and self.weight_decay >= 0,
            "first_step": _is_count(self.first_step, 0),
            "schedule_steps": _is_count(self.schedule_steps, 1),
            "microbatch": _is_count(self.microbatch, 1),
            "sampling_probability": _is_number(self.sampling_probability)
            and 0 < self.sampling_probability <= 1,
        }
        for name, good in allowed.items():
            if not good:
                given = repr(getattr(self, name))[:100]
                raise MessageError(f"{name} of an order has a wrong value", given=given)


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOrder:
    """What the server asks of one site in one round.

    ``adapter`` is the complete global state, ``trainable`` the tensors to train and to send back,
    ``rule`` the aggregation that it is for, ``plan`` the site's plan over the whole run, of which
    this round takes ``local_steps`` steps.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientUpdate:
    """One site's answer: the change of the tensors that it trained."""

    run: str
    round: int
    site: str
    delta: AdapterState
    num_examples: int
    charge: LedgerEntry | None
    noise: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A site's answer when it did not train: the error's stable code and its reason."""

    run: str
    round: int
    site: str
    code: str
    reason: str


def pack(body: Mapping[str, Any], adapter: AdapterState | None) -> RecordDict:
    """A JSON body, and an adapter where there is one, as Flower records."""
    record = RecordDict({_BODY: ConfigRecord({_TEXT: json.dumps(body, sort_keys=True)})})
    if adapter is not None:
        data = adapter.to_bytes()
        array = Array(dtype="uint8", shape=(len(data),), stype=_SAFETENSORS, data=data)
        record[_ADAPTER] = ArrayRecord({_STATE: array})
    return record


def name_of_order(content: RecordDict) -> str:
    """SHA-256, in hexadecimal, of all that an order says: equal for equal orders."""
    digest = hashlib.sha256(str(content.config_records[_BODY][_TEXT]).encode())
    digest.update(content.array_records[_ADAPTER][_STATE].data)
    return digest.hexdigest()


def unpack_body(content: RecordDict) -> dict[str, Any]:
    """The JSON body of a message; raises MessageError."""
    try:
        body = json.loads(str(content.config_records[_BODY][_TEXT]))
    except (KeyError, ValueError, RecursionError) as error:
        raise MessageError("a message is not one of hushtune's", given=str(error)) from error
    if not isinstance(body, dict):
        raise MessageError("a message's body is not an object", given=type(body).__name__)
    return body


def unpack_adapter(content: RecordDict) -> AdapterState:
    """The adapter that a message carries; raises MessageError."""
    try:
        array = content.array_records[_ADAPTER][_STATE]
    except KeyError as error:
        raise MessageError("a message carries no adapter", given=str(error)) from error
    if array.stype != _SAFETENSORS:
        raise MessageError(
            "an adapter is encoded in an unknown way", given=array.stype, expected=_SAFETENSORS
        )
    return AdapterState.from_bytes(array.data)


def with_body(content: RecordDict, body: Mapping[str, Any]) -> RecordDict:
    """The same message with another JSON body."""
    return RecordDict({**content, **pack(body, None)})


def encode_order(order: RoundOrder, **also: Mapping[str, Any]) -> RecordDict:
    """Flower records for an order; ``also`` joins the body."""
    body = {
        **also,
        "run": order.run,
        "round": order.round,
        "site": order.site,
        "trainable": list(order.trainable),
        "rule": order.rule,
        "plan": order.plan.to_dict(),
        "local_steps": order.local_steps,
        "num_examples": order.num_examples,
        "training": asdict(order.training),
    }
    return pack(body, order.adapter)


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
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("an order is damaged", given=str(error)) from error
    missing = [key for key in adapter.spec.all_keys() if key not in adapter.tensors]
    unknown = [key for key in order.trainable if key not in adapter.tensors]
    if missing or unknown or not order.trainable:
        raise MessageError(
            "an order does not carry the adapter that it speaks of",
            given=", ".join(missing + unknown) or "nothing to train",
        )
    return order


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
    return pack(body, update.delta)


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
        charge = body["charge"]
        return ClientUpdate(
            run=read_text(body, "run"),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            delta=unpack_adapter(content),
            num_examples=read_count(body, "num_examples"),
            charge=None if charge is None else LedgerEntry.from_dict(charge),
            noise=read_text(body, "noise"),
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("a reply is damaged", given=str(error)) from error


_ORDER_KEYS = frozenset(
    ["run", "round", "site", "trainable", "rule", "plan", "local_steps", "num_examples", "training"]
)


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """What a site does not know it cannot agree to."""
    unknown = sorted(set(body) - known)
    if unknown:
        raise MessageError("an order asks for what is not known here", given=unknown[0][:100])


def read_text(body: Mapping[str, Any], key: str) -> str:
    """A text of a message's body; MessageError for anything that is none."""
    value = body[key]
    if not isinstance(value, str) or any("\ud800" <= mark <= "\udfff" for mark in value):
        raise MessageError(f"{key} of a message must be a text", given=ascii(value)[:100])
    return value


def read_run(body: Mapping[str, Any]) -> str:
    """The name of an order's run, which must not be taken for that of another run's figures."""
    run = read_text(body, "run")
    if run.endswith(METRICS_RUN):
        raise MessageError(f"a run's name must not end in {METRICS_RUN}", given=ascii(run)[:100])
    if len(run) > _LONGEST_NAME or not run.isprintable():
        raise MessageError(
            "a run's name is too long, or cannot be printed",
            given=ascii(run)[:100],
            expected=f"at most {_LONGEST_NAME} printable characters",
        )
    return run


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < _LARGEST  # NaN is not below anything


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST


def read_count(body: Mapping[str, Any], key: str) -> int:
    """A count of a message's body; MessageError for anything that is none."""
    value = body[key]
    if not isinstance(value, int) or not _is_count(value, 0):
        raise MessageError(f"{key} of a message must be a count", given=repr(value)[:100])
    return value


def encode_hello() -> RecordDict:
    """The question with which a server learns which site a node is."""
    return pack({"ask": "site"}, None)


def decode_hello(content: RecordDict) -> None:
    """Check that a question is the one of ``encode_hello``."""
    if unpack_body(content).get("ask") != "site":
        raise MessageError("a site was asked something that it does not answer")


def encode_site(site: str) -> RecordDict:
    """A site's answer to ``encode_hello``."""
    return pack({"site": site}, None)


def decode_site(content: RecordDict) -> str:
    """Inverse of ``encode_site``."""
    body = unpack_body(content)
    if "site" not in body:
        raise MessageError("a node did not say which site it is")
    return read_text(body, "site")
