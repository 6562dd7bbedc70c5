"""Sites that take part in secure sums of known vectors, over a grid that can lose and alter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hushtune.client import app, opening, secure
from hushtune.client.policy import SitePolicy
from hushtune.client.terms import Terms
from hushtune.common.adapter import AdapterState
from hushtune.common.local_training import LocalTraining
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.secagg.cohort import Cohort
from hushtune.server.secure import SecureSession

from .fake_grid import SPEC, state

KEYS = ("head.bias", "head.weight")
SIZE = 18
CLIP = 0.5
RUN = "run"


def plan(*, steps: int = 50, unit: Unit = Unit.EXAMPLE, noise: float = 1.0) -> PrivacyPlan:
    """A plan with given noise: nothing is calibrated here."""
    return PrivacyPlan(
        epsilon=1000.0,
        delta=1e-5,
        sampling_probability=0.1,
        noise_multiplier=noise,
        clip_norm=CLIP,
        denominator=10.0,
        steps=steps,
        unit=unit,
        relation=Relation.ADD_OR_REMOVE_ONE,
        trust=Trust.DISTRIBUTED,
    )


def order(site: str, number: int, *, of: PrivacyPlan | None = None) -> RoundOrder:
    """An order for one step."""
    training = LocalTraining(
        learning_rate=0.1,
        optimizer="sgd",
        schedule="constant",
        weight_decay=0.0,
        first_step=0,
        schedule_steps=10,
        microbatch=8,
    )
    return RoundOrder(
        run=RUN,
        round=number,
        site=site,
        adapter=state(),
        trainable=KEYS,
        rule="ffa",
        plan=of or plan(),
        local_steps=1,
        num_examples=100,
        training=training,
    )


class Sites(Grid):
    """A grid of sites, each with its own vector, ledger and memory.

    ``spoil(action, site, answer)`` may alter what a site answers, or drop it by returning None.
    ``sent`` has every answer as it left its site.
    """

    def __init__(self, names: Iterable[str], folder: Path) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self.names = sorted(names)
        self.nodes = {name: place for place, name in enumerate(self.names, start=1)}
        self.vectors = {
            name: np.random.default_rng(place).normal(size=SIZE)
            for name, place in self.nodes.items()
        }
        self.sites = {name: self._site(name, folder) for name in self.names}
        self.memory = {name: RecordDict() for name in self.names}
        self.spoil: Callable[[str, str, RecordDict], RecordDict | None] = lambda _, __, it: it
        self.sent: list[tuple[str, str, RecordDict]] = []
        self.asked: list[tuple[str, str, RecordDict]] = []

    def _site(self, name: str, folder: Path) -> Any:
        limit = Limit(epsilon=1e6, delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE)
        terms = Terms(
            max_epsilon=1e6,
            max_delta=1e-5,
            trust=("distributed",),
            colluding_sites=0,
            min_noise_multiplier=0.05,
        )
        policy = SitePolicy(
            site=name, trust=Trust.DISTRIBUTED, spec=SPEC, public_size=100, terms=terms
        )
        return SimpleNamespace(
            name=name,
            policy=policy,
            ledger=Ledger(folder / f"{name}.sqlite"),
            dataset="rows",
            unit="example",
            limit=limit,
            noise=NoiseSource(),
        )

    def answer(self, action: str, site: str, content: RecordDict) -> RecordDict:
        """What a site answers, errors as refusals."""
        one = self.sites[site]
        do: Mapping[str, Any] = {
            "keys": secure.answer_keys,
            "shares": secure.answer_shares,
            "received": secure.answer_received,
            "masked": app.answer_step,
            "confirm": opening.answer_confirm,
            "open": opening.answer_open,
        }
        return app._reply(  # pyright: ignore[reportPrivateUsage]
            content, one, lambda same: same, lambda it: do[action](it, one, self.memory[site])
        )

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del timeout
        found: list[Message] = []
        for message in messages:
            site = self.names[message.metadata.dst_node_id - 1]
            action = message.metadata.message_type.removeprefix("train.")
            self.asked.append((action, site, message.content))
            answer = self.answer(action, site, message.content)
            self.sent.append((action, site, answer))
            spoiled = self.spoil(action, site, answer)
            if spoiled is not None:
                found.append(Message(spoiled, reply_to=message))
        return found

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def session(
        self, *, least: int | None = None, false: int = 0, steps: tuple[int, ...] = (1, 2)
    ) -> SecureSession:
        """A session of all sites."""
        cohort = Cohort(
            sites=tuple(self.names), min_survivors=least or len(self.names), colluding=false
        )
        return SecureSession(
            run=RUN,
            cohort=cohort,
            plan=plan(),
            steps=steps,
            grid=self,
            nodes=self.nodes,
            timeout=1.0,
        )

    def orders(self, number: int) -> dict[str, RoundOrder]:
        """The order of a step for each site."""
        return {name: order(name, number) for name in self.names}


def vector_state(values: np.ndarray) -> AdapterState:
    """A vector as the tensors that the orders train."""
    bias, weight = np.split(values.astype(np.float32), [3])
    tensors = {"head.bias": bias, "head.weight": weight.reshape(3, 5)}
    return AdapterState(SPEC, {key: torch.from_numpy(part) for key, part in tensors.items()})


def sum_vectors(grid: Sites, patch: pytest.MonkeyPatch) -> None:
    """The sites of a grid sum their own vectors in place of gradients."""

    def clipped(order: RoundOrder, site: Any, *, sequence: int) -> Mapping[str, torch.Tensor]:
        del order, sequence
        return vector_state(grid.vectors[site.name]).tensors

    patch.setattr(secure, "_clipped", clipped)


def no_noise(patch: pytest.MonkeyPatch) -> None:
    """Shares of the noise are zero, so that sums can be told exactly."""

    def zeros(source: NoiseSource, size: int, *, std: float) -> np.ndarray:
        del source, std
        return np.zeros(size, np.int64)

    patch.setattr(secure, "discrete_gaussian", zeros)
