"""What a site keeps for itself: it is there in the next round, whole, and leaves in no message."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import Context, RecordDict

from hushtune.client import app, rounds
from hushtune.client.memory import Purpose, SiteMemory, _digest
from hushtune.client.site import Site, close_sites, open_site
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import DiskFullError, SiteError
from hushtune.common.lora_rules import FEDSA, kept_keys
from hushtune.common.messages import ClientUpdate, Refusal, RoundOrder, decode_reply, encode_order
from hushtune.common.planning import site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.run_context import run_config
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.orders import make_orders
from hushtune.server.personal import personal_order

from .families import (
    TensorTask,
    make_order,
    moved,
    plan_off,
    private_plan,
    tensor_task,
    with_change,
)
from .test_app import make_site, updated

RUN = "a run"
FACTORS = Purpose.FACTORS


@pytest.fixture(scope="module")
def task() -> TensorTask:
    return tensor_task(30)


@pytest.fixture(scope="module")
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


@pytest.fixture
def memory(tmp_path: Path) -> SiteMemory:
    return SiteMemory(tmp_path / "own", "north")


def same(one: AdapterState | None, other: AdapterState) -> bool:
    return one is not None and one.to_bytes() == other.to_bytes()


# ------------------------------------------------------------------------------- the file ----


def test_nothing_is_there_at_first(memory: SiteMemory) -> None:
    for purpose in Purpose:
        assert memory.before(purpose, run=RUN, round=9) is None
        assert memory.newest(purpose, run=RUN) is None
    assert not memory.folder.exists()


def test_a_round_begins_with_what_the_one_before_made(
    memory: SiteMemory, state: AdapterState
) -> None:
    for number in (1, 2, 4):
        memory.keep(FACTORS, float(number) * state, run=RUN, round=number)
    assert same(memory.newest(FACTORS, run=RUN), 4.0 * state)
    for asked, expected in ((5, 4.0), (9, 4.0), (4, 2.0), (3, 2.0)):
        assert same(memory.before(FACTORS, run=RUN, round=asked), expected * state)
    # Of two rounds it is known how they began; of earlier ones it is forgotten.
    assert memory.before(FACTORS, run=RUN, round=2) is None


def test_a_round_that_is_asked_for_again_begins_where_it_began_and_is_kept_once(
    memory: SiteMemory, state: AdapterState
) -> None:
    memory.keep(FACTORS, state, run=RUN, round=1)
    for factor in (2.0, 3.0):
        assert same(memory.before(FACTORS, run=RUN, round=2), state)
        memory.keep(FACTORS, factor * state, run=RUN, round=2)
    assert same(memory.newest(FACTORS, run=RUN), 3.0 * state)
    # A run that goes on from an older checkpoint forgets what came after it.
    memory.keep(FACTORS, 4.0 * state, run=RUN, round=1)
    assert same(memory.newest(FACTORS, run=RUN), 4.0 * state)
    assert same(memory.before(FACTORS, run=RUN, round=7), 4.0 * state)


def test_what_was_not_paid_for_is_as_if_it_had_not_been_kept(
    memory: SiteMemory, state: AdapterState
) -> None:
    memory.keep(FACTORS, state, run=RUN, round=1, paid={1})
    memory.keep(FACTORS, 2.0 * state, run=RUN, round=2, paid={1})
    for paid, expected in (({1}, 1.0), ({1, 2}, 2.0), (None, 2.0)):
        assert same(memory.newest(FACTORS, run=RUN, paid=paid), expected * state)
        assert same(memory.before(FACTORS, run=RUN, round=3, paid=paid), expected * state)
    assert memory.newest(FACTORS, run=RUN, paid=()) is None
    memory.keep(FACTORS, 3.0 * state, run=RUN, round=3, paid={1})  # and 1 is not pushed out by 2
    assert same(memory.before(FACTORS, run=RUN, round=3, paid={1}), state)


def test_purposes_sites_and_runs_are_apart(memory: SiteMemory, state: AdapterState) -> None:
    for place, purpose in enumerate(Purpose):
        memory.keep(purpose, float(place + 1) * state, run=RUN, round=1)
    south = SiteMemory(memory.folder, "south")
    south.keep(FACTORS, 9.0 * state, run=RUN, round=1)
    for place, purpose in enumerate(Purpose):
        assert same(memory.newest(purpose, run=RUN), float(place + 1) * state)
        assert memory.newest(purpose, run="another") is None
        assert memory.before(purpose, run="another", round=9) is None
    names = {memory.file(purpose) for purpose in Purpose} | {south.file(FACTORS)}
    assert len(names) == 4
    assert {path.name for path in memory.folder.iterdir()} == {path.name for path in names}


def test_another_run_begins_anew_and_takes_the_file(
    memory: SiteMemory, state: AdapterState
) -> None:
    memory.keep(FACTORS, state, run=RUN, round=8)
    assert memory.before(FACTORS, run="another", round=9) is None
    memory.keep(FACTORS, 2.0 * state, run="another", round=1)
    assert same(memory.newest(FACTORS, run="another"), 2.0 * state)
    assert memory.newest(FACTORS, run=RUN) is None
    assert memory.before(FACTORS, run="another", round=1) is None


def test_two_rounds_may_hold_different_tensors(memory: SiteMemory, state: AdapterState) -> None:
    head, all_of_it = state.select(["head.bias"]), with_change(state, 2)
    memory.keep(FACTORS, head, run=RUN, round=1)
    memory.keep(FACTORS, all_of_it, run=RUN, round=11)  # "1/" is not the beginning of "11/"
    assert same(memory.before(FACTORS, run=RUN, round=11), head)
    assert same(memory.newest(FACTORS, run=RUN), all_of_it)


@pytest.mark.skipif(os.name != "posix", reason="no such permissions")
def test_it_is_for_the_owner_s_eyes_alone(memory: SiteMemory, state: AdapterState) -> None:
    before = os.umask(0o000)
    try:
        for number in (1, 2):
            memory.keep(FACTORS, state, run=RUN, round=number)
            assert memory.file(FACTORS).stat().st_mode & 0o777 == 0o600
            assert memory.folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_a_write_that_fails_leaves_what_was_there(
    memory: SiteMemory, state: AdapterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.keep(FACTORS, state, run=RUN, round=1)
    before = memory.file(FACTORS).read_bytes()

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    for what in ("replace", "rename"):
        monkeypatch.setattr(os, what, stopped)
    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        memory.keep(FACTORS, 2.0 * state, run=RUN, round=2)
    monkeypatch.undo()
    assert memory.file(FACTORS).read_bytes() == before
    assert same(memory.newest(FACTORS, run=RUN), state)


def not_finite(data: bytes) -> bytes:
    tensors = {
        key: torch.full_like(value, np.nan) for key, value in safetensors.torch.load(data).items()
    }
    return edited()(safetensors.torch.save(tensors, metadata(data)))


def metadata(data: bytes) -> dict[str, str]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def flipped(data: bytes) -> bytes:
    """A value that is one bit off, and finite."""
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]


def edited(**changes: Any) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        text = metadata(data)["hushtune"].split(" ", 1)[1]
        tensors = safetensors.torch.load(data)
        text = json.dumps({**json.loads(text), **changes})
        signed = f"{_digest(text, tensors)} {text}"  # so that the edit itself has to be seen
        return safetensors.torch.save(tensors, {"hushtune": signed})

    return edit


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "a byte less": lambda data: data[:-1],
    "other bytes": lambda data: b"\xff" * len(data),
    "a header beyond the file": lambda data: (2**40).to_bytes(8, "little") + data[8:],
    "not a number": not_finite,
    "one bit of a value": flipped,
    "one digit of a round": lambda data: data.replace(b'rounds\\": [1]', b'rounds\\": [2]'),
    "no metadata": lambda data: safetensors.torch.save(safetensors.torch.load(data)),
    "no rounds": edited(rounds=None),
    "a round that is none": edited(rounds=["one"]),
    "no description": edited(spec={}),
    "another description": edited(
        spec={"base": "", "rank": 1, "alpha": 1.0, "rslora": False, "targets": [], "head": []}
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_an_error_that_names_it(
    memory: SiteMemory, state: AdapterState, how: str
) -> None:
    memory.keep(FACTORS, state, run=RUN, round=1)
    path = memory.file(FACTORS)
    damaged = DAMAGE[how](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    for use in (
        lambda: memory.newest(FACTORS, run=RUN),
        lambda: memory.before(FACTORS, run=RUN, round=2),
        lambda: memory.keep(FACTORS, state, run=RUN, round=2),
    ):
        with pytest.raises(SiteError, match="cannot be read") as caught:
            use()
        assert str(path) in str(caught.value.given)
        assert "backup" in str(caught.value.remedy)


# --------------------------------------------------------------------------------- FedSA ----

SHARED = private_plan(noise_multiplier=4.0)


def order_of(state: AdapterState, number: int, plan: PrivacyPlan, **changed: Any) -> RoundOrder:
    return make_order(state, plan, rule="fedsa", round=number, learning_rate=0.5, **changed)


def all_bytes(content: RecordDict) -> bytes:
    """Every byte of a message: texts and adapters."""
    texts = [str(v).encode() for r in content.config_records.values() for v in r.values()]
    arrays = [a.data for r in content.array_records.values() for a in r.values()]
    return b"".join([*texts, *arrays])


def holds_any(data: bytes, tensor: torch.Tensor) -> bool:
    """Whether two neighbouring values of a tensor are in some bytes, beside each other."""
    raw = tensor.contiguous().numpy().tobytes()
    return any(raw[at : at + 8] in data for at in range(0, len(raw) - 8, 4))


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_b_is_in_no_message(
    task: TensorTask, state: AdapterState, tmp_path: Path, private: bool, encoding: str
) -> None:
    site = site_at(task, tmp_path, private=private)
    plan = SHARED if private else plan_off()
    for number in (0, 1, 2):
        start = site.memory.newest(FACTORS, run="run")
        content = app.answer(encode_order(order_of(state, number, plan, encoding=encoding)), site)
        reply = decode_reply(content)
        assert isinstance(reply, ClientUpdate), reply
        kept = site.memory.newest(FACTORS, run="run")
        assert kept is not None
        assert set(kept.keys) == kept_keys(FEDSA, state.spec)
        assert reply.delta.keys == tuple(k for k in state.keys if not k.endswith(".lora_B"))
        said = all_bytes(content)
        assert b"lora_A" in said
        assert b"lora_B" not in said
        begun = state if start is None else state.merge(start)
        for key, tensor in kept.tensors.items():
            change = tensor - begun.tensors[key]
            assert change.any()
            for secret in (tensor, change, tensor.bfloat16().view(torch.int16)):
                assert not holds_any(said, secret)
        if encoding == "float32":  # the search finds what is there
            assert holds_any(said, reply.delta.tensors["head.weight"])


def site_at(task: TensorTask, folder: Path, *, private: bool) -> Site:
    memory = SiteMemory(folder / "own", "north")
    return make_site(task, folder if private else None, epsilon=1e6, memory=memory)


def test_a_site_goes_on_with_its_own_b_and_not_with_the_order_s(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = site_at(task, tmp_path, private=False)
    zero_b = AdapterState(
        state.spec,
        {k: torch.zeros_like(t) if k.endswith("_B") else t for k, t in state.tensors.items()},
    )
    updated(site, order_of(zero_b, 0, plan_off()))
    kept = site.memory.newest(FACTORS, run="run")
    assert kept is not None
    own = zero_b.merge(kept)
    assert own.has_effect()
    assert same(rounds.own_model(zero_b, site, run="run"), own)
    assert same(rounds.own_model(zero_b, site, run="another"), zero_b)
    # The next round's change is what plain training of both makes of the site's own model.
    found = updated(site, order_of(zero_b, 1, plan_off()))
    plain = site_at(task, tmp_path / "plain", private=False)
    expected = updated(plain, replace(order_of(own, 1, plan_off()), rule="fedit"))
    for key in found.delta.keys:
        assert torch.equal(found.delta.tensors[key], expected.delta.tensors[key])
    after = site.memory.newest(FACTORS, run="run")
    assert after is not None
    for key in after.keys:
        assert torch.equal(after.tensors[key], kept.tensors[key] + expected.delta.tensors[key])


@pytest.mark.parametrize("private", [False, True])
def test_a_round_asked_again_gives_the_same_bytes_and_the_same_b(
    task: TensorTask, state: AdapterState, tmp_path: Path, private: bool
) -> None:
    site = site_at(task, tmp_path, private=private)
    plan = SHARED if private else plan_off()
    updated(site, order_of(state, 0, plan))
    order = encode_order(order_of(state, 1, plan))
    said = all_bytes(app.answer(order, site))
    kept = site.memory.file(FACTORS).read_bytes()
    for _ in range(2):  # the process ended in between
        site = site_at(task, tmp_path, private=private)
        assert all_bytes(app.answer(order, site)) == said
        assert site.memory.file(FACTORS).read_bytes() == kept


def test_the_warm_up_keeps_nothing(task: TensorTask, state: AdapterState, tmp_path: Path) -> None:
    site = site_at(task, tmp_path, private=False)
    heads = ("head.bias", "head.weight")
    assert updated(site, order_of(state, 0, plan_off(), trainable=heads)).delta.keys == heads
    assert not site.memory.folder.exists()


def test_a_b_whose_charge_failed_has_no_part_in_what_is_sent_later(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else later answers would follow from noised gradients that nobody paid for."""
    site = site_at(task, tmp_path, private=True)
    updated(site, order_of(state, 0, SHARED))
    paid = site.memory.newest(FACTORS, run="run")
    assert paid is not None

    def full(*_: Any, keep: Callable[[], None], **__: Any) -> None:
        keep()  # as it is where the commit itself fails
        raise DiskFullError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "charge_with_reply", full)
        reply = decode_reply(app.answer(encode_order(order_of(state, 1, SHARED)), site))
        assert isinstance(reply, Refusal)
    begun: list[AdapterState] = []
    original = rounds.train_locally

    def noted(*args: Any, **how: Any) -> AdapterState:
        begun.append(how["start"])
        return original(*args, **how)

    monkeypatch.setattr(rounds, "train_locally", noted)
    assert same(rounds.own_model(state, site, run="run"), state.merge(paid))
    updated(site, order_of(state, 2, SHARED))
    assert same(begun[0], state.merge(paid))
    updated(site, order_of(state, 3, SHARED))
    last = site.memory.before(FACTORS, run="run", round=3)
    assert last is not None
    assert same(begun[1], state.merge(last))
    assert not same(begun[1], begun[0])


