"""What an order may not ask under its rule, and what a site does with orders that fit nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.client import app
from hushtune.client.memory import Purpose, SiteMemory
from hushtune.client.site import Site
from hushtune.common import lora
from hushtune.common.adapter import AdapterState, a_key, b_key, base_keys, r_key
from hushtune.common.errors import MessageError, PolicyError, TargetModuleError
from hushtune.common.lora_rules import RULES, LoraRule, all_trainable, trainable_keys
from hushtune.common.messages import (
    ClientUpdate,
    Refusal,
    RoundOrder,
    decode_order,
    decode_reply,
    encode_order,
)
from hushtune.common.metrics_messages import (
    MetricsOrder,
    decode_metrics_order,
    encode_metrics_order,
)
from hushtune.common.privacy.plan import Relation, Trust, Unit

from .families import (
    TensorTask,
    adapted,
    at_rank,
    make_order,
    moved,
    plan_off,
    private_plan,
    tensor_task,
    with_change,
)
from .test_app import Untouchable, make_site, refused, updated
from .test_memory import all_bytes, holds_any
from .test_policy import policy

PLAN = private_plan(noise_multiplier=4.0)
CHANGING = [name for name, rule in RULES.items() if rule.changes_base]


@pytest.fixture(scope="module")
def task() -> TensorTask:
    return tensor_task(30)


@pytest.fixture(scope="module")
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


def fit(rule: LoraRule, state: AdapterState) -> tuple[str, ...]:
    return trainable_keys(rule, state.spec, turn=0)


# --------------------------------------------------------------------------------- rules ----


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES.values() if not rule.inner], ids=lambda rule: rule.name
)
def test_a_rule_gets_what_it_trains_and_no_tensor_more(
    task: TensorTask, state: AdapterState, rule: LoraRule
) -> None:
    """The tensors of a change of weights are never trained, whatever an order calls trainable."""
    site = policy(task)
    for turn in range(4):
        keys = trainable_keys(rule, state.spec, turn=turn)
        site.check(make_order(state, PLAN, rule=rule.name, trainable=keys))
    whole = with_change(state, 2) if rule.changes_base else state
    beyond = set(state.keys) - all_trainable(rule, state.spec)
    beyond |= {base_keys(state.spec.targets[0])[0], r_key(state.spec.targets[0]), "head.more"}
    for key in sorted(beyond):
        order = make_order(whole, PLAN, rule=rule.name, trainable=(*fit(rule, state), key))
        with pytest.raises(PolicyError, match=f"what its rule {rule.name} does not") as caught:
            site.check(order)
        assert caught.value.given == key


def test_the_rule_of_an_inner_factor_trains_it_and_no_other(task: TensorTask) -> None:
    model = adapted("bert", layers=1, inner=True)
    site = replace(policy(task), spec=lora.spec(model))
    state = moved(model)
    site.check(make_order(state, PLAN, rule="fedsb", trainable=fit(RULES["fedsb"], state)))
    for key in (a_key(state.spec.targets[0]), b_key(state.spec.targets[0])):
        with pytest.raises(PolicyError, match="does not") as caught:
            site.check(make_order(state, PLAN, rule="fedsb", trainable=(key,)))
        assert caught.value.given == key


@pytest.mark.parametrize("rule", RULES)
def test_only_a_rule_that_changes_the_base_may(
    task: TensorTask, state: AdapterState, rule: str
) -> None:
    changed = with_change(state, 2)
    order = make_order(changed, PLAN, rule=rule, trainable=("head.bias",))
    if rule in CHANGING:
        policy(task).check(order)
        return
    with pytest.raises(PolicyError, match=f"frozen weights, which its rule {rule} does not") as it:
        policy(task).check(order)
    assert it.value.given == base_keys(state.spec.targets[0])[0]
    part = changed.select(k for k in changed.keys if k not in base_keys(state.spec.targets[0]))
    with pytest.raises(PolicyError, match="frozen weights"):
        policy(task).check(replace(order, adapter=part))


def test_which_rules_change_the_base() -> None:
    assert CHANGING == ["fedex", "flora"]


def test_a_change_of_the_weights_beyond_the_site_s_rank_is_refused_before_compute(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path, epsilon=1e6)
    bounded = replace(policy(task, max_base_rank=3), site=site.name)
    for rule in CHANGING:
        order = make_order(with_change(state, 3), PLAN, rule=rule, trainable=("head.bias",))
        bounded.check(order)
        wide = replace(order, adapter=with_change(state, 4))
        policy(task).check(wide)  # left out, as wide as the module
        with pytest.raises(PolicyError, match="at a rank that this site does not allow") as it:
            bounded.check(wide)
        assert str(it.value.given).startswith("rank 4 in ")
        assert it.value.expected == "rank <= 3 (max_base_rank)"
        untouched = Untouchable()
        held = replace(site, policy=bounded, task=untouched)  # type: ignore[arg-type]
        assert refused(held, wide).code == PolicyError.code
        assert not untouched.touched


def test_a_b_of_the_site_s_own_takes_no_steps_in_a_secure_sum_of_gradients(
    task: TensorTask, state: AdapterState
) -> None:
    site = replace(policy(task), trust=Trust.DISTRIBUTED)
    plan = private_plan(noise_multiplier=4.0, trust=Trust.DISTRIBUTED)
    for rule in RULES.values():
        if rule.inner:
            continue
        order = make_order(state, plan, rule=rule.name, trainable=("head.bias",))
        if not rule.kept:
            site.check(order)
            continue
        with pytest.raises(PolicyError, match="which no sum of gradients covers"):
            site.check(order)
        clients = replace(site, terms=site.terms.model_copy(update={"unit": "client"}))
        clients.check(replace(order, plan=replace(plan, unit=Unit.CLIENT)))


def test_a_control_variate_is_refused_where_privacy_is_promised(
    task: TensorTask, state: AdapterState
) -> None:
    order = make_order(state, PLAN, control=0.0 * state)
    with pytest.raises(PolicyError, match="control variate, which no noise covers"):
        policy(task).check(order)


@pytest.mark.parametrize("rank", [1, 3, 40])
def test_another_rank_than_the_site_s_is_refused(
    task: TensorTask, state: AdapterState, rank: int
) -> None:
    lora.install(task.model, state)
    other = at_rank(task.model, rank)
    for rule in ("flora", "flexlora", "hetlora", "fedit"):
        with pytest.raises(PolicyError, match="order's adapter is not this site's"):
            policy(task).check(make_order(other, PLAN, rule=rule))
    replace(policy(task), spec=other.spec).check(make_order(other, PLAN))


def test_an_inner_adapter_is_not_a_plain_one(task: TensorTask) -> None:
    state = moved(adapted("bert", layers=1, inner=True))
    with pytest.raises(PolicyError, match="order's adapter"):
        policy(task).check(make_order(state, PLAN, rule="fedsb", trainable=("head.bias",)))


@pytest.mark.parametrize("what", ["base", "control", "rank", "beyond"])
def test_such_an_order_costs_nothing_and_reaches_no_row(
    task: TensorTask, state: AdapterState, tmp_path: Path, what: str
) -> None:
    untouchable = Untouchable()
    site = replace(make_site(task, tmp_path, epsilon=1e6), task=untouchable)  # type: ignore[arg-type]
    lora.install(task.model, state)
    order = {
        "base": make_order(with_change(state, 2), PLAN, trainable=("head.bias",)),
        "control": make_order(state, PLAN, control=0.0 * state),
        "rank": make_order(at_rank(task.model, 3), PLAN, rule="flora"),
        "beyond": make_order(state, PLAN, rule="ffa"),
    }[what]
    assert refused(site, order).code == PolicyError.code
    assert not untouchable.touched
    assert site.ledger is not None
    assert not site.ledger.entries()


# ------------------------------------------------------------------------------ personal ----


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("rule", ["fedit", "ffa", "fedex", "fedsgd"])
def test_nothing_of_what_is_trained_for_the_site_itself_is_in_the_reply(
    task: TensorTask, state: AdapterState, tmp_path: Path, private: bool, rule: str
) -> None:
    memory = SiteMemory(tmp_path / "own", "north")
    site = make_site(task, tmp_path if private else None, epsilon=1e6, memory=memory)
    keys = fit(RULES[rule], state)
    order = make_order(
        state,
        PLAN if private else plan_off(),
        rule=rule,
        trainable=keys,
        personal=True,
        local_steps=3,
        learning_rate=0.5,
    )
    content = app.answer(encode_order(order), site)
    reply = decode_reply(content)
    assert isinstance(reply, ClientUpdate), reply
    assert reply.delta.keys == ()
    assert reply.delta.spec == state.spec
    kept = memory.newest(Purpose.ADAPTER, run="run")
    assert kept is not None
    assert kept.keys == keys
    said = all_bytes(content)
    for key, tensor in kept.tensors.items():
        change = tensor - state.tensors[key]
        assert change.any()
        assert not holds_any(said, tensor)
        assert not holds_any(said, change)
    if private:
        assert site.ledger is not None
        (entry,) = site.ledger.entries()
        assert (entry.run, entry.event.steps) == ("run/personal", 3)
        assert reply.charge == entry
        # Neither in what is kept for when the round is asked for again.
        names = [path for path in tmp_path.iterdir() if path.is_file()]
        assert names
        for key, tensor in kept.tensors.items():
            held = b"".join(path.read_bytes() for path in names)
            assert not holds_any(held, tensor - state.tensors[key])
    assert memory.newest(Purpose.FACTORS, run="run") is None


def test_an_adapter_of_the_site_s_own_goes_on_where_it_was(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Ditto: v <- v - rate (g(v) + lambda (v - w)), with w the round's global adapter."""
    memory = SiteMemory(tmp_path / "own", "north")
    site = make_site(task, None, rows=0, memory=memory)  # no gradient: the pull alone
    v, w = state, state
    for number, seed in ((1, 5), (2, 6), (3, 7)):
        w = moved(task.model, seed=seed)
        order = make_order(
            w, plan_off(), personal=True, round=number, learning_rate=0.1, proximal=0.5
        )
        updated(site, order)
        v = w if number == 1 else v - 0.1 * 0.5 * (v - w)
        kept = memory.newest(Purpose.ADAPTER, run="run")
        assert kept is not None
        assert (kept - v).norm() <= 1e-5
    again = decode_reply(app.answer(encode_order(order), site))
    assert isinstance(again, ClientUpdate)
    kept = memory.newest(Purpose.ADAPTER, run="run")
    assert kept is not None
    assert (kept - v).norm() <= 1e-5  # a round that is asked for again counts once


