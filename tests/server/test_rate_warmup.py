"""The learning rate rises over the first steps of a phase, whatever rounds and restarts cut it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError
from hushtune.common.messages import decode_order, encode_order
from hushtune.common.planning import site_plans
from hushtune.common.schedules import learning_rate
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.orders import local_training, make_orders
from hushtune.server.personal import personal_order
from hushtune.server.steps import round_optimizer
from hushtune.simulations import run

from ..e2e.test_resume import StopAt

LONG = {"train__rounds": 6, "train__warmup_rounds": 2, "train__local_steps": 3}


def rates(config: RunConfig, rounds: range) -> list[float]:
    """The learning rate of every step of some rounds, in their order."""
    steps = range(config.train.local_steps)
    return [local_training(config, round=number).rate(step) for number in rounds for step in steps]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_rate_rises_once_a_phase_and_goes_on_over_rounds(settings: Any, schedule: str) -> None:
    """Begun anew in each round, no step but the last of a round would ever be at full height."""
    config = settings.config(**LONG, train__rate_warmup_steps=5, train__schedule=schedule)
    adapter, head = rates(config, range(3, 7)), rates(config, range(1, 3))
    base = config.train.learning_rate
    assert adapter[:5] == pytest.approx([base * k / 5 for k in (1, 2, 3, 4, 5)])
    after = [learning_rate(base, schedule, step, 12 - 5) for step in range(7)]
    assert adapter[5:] == pytest.approx(after)
    assert head[:5] == pytest.approx(
        [config.train.warmup_learning_rate * k / 5 for k in range(1, 6)]
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_without_a_rise_no_rate_changes_in_any_bit(settings: Any, schedule: str) -> None:
    config = settings.config(**LONG, train__schedule=schedule)
    base, head = config.train.learning_rate, config.train.warmup_learning_rate
    expected = [learning_rate(head, schedule, step, 6) for step in range(6)]
    expected += [learning_rate(base, schedule, step, 12) for step in range(12)]
    assert rates(config, range(1, 7)) == expected


def test_a_rise_that_never_ends_is_refused(settings: Any) -> None:
    with pytest.raises(ConfigError, match="full height") as caught:
        settings.config(**LONG, train__rate_warmup_steps=7)
    assert "at most 6" in str(caught.value)
    settings.config(**LONG, train__rate_warmup_steps=6)
    settings.config(train__rounds=6, train__warmup_rounds=0, train__rate_warmup_steps=12)


def test_the_server_s_own_steps_rise_too(settings: Any) -> None:
    """Where sites send gradients the server takes [train]'s steps, at the same rates."""
    config = settings.config(
        **LONG,
        train__rate_warmup_steps=4,
        train__optimizer="sgd",
        aggregation__rule="fedsgd",
    )
    workspace = open_workspace(resolve(config))
    state = workspace.initial_state
    gradient = state.map(torch.ones_like)
    moved: list[float] = []
    for number in (3, 4):
        for step in range(3):
            optimizer = round_optimizer(config, round=number, step=step)
            _, after = optimizer.apply(optimizer.init(state), state, -1.0 * gradient)
            key = state.keys[0]
            moved.append(float((state.tensors[key] - after.tensors[key]).flatten()[0]))
    assert moved == pytest.approx(rates(config, range(3, 5)), rel=1e-4)


def test_the_order_tells_the_site_and_own_steps_do_not_rise(settings: Any) -> None:
    config = resolve(
        settings.config(**LONG, train__rate_warmup_steps=4, personal__method="finetune")
    )
    workspace = open_workspace(config)
    order = make_orders(
        workspace.initial_state,
        run="run",
        round=3,
        config=config,
        plans=site_plans(config),
        sizes=config.data.public_sizes,
    )["east"]
    assert decode_order(encode_order(order)).training == order.training
    assert order.training.rate_warmup_steps == 4
    assert personal_order(order, config=config).training.rate(0) == config.train.learning_rate


def test_a_run_that_was_stopped_in_the_rise_goes_on_with_it(settings: Any, tmp_path: Path) -> None:
    config = settings.config(
        train__rounds=4,
        train__warmup_rounds=0,
        train__rate_warmup_steps=5,
        train__schedule="cosine",
    )
    whole = run(config, tmp_path / "whole")
    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "out", observer=StopAt(stop), resume=stop > 2)
    assert run(config, tmp_path / "out", resume=True)["adapter_digest"] == whole["adapter_digest"]
    plain = settings.config(train__rounds=4, train__warmup_rounds=0, train__schedule="cosine")
    assert run(plain, tmp_path / "plain")["adapter_digest"] != whole["adapter_digest"]
