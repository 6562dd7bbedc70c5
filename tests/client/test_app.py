"""A site's answers: one charge a round, the same bytes again, nothing computed beyond a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.client import app, rounds
from hushtune.client.memory import SiteMemory
from hushtune.client.policy import SitePolicy
from hushtune.client.site import Site
from hushtune.client.terms import Terms
from hushtune.client.train import train_locally
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.encoding import encode
from hushtune.common.errors import BadValueError, DiskFullError, LabelError, PolicyError
from hushtune.common.messages import (
    ClientUpdate,
    Refusal,
    RoundOrder,
    decode_reply,
    encode_order,
    name_of_order,
)
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import RECORD
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust
from hushtune.common.roll_call_messages import encode_hello
from hushtune.common.tasks.units import Units

from .families import TensorTask, flat, make_order, moved, plan_off, private_plan, tensor_task

PLAN = private_plan(noise_multiplier=4.0)
RELATION = Relation.ADD_OR_REMOVE_ONE
TWO_STEPS = accountant.epsilon([PLAN.event(2)], delta=1e-5, relation=RELATION)


@pytest.fixture(scope="module")
def kept() -> TensorTask:
    return tensor_task(30)


@pytest.fixture
def task(kept: TensorTask) -> TensorTask:
    kept.asked.clear()
    kept.trained.clear()
    return kept


@pytest.fixture
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


def make_site(
    task: Any, path: Path | None, *, rows: int = 20, epsilon: float = TWO_STEPS, **others: Any
) -> Site:
    """A site whose budget is two steps of ``PLAN``, unless told otherwise."""
    policy = SitePolicy(
        site="north",
        trust=Trust.SITE if path else Trust.OFF,
        spec=lora.spec(task.model),
        public_size=100,
        terms=Terms(max_epsilon=epsilon, max_delta=1e-5, min_batch=1e-9, max_steps=1000),
    )
    usual = {
        "name": "north",
        "task": task,
        "units": Units.single(np.arange(rows, dtype=np.int64)),
        "public_size": 100,
        "held_out": Units.single(np.arange(20, 30, dtype=np.int64)),
        "public_held_out": 10.0,
        "dataset": "data of north",
        "unit": RECORD,
        "policy": policy,
        "limit": policy.terms.limit(whole_ledger=False),
        "ledger": Ledger(path / "north.sqlite") if path else None,
        "noise": NoiseSource(),
        "batch_key": b"11",
        "memory": SiteMemory(path or Path("nowhere"), "north"),
    }
    return Site(**{**usual, **others})


def ask(site: Site, order: RoundOrder) -> ClientUpdate | Refusal:
    return decode_reply(app.answer(encode_order(order), site))


def updated(site: Site, order: RoundOrder) -> ClientUpdate:
    reply = ask(site, order)
    assert isinstance(reply, ClientUpdate), reply
    return reply


def refused(site: Site, order: RoundOrder) -> Refusal:
    reply = ask(site, order)
    assert isinstance(reply, Refusal), reply
    return reply


class Untouchable:
    """A task of which nothing may be asked; remembers what was."""

    def __init__(self) -> None:
        self.touched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        # Raising is not enough: a site turns whatever happens in training into a refusal.
        self.touched.append(name)
        raise AssertionError(f"a refused order reached the task: {name}")


# ------------------------------------------------------------------------------- charges ----


def test_a_round_is_charged_with_its_event_and_answered(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    reply = updated(site, make_order(state, PLAN, local_steps=2))
    (entry,) = Ledger(tmp_path / "north.sqlite").entries("data of north")
    assert entry.event == PLAN.event(2)
    assert reply.charge == entry
    assert (entry.run, entry.round) == ("run", 0)
    assert reply.delta.keys == state.keys
    assert (reply.site, reply.round, reply.num_examples) == ("north", 0, 100)
    assert reply.noise == NoiseSource().description


@pytest.mark.parametrize("first", [True, False])
def test_an_empty_batch_is_noised_stepped_and_charged_once(
    task: TensorTask, state: AdapterState, tmp_path: Path, first: bool
) -> None:
    plan = replace(PLAN, sampling_probability=1e-9)
    site = make_site(task, tmp_path)
    if not first:
        updated(site, make_order(state, plan))
    reply = updated(site, make_order(state, plan, round=1))
    assert not task.asked  # no row was drawn
    assert len(site.ledger.entries("data of north")) == (1 if first else 2)  # pyright: ignore
    values = flat(reply.delta.tensors)
    right = PLAN.noise_multiplier * PLAN.clip_norm / PLAN.denominator
    assert float(values.std()) == pytest.approx(right, rel=0.2)
    assert all(bool(tensor.any()) for tensor in reply.delta.tensors.values())


def test_without_privacy_nothing_is_charged_and_nothing_is_called_noise(
    task: TensorTask, state: AdapterState
) -> None:
    reply = updated(make_site(task, None), make_order(state, plan_off()))
    assert reply.charge is None
    assert reply.noise == "none"


# --------------------------------------------------------------------------------- again ----


def raw(content: Any) -> tuple[str, bytes | None]:
    """Every byte of a reply: its text and its adapter."""
    adapter = content.array_records.get("adapter")
    return (
        str(content.config_records["hushtune"]["json"]),
        None if adapter is None else adapter["state"].data,
    )


def test_a_round_that_is_asked_for_again_gives_the_same_bytes_uncharged(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    order = encode_order(make_order(state, PLAN))
    first = app.answer(order, make_site(task, tmp_path))
    # The process ended in between, and the task must not be asked again.
    site = make_site(task, tmp_path)
    again = app.answer(order, replace(site, task=Untouchable()))
    assert raw(first)[1] is not None
    assert raw(again) == raw(first)
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1
    assert site.ledger.num_resent(site.dataset, "run") == 1


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_a_rounded_update_is_the_same_bytes_again_and_kept_and_charged_as_it_was(
    task: TensorTask, state: AdapterState, tmp_path: Path, encoding: str
) -> None:
    """Rounding comes after the charge: what is kept is exact, what it costs is the same."""
    order = encode_order(make_order(state, PLAN, encoding=encoding))
    site = make_site(task, tmp_path)
    first = app.answer(order, site)
    again = app.answer(order, replace(make_site(task, tmp_path), task=Untouchable()))
    assert raw(again) == raw(first)
    assert site.ledger is not None
    (entry,) = site.ledger.entries()
    kept = site.ledger.resend("run", 0, dataset=site.dataset, asked=name_of_order(order))
    assert kept is not None
    assert entry.event == PLAN.event(1)
    exact = AdapterState.from_bytes(kept.reply)
    assert raw(first)[1] == encode(exact, encoding)
    reply = decode_reply(first)
    assert isinstance(reply, ClientUpdate)
    assert (reply.encoding, reply.charge) == (encoding, entry)
    assert (
        0 < (reply.delta - AdapterState.from_bytes(kept.reply)).norm() < 0.02 * reply.delta.norm()
    )


def test_what_cannot_be_rounded_is_refused_once_it_is_charged(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "train_locally", lambda *_, **__: state * float("inf"))  # type: ignore[misc]
    site = make_site(task, tmp_path)
    for _ in range(2):
        reply = refused(site, make_order(state, PLAN, encoding="int8"))
        assert (reply.code, "not finite" in reply.reason) == ("HT503", True)
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1


def test_a_round_asked_again_with_another_order_is_refused_and_not_answered_with_the_old_update(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """What was trained from one adapter, added to another, would go wrong unseen."""
    site = make_site(task, tmp_path)
    order = make_order(state, PLAN)
    sent = updated(site, order)
    for other in (
        replace(order, adapter=order.adapter * 2.0),
        replace(order, training=replace(order.training, learning_rate=0.123)),
        replace(order, encoding="int8"),
    ):
        refusal = refused(replace(site, task=Untouchable()), other)
        assert (refusal.code, "another order" in refusal.reason) == ("HT402", True)
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1
    assert site.ledger.num_resent(site.dataset, "run") == 0  # nothing was handed out
    assert updated(site, order).delta.to_bytes() == sent.delta.to_bytes()


def test_of_two_processes_that_trained_the_same_round_both_send_the_first_one_s_update(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = make_order(state, PLAN)
    site, other = make_site(task, tmp_path), make_site(task, tmp_path)
    sent: list[bytes] = []

    def trained_elsewhere(*args: Any, **others: Any) -> Any:
        monkeypatch.undo()
        sent.append(updated(other, order).delta.to_bytes())
        return train_locally(*args, **others)

    monkeypatch.setattr(rounds, "train_locally", trained_elsewhere)
    assert [updated(site, order).delta.to_bytes()] == sent
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1


def test_what_is_wrong_with_the_data_stays_at_the_site() -> None:
    """A label, a row or a count in an error would leave without noise."""
    for error in (
        LabelError("label 'HIV positive' occurs once only", given="patients.csv:7"),
        BadValueError("NaN stands among numbers", file="patients.csv", row=7, column="age"),
    ):
        told = app.what_leaves(error)
        assert told == f"{error.code} the site's data cannot be used; its own log says why"
    assert app.what_leaves(PolicyError("too little noise", given="/x")) == "HT404 too little noise"


def test_again_is_answered_even_when_the_budget_is_gone(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    first = updated(site, make_order(state, PLAN))
    second = updated(site, make_order(state, PLAN, round=1))
    assert refused(site, make_order(state, PLAN, round=2)).code == "HT401"
    for round, sent in ((0, first), (1, second)):
        kept = updated(site, make_order(state, PLAN, round=round))
        assert kept.delta.to_bytes() == sent.delta.to_bytes()


def test_a_charge_that_fails_lets_nothing_out(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(task, tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("the disk is full")

    monkeypatch.setattr(Ledger, "charge_with_reply", full)
    reply = app.answer(encode_order(make_order(state, PLAN)), site)
    assert raw(reply)[1] is None
    assert isinstance(decode_reply(reply), Refusal)


def test_a_round_after_a_charge_draws_other_batches(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Batches of a round that is trained anew must be independent of those already paid for."""
    drawn = []
    for charges in (0, 0, 1):
        folder = tmp_path / f"{len(drawn)}"
        folder.mkdir()
        site = make_site(task, folder, rows=30)
        if charges:
            updated(site, make_order(state, PLAN, run="another"))
        task.asked.clear()
        updated(site, make_order(state, PLAN))
        drawn.append([list(rows) for rows in task.asked])
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_batches_differ_between_rounds_runs_and_sites(task: TensorTask) -> None:
    site = make_site(task, None)
    draws = {
        tuple(where.batch_randomness(run, round, sequence).random(4))
        for where in (site, replace(site, batch_key=b"12"))
        for run in ("a", "b")
        for round in (0, 1)
        for sequence in (0, 1)
    }
    assert len(draws) == 16


