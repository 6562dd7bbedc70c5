"""Answers are read one after the other, and those that were read are gone."""

from __future__ import annotations

import weakref

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from hushtune.server.replies import each_once


def answer() -> Message:
    array = Array(dtype="uint8", shape=(4,), stype="safetensors", data=b"data")
    return Message(RecordDict({"adapter": ArrayRecord({"state": array})}), 1, "train")


def test_an_answer_goes_when_the_next_one_is_read() -> None:
    # Flower asks it of whoever makes a message.
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    answers = [answer() for _ in range(3)]
    alive = [weakref.ref(message.content["adapter"]) for message in answers]
    for place, message in enumerate(each_once(answers)):
        assert message.content["adapter"] is alive[place]()
        assert [each() is not None for each in alive] == [at >= place for at in range(3)]
    assert not answers
