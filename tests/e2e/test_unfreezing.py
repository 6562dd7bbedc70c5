"""Adapters are unfrozen from the top down: what is trained, sent and charged, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.client.policy import SitePolicy
from hushtune.client.signed_run import SignedRun
from hushtune.client.terms import Terms
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError, PolicyError
from hushtune.common.lora_rules import RULES, trainable_keys
from hushtune.common.planning import site_plans
from hushtune.common.privacy.plan import Trust
from hushtune.common.run_steps import trainable_of
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.unfreezing import block_of, enabled
from hushtune.server import checkpoint
from hushtune.server.orders import make_orders, step_of_round
from hushtune.simulations import run
from hushtune.simulations.estimate import estimate
from hushtune.simulations.observer import Silent

SITE = {"trust": "site", "epsilon": 8.0, "delta": 1e-3}
CLIENT = {"epsilon": 50.0, "delta": 0.1, "unit": "client"}
TWO_BLOCKS = {
    "adapter__layers": 2,
    "train__unfreeze": "gradual",
    "train__rounds": 4,
    "train__warmup_rounds": 1,
}


def of_block(keys: tuple[str, ...], block: int) -> set[str]:
    return {key for key in keys if not key.startswith("head.") and block_of(key) == block}


class States(Silent):
    """Keeps the state of each round, by number, from the checkpoints that it finds."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.states: dict[int, AdapterState] = {}

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        self.look()

    def look(self) -> None:
        found = checkpoint.load(self._out / "checkpoint")
        self.states[found.round] = found.state


def test_blocks_open_from_the_top_one_by_one_and_the_embedding_last() -> None:
    targets = tuple(f"layer.{k}.{kind}" for k in (2, 10, 11) for kind in ("v", "o"))
    targets = ("embeddings.words", *targets)
    seen = [enabled(targets, turn=turn, every=2) for turn in range(10)]
    assert seen[0] == seen[1] == {"layer.11.v", "layer.11.o"}
    assert seen[2] == seen[3] == seen[0] | {"layer.10.v", "layer.10.o"}
    assert seen[4] == seen[2] | {"layer.2.v", "layer.2.o"}
    assert seen[6] == seen[9] == set(targets)


@pytest.mark.parametrize("rule", RULES)
def test_what_a_round_trains_is_what_its_rule_trains_in_the_open_blocks(
    settings: Any, rule: str
) -> None:
    """A block opens where a rule's turns begin: of rolora B has its turn first, as always."""
    config = settings.config(**TWO_BLOCKS, train__local_steps=1, aggregation__rule=rule)
    config = config.model_copy(update={"train": config.train.model_copy(update={"rounds": 7})})
    spec = open_workspace(resolve(config)).initial_state.spec
    turns = len(RULES[rule].turns)
    assert trainable_of(config, spec, round=1) == trainable_keys(RULES[rule], spec, turn=None)
    for turn in range(6):
        whole = trainable_keys(RULES[rule], spec, turn=turn)
        found = trainable_of(config, spec, round=turn + 2)
        below = of_block(whole, 0)
        assert below
        assert of_block(whole, 1)
        assert found == tuple(k for k in whole if turn >= turns or k not in below)


@pytest.mark.parametrize(
    ("privacy", "rule"),
    [
        *((SITE, rule) for rule in RULES),
        *(({**CLIENT, "trust": "server"}, rule) for rule in ("ffa", "fedit", "fedsa", "fedsgd")),
        ({**CLIENT, "trust": "server", "client_turns": 2}, "ffa"),
        *(({**SITE, "trust": "distributed"}, rule) for rule in ("ffa", "fedsvd", "rolora")),
        ({**CLIENT, "trust": "distributed"}, "fedit"),
        ({"trust": "off", "delta": 1e-3}, "fedit"),
    ],
    ids=str,
)
def test_frozen_blocks_stay_as_they_were_and_open_ones_move_whole(
    settings: Any, tmp_path: Path, privacy: dict[str, Any], rule: str
) -> None:
    """Noise on a tensor that is not trained would move it, and be paid for."""
    rounds = 6 if rule == "rolora" else 4
    config = settings.config(
        **{**TWO_BLOCKS, "train__rounds": rounds}, privacy=privacy, aggregation__rule=rule
    )
    out = tmp_path / "out"
    seen = States(out)
    summary = run(config, out, observer=seen)
    assert not summary["rejected"]
    seen.look()
    assert set(seen.states) >= set(range(1, rounds + 1))
    config = resolve(config)
    initial = open_workspace(config).initial_state
    opened = 2 + len(RULES[rule].turns)  # the round in which the lower block opens
    for number, state in sorted(seen.states.items()):  # after so many rounds
        lower = of_block(state.keys, 0)
        moved = {k for k in lower if not equal(state, initial, k)}
        trained = {k for n in range(1, number + 1) for k in kept_in_state(config, state, n)}
        if number < opened:
            assert not moved, number
        else:
            assert moved >= trained & lower, number
            assert moved, number
        upper = of_block(trainable_of(config, state.spec, round=2), 1)
        if number >= 2 and not RULES[rule].changes_base:
            assert all(not equal(state, initial, k) for k in upper & trained), number


