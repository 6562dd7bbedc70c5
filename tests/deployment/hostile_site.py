"""A site whose key is enrolled and whose answers are not what was asked: another fault a round.

``python hostile_site.py FOLDER`` joins like `hushtune site join`, with its own executor, which is
this same file with that one's arguments. An order of round r is answered with ``FAULTS[r - 1]``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# Flower would cut what is to be too large into pieces of 5 MB; set before it is imported.
os.environ.setdefault("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", str(2**30))

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body

from hushtune.client import app as honest
from hushtune.client.deployment import executor, join, supervisor
from hushtune.client.deployment.runtime import Channel
from hushtune.common.adapter import AdapterState
from hushtune.common.messages import pack, unpack_adapter, unpack_body, with_body

Content = Callable[[RecordDict], RecordDict]
REQUEST, PIECES = 4 * 2**20, 20
"""Bytes that the test's server takes in one request; pieces of half of it, too many together."""
_kept: dict[str, RecordDict] = {}
_twice: list[bool] = []


def _tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Content:
    def changed(content: RecordDict) -> RecordDict:
        state = unpack_adapter(content)
        other = {key: change(tensor) for key, tensor in state.tensors.items()}
        return pack(unpack_body(content), AdapterState(state.spec, other))

    return changed


def _body(**other: Any) -> Content:
    return lambda content: with_body(content, {**unpack_body(content), **other})


def _arrays(data: Callable[[], Mapping[str, Any]]) -> Content:
    def changed(content: RecordDict) -> RecordDict:
        return RecordDict({**content, "adapter": ArrayRecord(dict(data()))})

    return changed


def _bytes(size: int) -> Mapping[str, Array]:
    data = os.urandom(size)
    return {"state": Array(dtype="uint8", shape=(size,), stype="safetensors", data=data)}


def _missing(content: RecordDict) -> RecordDict:
    state = unpack_adapter(content)
    first = min(state.tensors)
    rest = {key: tensor for key, tensor in state.tensors.items() if key != first}
    return pack(unpack_body(content), AdapterState(state.spec, rest))


def _keep(content: RecordDict) -> RecordDict:
    return _kept.setdefault("first", content)


def _again(content: RecordDict) -> RecordDict:
    _twice.append(True)
    return content


def _infinite(content: RecordDict) -> RecordDict:
    shape: list[float] = [float("inf")]
    head = {"texts": {}, "arrays": [["adapter", "state", "uint8", shape, "safetensors", 3]]}
    record = ConfigRecord({"head": json.dumps(head), "data": b"abc"})
    return RecordDict({"hushtune.envelope": record})


def _like(kind: type, name: str) -> Content:
    """Records that go to Flower as an object of another class, or of their own with a bad body."""

    def changed(content: RecordDict) -> RecordDict:
        # A number in it, so that it goes as it is, in no envelope.
        return kind({"hushtune": ConfigRecord({"json": 3})})

    kind.__qualname__ = name
    return changed


class _Damaged(RecordDict):
    def deflate(self) -> bytes:
        return add_header_to_object_body(b"{", self)


class _Unknown(RecordDict):
    pass


class _Root(Message):
    """A message that says it is records, of which it has none."""

    children = {}  # noqa: RUF012

    def deflate(self) -> bytes:
        return add_header_to_object_body(b"{}", self)


class _Forged(Message):
    """A message that says, where Flower's server does not look, that another node has sent it."""

    def deflate(self) -> bytes:
        true = self.metadata.src_node_id
        self.metadata.__dict__["_src_node_id"] = true + 1
        try:
            return super().deflate()
        finally:
            self.metadata.__dict__["_src_node_id"] = true


_Root.__qualname__ = "RecordDict"
_Forged.__qualname__ = "Message"
MESSAGES: Mapping[str, type[Message]] = {"wrong root": _Root, "forged sender": _Forged}


FAULTS: Mapping[str, Content] = {
    "honest": _keep,
    "nan": _tensors(lambda tensor: torch.full_like(tensor, float("nan"))),
    "shape": _tensors(lambda tensor: torch.zeros(3, 3)),
    "norm": _tensors(lambda tensor: tensor + 1e20),
    "missing": _missing,
    "run": _body(run="another run"),
    "replayed": lambda content: _kept["first"],
    "site": _body(site="north"),
    "charge": _body(charge=None),
    "junk": _arrays(lambda: _bytes(1000)),
    "no message": lambda content: RecordDict(),
    "infinite shape": _infinite,
    "damaged body": _like(_Damaged, "RecordDict"),
    "unknown class": _like(_Unknown, "CustomDataClass"),  # of which Flower lets this one pass
    "wrong root": lambda content: content,
    "forged sender": lambda content: content,
    "twice": _again,
    "too large": _arrays(lambda: _bytes(REQUEST + 2**20)),
    "in pieces": _arrays(lambda: {str(i): _bytes(REQUEST // 2)["state"] for i in range(PIECES)}),
    "honest again": lambda content: content,
}


def answer(message: Message, context: Context) -> Message:
    """The site's own answer, with the round's fault in it."""
    reply = honest.app(message, context)
    if message.metadata.message_type != "train" or reply.has_error():
        return reply
    name = list(FAULTS)[int(message.metadata.group_id) - 1]
    reply.content = FAULTS[name](reply.content)
    reply.__class__ = MESSAGES.get(name, Message)
    return reply


def _answer_twice(answered: Callable[..., None]) -> Callable[..., None]:
    def hand_over(channel: Channel, reply: Message, context: Context) -> None:
        answered(channel, reply, context)
        if _twice:
            _twice.clear()
            answered(channel, reply, context)

    return hand_over


if __name__ == "__main__":
    if len(sys.argv) > 2:
        executor.app = answer
        Channel.answer = _answer_twice(Channel.answer)
        executor.main()
    else:
        supervisor.MODULES[supervisor.EXECUTOR] = Path(__file__).stem
        own = str(Path(__file__).parent)
        os.environ["PYTHONPATH"] = os.pathsep.join([own, os.environ.get("PYTHONPATH", "")])
        join.join(Path(sys.argv[1]))
