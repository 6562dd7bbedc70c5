"""The overhead of a secure sum: seconds a step in one process, against a plain sum of the same.

    python benchmarks/secure_sum.py [--sites 10] [--values 100000] [--steps 5] [--lost 0]

Keys, shares, noise, masks and their removal by the product's own server and sites, with their
messages, charges and ledgers on disk, and without any training. The floor beside it is what no
protocol could do without: rounding, the same noise, and masks put on and taken off. With ``--lost``
so many sites may drop out, which takes one exchange more. Medians; each step's ways are timed one
after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from hushtune.client import app, opening, secure
from hushtune.client.policy import SitePolicy
from hushtune.client.terms import Terms
from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.local_training import LocalTraining
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.discrete import discrete_gaussian
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import Ring, mask, to_ring
from hushtune.server.secure import SecureSession

SPEC = AdapterSpec(
    base="f" * 64, rank=1, alpha=1.0, rslora=False, targets=("q",), head=("bias", "weight")
)
DO: Mapping[str, Any] = {
    "keys": secure.answer_keys,
    "shares": secure.answer_shares,
    "received": secure.answer_received,
    "masked": app.answer_step,
    "confirm": opening.answer_confirm,
    "open": opening.answer_open,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--lost", type=int, default=0)
    options = parser.parse_args()
    names = tuple(f"site {place:04d}" for place in range(options.sites))
    cohort = Cohort(sites=names, min_survivors=options.sites - options.lost, colluding=1)
    drawn = np.random.default_rng(0)
    vectors = {name: drawn.normal(size=options.values) * 1e-3 for name in names}
    numbers = tuple(range(1, options.steps + 1))
    steps, processor, floor, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        session, order = begun(cohort, vectors, numbers, Path(folder))
        beginning = timed(session.begin)[0]
        for number in numbers:
            orders = {name: order(name, number) for name in names}
            took, spent = timed(lambda orders=orders: session.step(orders))
            steps.append(took)
            processor.append(spent)
            floor.append(timed(lambda: bare_step(cohort, list(vectors.values())))[0])
            plain.append(timed(lambda: plain_step(cohort, list(vectors.values())))[0])
        assert not session.traffic.lost, session.traffic.lost
    step = statistics.median(steps)
    print(
        f"{options.sites} sites, {options.values} values: {step:.3f} s a step "
        f"({statistics.median(processor):.3f} s of processor), {beginning:.3f} s to begin a "
        f"session of {options.steps}; {step / statistics.median(floor):.1f} times masks and noise "
        f"alone, {step / statistics.median(plain):.1f} times a sum with the same noise and no masks"
    )


def timed(do: Any) -> tuple[float, float]:
    """Seconds, and those of the processor."""
    began, spent = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - began, time.process_time() - spent


# ------------------------------------------------------------------------ the product's way ----


def begun(
    cohort: Cohort, vectors: Mapping[str, np.ndarray], numbers: tuple[int, ...], folder: Path
) -> tuple[SecureSession, Any]:
    """A session that is not yet begun, and what makes an order of a site and a step."""
    size = len(next(iter(vectors.values())))
    plan = PrivacyPlan(
        epsilon=1e6,
        delta=1e-5,
        sampling_probability=0.1,
        noise_multiplier=1.0,
        clip_norm=1.0,
        denominator=10.0,
        steps=len(numbers),
        unit=Unit.EXAMPLE,
        relation=Relation.ADD_OR_REMOVE_ONE,
        trust=Trust.DISTRIBUTED,
    )
    training = LocalTraining(
        learning_rate=0.1,
        optimizer="sgd",
        schedule="constant",
        weight_decay=0.0,
        first_step=0,
        schedule_steps=len(numbers),
        microbatch=8,
    )
    shapes = {
        "head.bias": (2,),
        "head.weight": (1, size - 2),
        "q.lora_A": (1, 2),
        "q.lora_B": (2, 1),
    }
    adapter = AdapterState(SPEC, {key: torch.zeros(shape) for key, shape in shapes.items()})

    def order(site: str, number: int) -> RoundOrder:
        return RoundOrder(
            run="run",
            round=number,
            site=site,
            adapter=adapter,
            trainable=("head.bias", "head.weight"),
            rule="ffa",
            plan=plan,
            local_steps=1,
            num_examples=100,
            training=training,
        )

    def clipped(order: RoundOrder, site: Any, *, sequence: int) -> dict[str, torch.Tensor]:
        del order, sequence
        return {"values": torch.from_numpy(vectors[site.name])}

    secure._clipped = clipped  # pyright: ignore[reportPrivateUsage]
    grid = Sites({name: a_site(name, folder) for name in cohort.sites})
    session = SecureSession(
        run="run",
        cohort=cohort,
        plan=plan,
        steps=numbers,
        grid=cast(Grid, grid),
        nodes=grid.nodes,
        timeout=60.0,
    )
    return session, order


def a_site(name: str, folder: Path) -> Any:
    """A site that has no data: its vector is given."""
    terms = Terms(max_epsilon=1e6, max_delta=1e-5, trust=("distributed",))
    return SimpleNamespace(
        name=name,
        policy=SitePolicy(
            site=name, trust=Trust.DISTRIBUTED, spec=SPEC, public_size=100, terms=terms
        ),
        ledger=Ledger(folder / f"{name}.sqlite"),
        dataset="rows",
        unit="example",
        limit=Limit(epsilon=1e6, delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE),
        noise=NoiseSource(),
    )


class Sites:
    """Sites in this process, each with its own memory, that answer one after the other."""

    def __init__(self, sites: Mapping[str, Any]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
        self._sites = list(sites.values())
        self._memory = [RecordDict() for _ in self._sites]
        self.nodes = {name: place for place, name in enumerate(sites, start=1)}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del timeout
        for message in messages:
            place = message.metadata.dst_node_id - 1
            do = DO[message.metadata.message_type.removeprefix("train.")]
            answer = do(message.content, self._sites[place], self._memory[place])
            yield Message(answer, reply_to=message)


# -------------------------------------------------------------------------------- the floors ----


def plain_step(cohort: Cohort, vectors: Sequence[np.ndarray]) -> Ring:
    """Rounded vectors with their noise, added up."""
    total = np.zeros(vectors[0].size, np.uint64)
    std = cohort.share_std(1.0, total.size)
    for values in vectors:
        total += to_ring(values, clip_norm=1.0)
        total += discrete_gaussian(NoiseSource(), total.size, std=std).view(np.uint64)
    return total


def bare_step(cohort: Cohort, vectors: Sequence[np.ndarray]) -> Ring:
    """The same with a mask of each site and of each two, put on and taken off."""
    total, size = plain_step(cohort, vectors), vectors[0].size
    for _ in range(len(vectors) ** 2 + len(vectors)):
        total += mask(os.urandom(32), size)
    return total


if __name__ == "__main__":
    main()