def test_of_two_processes_the_b_is_kept_that_goes_with_the_reply_that_was_paid_for(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one's B was trained beside an A that nobody has."""
    site, other = site_at(task, tmp_path, private=True), site_at(task, tmp_path, private=True)
    order = order_of(state, 0, SHARED)
    first: list[AdapterState | None] = []
    original = rounds.train_locally

    def trained_elsewhere(*args: Any, **how: Any) -> AdapterState:
        monkeypatch.undo()
        updated(other, order)
        first.append(other.memory.newest(FACTORS, run="run"))
        return original(*args, **how)

    monkeypatch.setattr(rounds, "train_locally", trained_elsewhere)
    updated(site, order)
    (kept,) = first
    assert kept is not None
    assert same(site.memory.newest(FACTORS, run="run"), kept)


def test_a_b_that_cannot_be_kept_is_neither_charged_nor_sent(
    task: TensorTask, state: AdapterState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_at(task, tmp_path, private=True)

    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(SiteMemory, "keep", full)
        reply = decode_reply(app.answer(encode_order(order_of(state, 0, SHARED)), site))
    assert isinstance(reply, Refusal)
    assert site.ledger is not None
    assert not site.ledger.entries()
    updated(site, order_of(state, 0, SHARED))
    assert [entry.round for entry in site.ledger.entries()] == [0]


def test_a_damaged_memory_is_a_refusal_that_says_nothing_of_the_place(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    site = site_at(task, tmp_path, private=False)
    updated(site, order_of(state, 0, plan_off()))
    site.memory.file(FACTORS).write_bytes(b"?")
    reply = decode_reply(app.answer(encode_order(order_of(state, 1, plan_off())), site))
    assert isinstance(reply, Refusal)
    assert "keeps of the model for itself" in reply.reason
    assert str(tmp_path) not in reply.reason


# ------------------------------------------------------------------------ a site's restart ----


def opened(settings: Any, out: Path, **changes: Any) -> tuple[Any, Site]:
    """The first site of a run in a folder, as a new process of its node opens it."""
    close_sites()
    config = resolve(settings.config(**changes))
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0, "num-partitions": 3},
        state=RecordDict(),
        run_config=run_config(config, out),
    )
    return config, open_site(context)


@pytest.mark.parametrize("trust", ["off", "site"])
@pytest.mark.parametrize("what", ["factors", "adapter"])
def test_what_is_kept_survives_a_restart_of_the_site(
    settings: Any, tmp_path: Path, trust: str, what: str
) -> None:
    own: dict[str, Any] = {"personal__method": "ditto", "aggregation__rule": "ffa"}
    changes = {"aggregation__rule": "fedsa"} if what == "factors" else own
    changes |= {"privacy__trust": trust, "privacy__insecure_seeded_noise": trust == "site"}
    purpose = Purpose(what)

    def asked(number: int, config: Any) -> RoundOrder:
        state = open_workspace(config).initial_state
        plans, sizes = site_plans(config), config.data.public_sizes
        orders = make_orders(state, run="r", round=number, config=config, plans=plans, sizes=sizes)
        return (
            orders["east"] if what == "factors" else personal_order(orders["east"], config=config)
        )

    kept: list[bytes] = []
    for restarted in (False, True):
        out = tmp_path / str(restarted)
        config, site = opened(settings, out, **changes)
        updated(site, asked(2, config))
        first = site.memory.newest(purpose, run="r")
        if restarted:
            _, site = opened(settings, out, **changes)
            assert first is not None
            assert same(site.memory.newest(purpose, run="r"), first)
        updated(site, asked(3, config))
        last = site.memory.newest(purpose, run="r")
        assert last is not None
        assert not same(last, first)  # type: ignore[arg-type]
        # Seeded noise goes on where the process left it, so that with noise only this is equal.
        kept.append(last.to_bytes() if trust == "off" else b"")
    close_sites()
    assert kept[0] == kept[1]


def test_no_site_s_name_leads_out_of_the_folder(memory: SiteMemory) -> None:
    odd = SiteMemory(memory.folder, "../../ward 7")
    assert odd.file(FACTORS).parent == memory.folder
