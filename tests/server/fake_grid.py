"""A Flower grid whose nodes are plain functions, and small things to federate over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import ClientUpdate, RoundOrder, decode_order, encode_update
from hushtune.common.privacy.ledger_entry import GENESIS, RECORD, LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.roll_call_messages import decode_hello, encode_site

SPEC = AdapterSpec(
    base="f" * 64, rank=2, alpha=2.0, rslora=False, targets=("layer.q",), head=("bias", "weight")
)
SHAPES = {
    "head.bias": (3,),
    "head.weight": (3, 5),
    "layer.q.lora_A": (2, 5),
    "layer.q.lora_B": (7, 2),
}

Train = Callable[[RoundOrder], RecordDict]


def state(seed: int = 0, keys: Iterable[str] = tuple(SHAPES)) -> AdapterState:
    """A drawn state over ``keys``."""
    random = torch.Generator().manual_seed(seed)
    drawn = {key: torch.randn(shape, generator=random) for key, shape in SHAPES.items()}
    return AdapterState(SPEC, {key: drawn[key] for key in keys})


def plan(*, private: bool = True, steps: int = 12) -> PrivacyPlan:
    """A plan with given noise: nothing is calibrated here."""
    inf = float("inf")
    return PrivacyPlan(
        epsilon=3.0 if private else inf,
        delta=1e-5,
        sampling_probability=0.1,
        noise_multiplier=2.0 if private else 0.0,
        clip_norm=1.0 if private else inf,
        denominator=10.0,
        steps=steps,
        unit=Unit.EXAMPLE,
        relation=Relation.ADD_OR_REMOVE_ONE,
        trust=Trust.SITE if private else Trust.OFF,
    )


def config(**sections: Mapping[str, object]) -> RunConfig:
    """A run of six rounds, two of them warm-up, unless ``sections`` say otherwise."""
    train = {"rounds": 6, "local_steps": 2} | dict(sections.pop("train", {}))
    train = {"warmup_rounds": 2 if train["rounds"] != 1 else 0} | train
    usual = {"data": {"source": "demo"}, "adapter": {"rank": SPEC.rank}, "train": train}
    return RunConfig.model_validate({**usual, **sections})


def charge(order: RoundOrder) -> LedgerEntry | None:
    """The charge that an honest site shows, of which the server sees one in ten."""
    if not order.plan.trust.charges_sites:
        return None
    return LedgerEntry.after(
        10 * order.round + (5 if order.personal else 0),
        GENESIS,
        dataset=f"rows of {order.site}",
        run=order.charged_run,
        round=order.round,
        unit=RECORD,
        event=order.plan.event(order.local_steps),
    )


def trained(order: RoundOrder) -> ClientUpdate:
    """An honest update: a change that depends on site, round and the adapter that was sent."""
    pull = state(seed=sum(order.site.encode()) + 1000 * order.round)
    delta = 0.1 * (pull - order.adapter)
    return ClientUpdate(
        run=order.run,
        round=order.round,
        site=order.site,
        delta=delta.select(order.sent),
        num_examples=order.num_examples,
        charge=charge(order),
        noise="none",
        encoding=order.encoding,
    )


def honest(order: RoundOrder) -> RecordDict:
    """What an honest site answers."""
    return encode_update(trained(order))


def altered(**changes: object) -> Train:
    """A site whose update is honest but for some fields."""
    return lambda order: encode_update(replace(trained(order), **changes))  # type: ignore[arg-type]


class FakeGrid(Grid):
    """Nodes 1, 2, ... each a site's name and a function from order to records.

    Replies come in reverse order, as a network may deliver them; a function that raises becomes an
    error reply; ``twice`` names sites whose reply is delivered a second time, altered.
    """

    def __init__(self, sites: Iterable[tuple[str, Train]], *, twice: Iterable[str] = ()) -> None:
        self.sites = dict(enumerate(sites, start=1))
        self.twice = set(twice)
        self.orders: list[RoundOrder] = []
        self.silent: set[str] = set()
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return sorted(self.sites, reverse=True)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies: list[Message] = []
        for message in messages:
            name, train = self.sites[message.metadata.dst_node_id]
            if message.metadata.message_type == "query":
                decode_hello(message.content)
                replies.append(Message(encode_site(name), reply_to=message))
                continue
            order = decode_order(message.content)
            self.orders.append(order)
            if name in self.silent:
                continue
            try:
                replies.append(Message(train(order), reply_to=message))
            except ValueError as error:
                replies.append(Message(Error(code=0, reason=str(error)), reply_to=message))
            if name in self.twice:
                other = replace(trained(order), delta=1e-3 * trained(order).delta)
                replies.insert(0, Message(encode_update(other), reply_to=message))
        return replies[::-1]