# -------------------------------------------------------------------------------- budget ----


def _long(plan: PrivacyPlan) -> PrivacyPlan:
    return replace(plan, steps=10_000)


EVASIONS: dict[str, Any] = {
    "the same again": lambda o: o,
    "another run": lambda o: replace(o, run="fresh"),
    "a smaller sigma": lambda o: replace(o, plan=replace(o.plan, noise_multiplier=1e-3)),
    "a larger epsilon": lambda o: replace(o, plan=replace(o.plan, epsilon=1e9)),
    "more steps": lambda o: replace(o, plan=_long(o.plan), local_steps=10_000),
    "more steps than granted": lambda o: replace(
        o, plan=replace(o.plan, steps=10**7), local_steps=10**7
    ),
    "steps beyond the plan": lambda o: replace(o, local_steps=11),
    "no steps": lambda o: replace(o, local_steps=0),
    "a larger delta": lambda o: replace(o, plan=replace(o.plan, delta=0.5)),
    "a smaller delta": lambda o: replace(o, plan=replace(o.plan, delta=1e-9)),
    "another clip": lambda o: replace(o, plan=replace(o.plan, clip_norm=1e6)),
    "another denominator": lambda o: replace(o, plan=replace(o.plan, denominator=1e-9)),
    "every row": lambda o: replace(o, plan=replace(o.plan, sampling_probability=1.0)),
    "another relation": lambda o: replace(o, plan=replace(o.plan, relation="replace_one")),
    "another unit": lambda o: replace(o, plan=replace(o.plan, unit="group")),
    "no privacy": lambda o: replace(o, plan=plan_off()),
    "another site": lambda o: replace(o, site="south"),
    "fewer tensors": lambda o: replace(o, trainable=("head.bias",)),
    "a NaN": lambda o: replace(o, adapter=o.adapter * float("nan")),
    "an infinity": lambda o: replace(o, adapter=o.adapter * float("inf")),
    "another base": lambda o: replace(
        o,
        adapter=AdapterState(replace(o.adapter.spec, base="00" * 32), o.adapter.tensors),
    ),
    "another scale": lambda o: replace(
        o, adapter=AdapterState(replace(o.adapter.spec, alpha=1e6), o.adapter.tensors)
    ),
}


