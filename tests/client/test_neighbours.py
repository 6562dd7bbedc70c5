"""n records against n - 1, in high dimension: nothing that a site shows tells them apart.

Driven through the client's own road from an encoded order to an encoded reply, with secure noise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client import app
from hushtune.client.memory import SiteMemory
from hushtune.client.policy import SitePolicy
from hushtune.client.site import Site, ledger_path
from hushtune.client.terms import Terms
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AdapterConfig, ModelConfig, RunConfig
from hushtune.common.messages import ClientUpdate, decode_reply, encode_order
from hushtune.common.planning import site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import RECORD
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Trust
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.units import Units
from hushtune.server.strategy import FederationResult
from hushtune.simulations.privacy_report import privacy_of

from .families import TensorTask, make_order, moved, tiny_base

NUM_CLASSES = 155  # of 32 features each: a head of 5115 values


@pytest.fixture(scope="module")
def wide() -> TensorTask:
    model = lora.attach(
        tiny_base("bert"),
        model=ModelConfig(head="mean", precision="float32"),
        adapter=AdapterConfig(rank=2, alpha=4.0, layers=1),
        num_outputs=NUM_CLASSES,
        seed=0,
    )
    ids = torch.randint(3, 50, (50, 5), generator=torch.Generator().manual_seed(9))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return TensorTask(model, inputs, np.arange(50) % NUM_CLASSES, (1.0,) * NUM_CLASSES)


def declared(size: int) -> RunConfig:
    """The run of a site that declares ``size``."""
    settings = {
        "data": {"source": "demo", "public_sizes": {"north": size}},
        "train": {"rounds": 2, "local_steps": 2, "sampling_probability": 0.4},
        "privacy": {"delta": 1e-3},
    }
    return RunConfig.model_validate(settings)


def public_part(
    task: TensorTask, state: AdapterState, folder: Path, *, size: int, rows: int
) -> dict[str, Any]:
    """All that two rounds and the statement show of a site that declares ``size``."""
    folder.mkdir()
    config = declared(size)
    plan = site_plans(config)["north"]
    terms = Terms(max_epsilon=plan.epsilon, max_delta=plan.delta, min_batch=1e-9)
    site = Site(
        name="north",
        task=task,
        units=Units.single(np.arange(rows)),
        held_out=Units.single(np.arange(0)),
        public_held_out=1.0,
        public_size=size,
        dataset="data of north",
        policy=SitePolicy(
            site="north",
            trust=Trust.SITE,
            public_size=size,
            terms=terms,
            spec=lora.spec(task.model),
        ),
        unit=RECORD,
        limit=terms.limit(whole_ledger=True),
        ledger=Ledger(ledger_path(folder, "north")),
        noise=NoiseSource(),
        batch_key=bytes([rows]),
        memory=SiteMemory(folder / "own", "north"),
    )
    texts, sizes, shown, history = [], [], [], []
    for round in (1, 2):
        order = make_order(state, plan, round=round, num_examples=size, local_steps=2)
        content = app.answer(encode_order(order), site)
        reply = decode_reply(content)
        assert isinstance(reply, ClientUpdate), reply
        assert all(bool(tensor.any()) for tensor in reply.delta.tensors.values())
        texts.append({key: dict(record) for key, record in content.config_records.items()})
        sizes.append(
            {
                name: (len(array.data), array.dtype, array.shape, array.stype)
                for name, record in content.array_records.items()
                for array in record.values()
            }
        )
        shown.append((reply.delta.keys, reply.charge, reply.num_examples, reply.noise))
        history.append(
            {"round": round, "accepted": ["north"], "rejected": {}, "noise": {"north": reply.noise}}
        )
    assert not content.metric_records
    entries = Ledger(ledger_path(folder, "north")).entries()
    result = FederationResult(
        run="run", state=state, history=history, charges={}, refusals={}, seconds={}
    )
    told = privacy_of(RunContext(config, folder), result)
    assert told["sites"]["north"]["steps"] == 4
    return {
        "plan": plan,
        "texts": texts,
        "sizes": sizes,
        "shown": shown,
        "charges": entries,
        "statement": json.dumps(told, sort_keys=True),
    }


@pytest.mark.parametrize("size", range(2, 51))
def test_n_and_n_minus_1_records_show_the_same_in_high_dimension(
    wide: TensorTask, tmp_path: Path, size: int
) -> None:
    state = moved(wide.model)
    assert state.select(k for k in state.keys if k.startswith("head.")).num_values() > 5_000
    whole = public_part(wide, state, tmp_path / "n", size=size, rows=size)
    fewer = public_part(wide, state, tmp_path / "n-1", size=size, rows=size - 1)
    assert len(whole["charges"]) == 2
    assert whole["plan"].denominator == 0.4 * size
    for key in whole:
        assert whole[key] == fewer[key], key