def test_an_own_adapter_costs_the_site_s_budget(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Two steps are granted: a round and a personal step, in whichever order, and no more."""
    for first in (False, True):
        folder = tmp_path / str(first)
        folder.mkdir()
        site = make_site(task, folder, memory=SiteMemory(folder / "own", "north"))
        updated(site, make_order(state, PLAN, personal=first))
        updated(site, make_order(state, PLAN, personal=not first))
        for personal in (False, True):
            order = make_order(state, PLAN, round=1, personal=personal)
            assert refused(site, order).code == "HT401"


# ---------------------------------------------------------------------------------- fuzz ----

SIZES = st.sampled_from([0, 1, 2, 3, 7, 31, 32, 33, 64, 4000])
SHAPES = st.lists(SIZES, min_size=0, max_size=3).filter(
    lambda shape: torch.Size(shape).numel() <= 200_000
)
KNOWN_CODES = {MessageError.code, PolicyError.code, TargetModuleError.code}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Site, AdapterState]]:
    """A site and a state, plain and with R."""
    found = {}
    for inner in (False, True):
        task = tensor_task(30)
        if inner:
            task = replace(task, model=adapted("bert", layers=1, inner=True))
        folder = tmp_path_factory.mktemp("fuzz")
        site = make_site(task, None, memory=SiteMemory(folder, "north"))
        found[inner] = (site, moved(task.model))
    return found


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_order_that_does_not_fit_is_refused_by_one_of_three_names(
    fuzzed: dict[bool, tuple[Site, AdapterState]], data: st.DataObject
) -> None:
    """Whatever is lacking, of whatever shape: no error that nobody foresaw, and no update."""
    site, sound = fuzzed[data.draw(st.booleans(), label="inner")]
    changed = with_change(sound, data.draw(st.sampled_from([1, 2, 32, 33, 500]), label="n"))
    tensors = dict(changed.tensors)
    keys = sorted(tensors)
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=3, unique=True), label="shape"):
        shape = data.draw(SHAPES, label=key)
        value = data.draw(st.sampled_from([0.0, 1.0, float("nan"), float("inf")]))
        tensors[key] = torch.full(shape, value)
    for key in data.draw(st.lists(st.sampled_from(keys), max_size=2, unique=True), label="gone"):
        tensors.pop(key, None)
    rule = data.draw(st.sampled_from(["fedex", "flora", "fedit", "fedsa", "fedsb", "fedsgd"]))
    trainable = trainable_keys(RULES[rule], sound.spec, turn=0)
    trainable += tuple(data.draw(st.lists(st.sampled_from(keys), max_size=1)))
    order = make_order(
        AdapterState(sound.spec, tensors),
        plan_off(sampling_probability=0.1),
        rule=rule,
        trainable=tuple(dict.fromkeys(trainable)),
        personal=data.draw(st.booleans(), label="personal"),
    )
    reply = decode_reply(app.answer(encode_order(order), site))
    if isinstance(reply, Refusal):
        assert reply.code in KNOWN_CODES, reply
        return
    # What was answered was sound in all its parts.
    assert set(trainable) <= all_trainable(RULES[rule], sound.spec)
    for key in sound.keys:
        assert tensors[key].shape == sound.tensors[key].shape
    for module in sound.spec.targets:
        factors = [tensors[key] for key in base_keys(module) if key in tensors]
        assert len(factors) in (0, 2)
        if factors:
            assert rule in CHANGING
            assert factors[0].shape[1] == factors[1].shape[0] == 32
            assert factors[0].shape[0] == factors[1].shape[1] <= 32


@pytest.mark.parametrize("lacking", [0, 1])
def test_half_a_change_is_no_order_of_any_kind(state: AdapterState, lacking: int) -> None:
    whole = with_change(state, 2)
    half = whole.select(k for k in whole.keys if k != base_keys(state.spec.targets[0])[lacking])
    with pytest.raises(MessageError, match="adapter that it speaks of"):
        decode_order(encode_order(make_order(half, PLAN, rule="fedex")))
    for adapter in (half, with_change(state, 1000)):
        with pytest.raises(MessageError, match="whole adapter"):
            decode_metrics_order(metrics_order(adapter))
    decode_metrics_order(metrics_order(whole))


def metrics_order(adapter: AdapterState) -> RecordDict:
    return encode_metrics_order(
        MetricsOrder(
            run="run",
            round=1,
            site="north",
            adapter=adapter,
            noise_multiplier=20.0,
            unit=Unit.EXAMPLE,
            relation=Relation.ADD_OR_REMOVE_ONE,
        )
    )


def test_a_change_as_wide_as_a_library_is_refused_before_it_is_paid_for(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Every product with it would take as long as its n columns are many."""
    untouchable = Untouchable()
    site = replace(make_site(task, tmp_path, epsilon=1e6), task=untouchable)  # type: ignore[arg-type]
    for n in (33, 5000):
        order: RoundOrder = make_order(
            with_change(state, n), PLAN, rule="fedex", trainable=fit(RULES["fedex"], state)
        )
        assert refused(site, order).code == MessageError.code
    assert not untouchable.touched
    assert site.ledger is not None
    assert not site.ledger.entries()


def test_a_control_variate_that_does_not_fit_is_a_message_error(state: AdapterState) -> None:
    control = 0.0 * state
    fits = make_order(state, plan_off(), control=control)
    assert decode_order(encode_order(fits)).control is not None
    key = "head.bias"
    other = AdapterState(state.spec, {**control.tensors, key: torch.zeros(9)})
    for bad in (
        control.select(["head.bias"]),
        other,
        AdapterState(replace(state.spec, alpha=1.0), control.tensors),
        with_change(control, 2),
    ):
        with pytest.raises(MessageError, match="not over what it trains"):
            decode_order(encode_order(replace(fits, control=bad)))