@pytest.mark.parametrize("evasion", EVASIONS)
def test_an_exhausted_budget_is_refused_before_compute_whatever_is_ordered(
    task: TensorTask, state: AdapterState, tmp_path: Path, evasion: str
) -> None:
    site = make_site(task, tmp_path)
    assert site.ledger is not None
    site.ledger.charge(PLAN.event(2), dataset=site.dataset, run="earlier", round=0)
    untouchable = Untouchable()
    untouched = replace(site, task=untouchable)
    reply = refused(untouched, EVASIONS[evasion](make_order(state, PLAN)))
    assert reply.code in {"HT401", "HT404", "HT503"}
    assert reply.reason
    assert not untouchable.touched
    assert len(site.ledger.entries()) == 1


OWN_LIMITS = {
    "a smaller sigma": "too little noise",
    "steps beyond the plan": "more steps than its plan",
    "no steps": "more steps than its plan",
    "a larger delta": "larger delta",
    "another relation": "neighbouring relation",
    "another unit": "unit of privacy",
    "no privacy": "trust model",
    "another site": "order's site",
    "a NaN": "not finite",
    "an infinity": "not finite",
    "another base": "order's adapter",
    "another scale": "order's adapter",
}


@pytest.mark.parametrize("evasion", OWN_LIMITS)
def test_a_site_refuses_by_its_own_limits_even_with_all_of_its_budget(
    task: TensorTask, state: AdapterState, tmp_path: Path, evasion: str
) -> None:
    untouchable = Untouchable()
    site = replace(make_site(task, tmp_path), task=untouchable)
    reply = refused(site, EVASIONS[evasion](make_order(state, PLAN)))
    assert reply.code == "HT404"  # and not HT401, that of the budget
    assert OWN_LIMITS[evasion] in reply.reason.splitlines()[0]
    assert not untouchable.touched
    assert site.ledger is not None
    assert not site.ledger.entries()