def equal(state: AdapterState, initial: AdapterState, key: str) -> bool:
    return key in initial.tensors and torch.equal(state.tensors[key], initial.tensors[key])


def kept_in_state(config: RunConfig, state: AdapterState, number: int) -> set[str]:
    """What a round moves in the global adapter itself: of flora B, back at zero, is none of it."""
    name = config.aggregation.rule
    keys = set(trainable_of(config, state.spec, round=number))
    if name == "flora":
        return {key for key in keys if not key.endswith("lora_B")}
    if RULES[name].kept:
        return {key for key in keys if not key.endswith("lora_B")}
    return keys


def test_the_statement_and_the_estimate_tell_what_is_sent_when(
    settings: Any, tmp_path: Path
) -> None:
    import json

    config = settings.config(**TWO_BLOCKS, privacy=SITE)
    run(config, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "privacy.json").read_text())
    updates = told["sites"]["east"]["released"]["updates"]
    spec = open_workspace(resolve(config)).initial_state.spec
    found = {number: set(row["tensors"]) for row in updates for number in row["rounds"]}
    assert found == {n: set(trainable_of(config, spec, round=n)) for n in range(1, 5)}
    gradual, whole = (
        estimate(config),
        estimate(settings.config(**{**TWO_BLOCKS, "train__unfreeze": "all"}, privacy=SITE)),
    )
    assert gradual["bytes_per_round"] == whole["bytes_per_round"]
    assert gradual["bytes_total"] < whole["bytes_total"]


def policy_of(config: RunConfig, state: AdapterState) -> SitePolicy:
    return SitePolicy(
        site="east",
        trust=Trust(config.privacy.trust),
        spec=state.spec,
        public_size=config.data.public_sizes["east"],
        terms=Terms(max_epsilon=10.0, max_delta=1e-2, rules=tuple(RULES)),
        signed=SignedRun.of(config, "east"),
    )


@pytest.mark.parametrize("rule", ["ffa", "rolora", "fedsgd", "fedsa"])
def test_a_signed_run_s_orders_train_the_tensors_of_their_round(settings: Any, rule: str) -> None:
    """An order for more, or for a block that is still frozen, is none of the run's."""
    config = resolve(
        settings.config(**{**TWO_BLOCKS, "train__rounds": 6}, privacy=SITE, aggregation__rule=rule)
    )
    state = open_workspace(config).initial_state
    policy, plans = policy_of(config, state), site_plans(config)
    for number in range(1, 7):
        order = make_orders(
            state,
            run="run",
            round=number,
            config=config,
            plans=plans,
            sizes=config.data.public_sizes,
        )["east"]
        if RULES[rule].gradient:
            order = step_of_round(order, config, 1)
        policy.check(order)
        whole = trainable_keys(RULES[rule], state.spec, turn=0)
        others = [whole, order.trainable[:-1], (*order.trainable, order.trainable[0])]
        for keys in others:
            if tuple(sorted(keys)) == order.trainable:
                continue
            changed = type(order)(**{**fields_of(order), "trainable": keys})
            with pytest.raises(PolicyError, match="signed settings"):
                policy.check(changed)


def fields_of(order: Any) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__dataclass_fields__}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__unfreeze_every": 2}, "gradual unfreezing"),
        ({"train__unfreeze": "gradual", "train__warmup_rounds": 3}, "no rounds after it"),
        ({"train__unfreeze": "gradual", "personal__method": "ditto"}, "not trained yet"),
    ],
)
def test_what_unfreezing_cannot_do_is_refused(
    settings: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        settings.config(**changes)


def test_sites_of_other_ranks_and_a_stop_change_nothing(settings: Any, tmp_path: Path) -> None:
    from .test_resume import StopAt

    config = settings.config(
        **TWO_BLOCKS,
        adapter__ranks={"east": 1, "north": 3},
        aggregation__rule="hetlora",
        aggregation__optimizer="adam",
    )
    whole = run(config, tmp_path / "whole")
    assert not whole["rejected"]
    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "out", observer=StopAt(stop), resume=stop > 2)
    assert run(config, tmp_path / "out", resume=True)["adapter_digest"] == whole["adapter_digest"]