def test_a_budget_ends_exactly_where_it_was_set(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    updated(site, make_order(state, PLAN))
    updated(site, make_order(state, PLAN, round=1))
    assert site.ledger is not None
    spent = site.ledger.epsilon(dataset=site.dataset, delta=1e-5, relation=RELATION)
    assert spent == pytest.approx(TWO_STEPS)
    task.asked.clear()
    refused(site, make_order(state, PLAN, round=2))
    assert not task.asked


def test_runs_on_one_data_set_share_its_budget(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    updated(site, make_order(state, PLAN, run="one", local_steps=2))
    assert refused(site, make_order(state, PLAN, run="two")).code == "HT401"
    updated(replace(site, dataset="other data"), make_order(state, PLAN, run="two"))


def test_what_another_process_spent_meanwhile_counts(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget is asked before training, and by the charge once more."""
    site = make_site(task, tmp_path)
    ask_budget = Ledger.check

    def then_another_charges(ledger: Ledger, *event: Any, **limit: Any) -> None:
        ask_budget(ledger, *event, **limit)
        ledger.charge(PLAN.event(2), dataset=site.dataset, run="another", round=0)

    monkeypatch.setattr(Ledger, "check", then_another_charges)
    assert refused(site, make_order(state, PLAN)).code == "HT401"
    assert [entry.run for entry in Ledger(tmp_path / "north.sqlite").entries()] == ["another"]


def test_data_that_change_in_a_run_get_no_new_budget(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    updated(site, make_order(state, PLAN, run="one"))
    untouchable = Untouchable()
    changed = replace(site, dataset="one word less", task=untouchable)
    assert refused(changed, make_order(state, PLAN, run="one", round=1)).code == "HT402"
    refused(changed, make_order(state, PLAN, run="one", round=0))
    assert not untouchable.touched
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1


def test_a_refusal_tells_the_server_no_value_and_no_path(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = make_site(task, tmp_path)
    assert site.ledger is not None
    site.ledger.charge(PLAN.event(1), dataset=site.dataset, run="x", round=0)
    (tmp_path / "north.sqlite.head").write_text("damaged", encoding="utf-8")
    reply = refused(site, make_order(state, PLAN))
    assert reply.code == "HT402"
    assert str(tmp_path) not in reply.reason
    assert "given" not in reply.reason


def test_an_order_to_no_one_is_refused(task: TensorTask, tmp_path: Path) -> None:
    reply = decode_reply(app.answer(encode_hello(), make_site(task, tmp_path)))
    assert isinstance(reply, Refusal)


# ------------------------------------------------------------------------------ n, n + 1 ----


def test_whether_a_gradient_is_finite_is_not_told(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """An adapter of huge, finite values makes every example overflow; a reply must not tell."""
    huge = state.map(lambda tensor: tensor * 1e38)
    plan = replace(PLAN, sampling_probability=1.0)
    told = set()
    for rows in (0, 1):
        folder = tmp_path / str(rows)
        folder.mkdir()
        site = make_site(task, folder, rows=rows, epsilon=1e6)
        order = make_order(
            state.merge(huge.select(key for key in state.keys if key.endswith(".lora_B"))),
            plan,
            trainable=("head.bias", "head.weight"),
        )
        told.add(raw(app.answer(encode_order(order), site))[0])
    assert len(told) == 1


def test_what_is_refused_after_it_was_computed_is_charged(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Else a server could compare fresh noised sums with a threshold of its choice for nothing."""
    site = make_site(task, tmp_path)
    ask(site, make_order(state.map(lambda tensor: tensor + 1e20), PLAN))
    assert site.ledger is not None
    assert len(site.ledger.entries()) == 1
    # Nor is the same round a second throw of the dice.
    untouchable = Untouchable()
    refused(replace(site, task=untouchable), make_order(state, PLAN))
    assert not untouchable.touched
    assert len(site.ledger.entries()) == 1


@pytest.mark.parametrize("size", [75, 77, 91, 93, 99])
def test_n_and_n_plus_1_rows_are_answered_with_the_same_public_numbers(
    state: AdapterState, tmp_path: Path, size: int
) -> None:
    """Everything in a reply but the noised tensors is the same, and they differ by C at most."""
    big = tensor_task(size + 1)
    plan = site_plans(
        RunConfig.model_validate(
            {
                "data": {"source": "demo", "public_sizes": {"north": size}},
                "train": {"rounds": 3, "local_steps": 2, "sampling_probability": 0.13},
                "privacy": {"delta": 1e-3},
            }
        )
    )["north"]
    assert plan.denominator == 0.13 * size
    assert plan.steps == 6
    loud = replace(plan, sampling_probability=1.0, noise_multiplier=200.0)
    replies = []
    for rows in (size, size + 1):
        folder = tmp_path / str(rows)
        folder.mkdir()
        site = make_site(big, folder, rows=rows, epsilon=1e6, public_size=size)
        site = replace(
            site,
            noise=NoiseSource.insecure(1),
            policy=replace(
                site.policy, terms=site.policy.terms.model_copy(update={"max_delta": 1e-3})
            ),
        )
        order = make_order(moved(big.model), loud, num_examples=size, microbatch=100)
        replies.append(updated(site, order))
    few, more = replies
    assert few.num_examples == more.num_examples == size
    assert few.charge is not None
    assert more.charge is not None
    assert few.charge == more.charge
    assert few.charge.event.noise_multiplier == 200.0
    bound = loud.clip_norm / loud.denominator
    # The noise is some 30 times as large as the bound: dividing it by n, then by n + 1, would show.
    assert flat(few.delta.tensors).norm() > 1000 * bound
    assert (more.delta - few.delta).norm() <= bound * (1 + 1e-3)


def test_the_reply_does_not_tell_how_many_rows_there_are(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    texts = set()
    for rows in (0, 1, 30):
        folder = tmp_path / str(rows)
        folder.mkdir()
        reply = app.answer(
            encode_order(make_order(state, PLAN)), make_site(task, folder, rows=rows)
        )
        texts.add(raw(reply)[0])
        assert len(raw(reply)[1] or b"") > 0
    assert len(texts) == 1


def test_whatever_an_order_does_to_a_site_it_gets_an_answer(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that tells nothing of what went wrong: an exception's text may hold a row."""
    site = make_site(task, tmp_path)

    def fails(*_: object, **__: object) -> None:
        raise OverflowError("row 7: a patient's words")

    monkeypatch.setattr(Ledger, "check", fails)
    reply = refused(site, make_order(state, PLAN))
    assert reply.reason == "the site's own work failed"
    assert "patient" not in reply.reason
