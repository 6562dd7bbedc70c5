"""Runs under trust = "distributed": equal to pooled training, resumable, refused where too few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from hushtune.client import app as client
from hushtune.client import dp, secure
from hushtune.client.site import close_sites, ledger_path
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import ConfigError, PlanError, QuorumError, SiteError
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Relation
from hushtune.common.run_context import RunContext
from hushtune.common.schedules import learning_rate
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.secure import SecureSession
from hushtune.simulations import run
from hushtune.simulations.observer import Silent
from hushtune.simulations.study import run_federation

from ..conftest import Command, Settings

SITES = ("east", "north", "south")


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the noise are zero, so that weights can be compared."""

    def zeros(source: NoiseSource, size: int, *, std: float) -> np.ndarray:
        del source, std
        return np.zeros(size, np.int64)

    monkeypatch.setattr(secure, "discrete_gaussian", zeros)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Units]:
    """The batches that the sites draw, in order."""
    batches: list[Units] = []
    draw = dp.poisson_batch

    def noted(units: Units, probability: float, random: np.random.Generator) -> Units:
        batches.append(draw(units, probability, random))
        return batches[-1]

    monkeypatch.setattr(dp, "poisson_batch", noted)
    return batches


def distributed(settings: Settings, **changes: Any) -> Any:
    return resolve(settings.config(**{"privacy__trust": "distributed", **changes}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.usefixtures("no_noise")
def test_without_noise_it_is_pooled_training_on_the_same_batches(
    settings: Settings, tmp_path: Path, drawn: list[Units], optimizer: str
) -> None:
    config = distributed(
        settings,
        train__optimizer=optimizer,
        train__schedule="linear",
        train__learning_rate=0.02 if optimizer == "adamw" else 2.0,
        train__warmup_learning_rate=0.02 if optimizer == "adamw" else 2.0,
        train__weight_decay=0.1,
        privacy__clip_norm=0.5,
        # The same batches each time: of a gradient that cancels out in one, all that the grid of
        # whole numbers leaves is a sign, which Adam takes as a whole step.
        privacy__insecure_seeded_noise=True,
    )
    workspace = open_workspace(config)
    found = run_federation(RunContext(config, tmp_path / "run"), workspace).state
    steps = config.train.rounds * config.train.local_steps
    assert len(drawn) == steps * len(SITES)
    pooled = [
        np.concatenate([drawn[step * len(SITES) + place].rows for place in range(len(SITES))])
        for step in range(steps)
    ]
    expected = reference(config, workspace, pooled)
    moved = (found - workspace.initial_state).norm()
    assert moved > 0.05
    # Adam divides a gradient by its own size, so that it enlarges what rounding to the grid leaves
    # of one that nearly cancels out; by how much depends on the machine's arithmetic.
    assert (found - expected).norm() <= (0.01 if optimizer == "adamw" else 1e-4) * moved
    if optimizer == "sgd":
        for key, tensor in found.tensors.items():
            assert torch.allclose(tensor, expected.tensors[key], rtol=0, atol=1e-5), key


def reference(config: Any, workspace: Any, batches: list[np.ndarray]) -> AdapterState:
    """DP-SGD at one place without noise: a record at a time, and torch's own optimisers."""
    task, train = workspace.task, config.train
    plan = next(iter(site_plans(config).values()))
    state: AdapterState = workspace.initial_state
    warm = train.warmup_rounds * train.local_steps
    for phase in (range(warm), range(warm, len(batches))):
        keys = [key for key in state.keys if key.startswith("head.") or phase.start]
        keys = [key for key in keys if not key.endswith("lora_A")]
        lora.install(task.model, state)
        trained = lora.set_trainable(task.model, keys)
        rate = train.learning_rate if phase.start else train.warmup_learning_rate
        kind = torch.optim.AdamW if train.optimizer == "adamw" else DecayedSGD
        optimizer = kind(trained.values(), lr=rate, weight_decay=train.weight_decay)
        task.model.training_mode()
        for step in phase:
            total = {key: torch.zeros_like(parameter) for key, parameter in trained.items()}
            for row in batches[step]:
                level = task.level(lora.extract(task.model, state.keys), tuple(keys))
                lora.set_trainable(task.model, keys)
                batch = task.batch(np.array([row]), level)
                loss = task.example_losses(batch).sum()
                gradients = torch.autograd.grad(loss, list(trained.values()))
                norm = torch.sqrt(sum(g.double().square().sum() for g in gradients))
                factor = min(1.0, config.privacy.clip_norm / float(norm))
                for key, gradient in zip(trained, gradients, strict=True):
                    total[key] += factor * gradient
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(rate, train.schedule, step - phase.start, len(phase))
            for key, parameter in trained.items():
                parameter.grad = total[key] / plan.denominator
            optimizer.step()
        state = lora.extract(task.model, state.keys)
    return state


class DecayedSGD(torch.optim.SGD):
    """SGD whose weight decay is decoupled, as in AdamW."""

    def __init__(self, parameters: Any, *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, lr=lr)
        self._decay = weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * self._decay)
        super().step(closure)


def test_each_step_is_charged_once_at_each_site_for_the_pooled_mechanism(
    settings: Settings, tmp_path: Path
) -> None:
    config = distributed(settings)
    summary = run(config, tmp_path)
    steps = config.train.rounds * config.train.local_steps
    told = json.loads((tmp_path / "privacy.json").read_text())
    extra = told["secure_sum"]["epsilon_of_whole_numbers"]
    assert summary["rests_on"] in json.dumps(told["sentences"])
    assert "a sum was opened only with all 3 sites in it" in summary["rests_on"]
    for site in SITES:
        entries = Ledger(ledger_path(tmp_path, site)).entries()
        assert [entry.round for entry in entries] == list(range(1, steps + 1))
        spent = accountant.epsilon(
            [entry.event for entry in entries],
            delta=1e-3,
            relation=Relation.ADD_OR_REMOVE_ONE,
        )
        assert 0 < extra < 1e-6
        assert spent + extra == summary["sites"][site]["epsilon"]
        assert 2.9 < spent <= 3.0
    plans = set(map(str, site_plans(config).values()))
    assert len(plans) == 1
    privacy = json.loads((tmp_path / "privacy.json").read_text())
    assert privacy["guarantee"]
    assert privacy["trust"] == "distributed"
    assert privacy["lost_rounds"] == []
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "for one record of any site, if the server keeps to the protocol and at most one" in card
    assert "Each sum was opened with all 3 sites in it." in card


def test_a_site_adds_less_noise_than_if_it_stood_alone(settings: Settings) -> None:
    """The gain over noise at each site: shares of one noise, over three times the records."""
    shared = next(iter(site_plans(distributed(settings)).values()))
    alone = site_plans(distributed(settings, privacy__trust="site"))["east"]
    assert shared.noise_multiplier == pytest.approx(alone.noise_multiplier, rel=0.05)
    assert shared.denominator > 3 * alone.denominator


def test_noise_whose_shares_cannot_be_drawn_is_refused_when_it_is_planned(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site_plans(distributed(settings))
    monkeypatch.setattr("hushtune.common.secagg.cohort.MOST_SHARE", 0.1)
    for changes in (
        {},
        {"privacy__unit": "client", "privacy__epsilon": 50.0, "privacy__delta": 0.05},
    ):
        with pytest.raises(PlanError, match="cannot be drawn in whole numbers"):
            site_plans(distributed(settings, **changes))


def test_too_few_survivors_refuse_the_round_and_reveal_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distributed(settings)
    opened: list[str] = []
    original_open, original_step = client.opening.answer_open, client.answer_step

    def failing(content: Any, site: Any, state: Any) -> Any:
        if site.name == "north" and len(Ledger(site.ledger.path).entries()) >= 2:
            raise RuntimeError("broken")
        return original_step(content, site, state)

    def noted(content: Any, site: Any, state: Any) -> Any:
        opened.append(site.name)
        return original_open(content, site, state)

    monkeypatch.setattr(client, "answer_step", failing)
    monkeypatch.setattr(client.opening, "answer_open", noted)
    with pytest.raises(QuorumError, match="north"):
        run(config, tmp_path)
    assert len(opened) == 2 * len(SITES)
    monkeypatch.undo()
    # The steps that were charged and not opened are lost, and paid for once: the run goes on.
    summary = run(config, tmp_path, resume=True)
    numbers = [entry.round for entry in Ledger(ledger_path(tmp_path, "east")).entries()]
    assert numbers == [1, 2, 3, 5, 6]
    assert summary["sites"]["east"]["epsilon"] < 3.0
    told = {s: row["epsilon"] for s, row in summary["sites"].items()}
    # The statement's has what whole numbers add.
    assert shown_at_last(tmp_path) == pytest.approx(told, abs=1e-5)


def test_a_run_goes_on_after_a_crash_and_asks_for_no_step_twice(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distributed(settings)
    from hushtune.server import distributed as rounds

    original, calls = rounds.mean_of, []

    def crash(total: Any, order: Any) -> AdapterState:
        calls.append(order.round)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(total, order)

    monkeypatch.setattr(rounds, "mean_of", crash)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    summary = run(config, tmp_path / "run", resume=True)
    told = {site: row["epsilon"] for site, row in summary["sites"].items()}
    assert shown_at_last(tmp_path / "run") == pytest.approx(told, abs=1e-5)
    for site in SITES:
        numbers = [e.round for e in Ledger(ledger_path(tmp_path / "run", site)).entries()]
        assert numbers == [1, 2, 3, 4, 5, 6]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [bool(row["accepted"]) for row in rows] == [True, False, True]
    assert rows[1]["update_norm"] == 0
    privacy = json.loads((tmp_path / "run/privacy.json").read_text(encoding="utf-8"))
    assert privacy["lost_rounds"] == [2]
    for page in ("privacy.md", "privacy.html"):
        text = (tmp_path / "run" / page).read_text(encoding="utf-8")
        assert "Round 2 was lost: the server stopped" in text


def test_the_dry_run_tells_the_noise_that_is_in_a_sum(
    settings: Settings, tmp_path: Path, hushtune: Command
) -> None:
    for false, times in ((0, "1.00"), (1, "1.22"), (2, "1.73")):
        file = settings.file(tmp_path, privacy__trust="distributed", privacy__colluding_sites=false)
        said = hushtune("simulate", "--config", file, "--dry-run")
        assert said.status == 0, said.err
        assert f"noise in a sum: {times} times as long as planned" in " ".join(said.out.split())


def test_charges_of_secure_sums_are_numbered_by_step(
    settings: Settings, tmp_path: Path, hushtune: Command
) -> None:
    run(replace_rounds(distributed(settings)), tmp_path)
    assert "step" in hushtune("ledger", "show", tmp_path).out.split("steps")[0]


def shown_at_last(out: Path) -> dict[str, float]:
    """The epsilon of each site that the run's last round shows."""
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["epsilon"]


@pytest.mark.parametrize("how", ["stopped", "too few sites"])
def test_a_ledger_without_the_steps_of_a_lost_round_is_noticed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Put back as it was before the round, with its head: it lacks charges that it has shown."""
    config, out, kept = distributed(settings), tmp_path / "run", tmp_path / "kept"

    class Copy(Silent):
        def round_done(self, row: Any) -> None:
            if row["round"] == 1:
                shutil.copytree(out / "ledger", kept)

    original = SecureSession.step

    def ended(session: SecureSession, orders: Any) -> Any:
        if next(iter(orders.values())).round == 3:
            opened = original(session, orders)
            if how == "stopped":
                raise KeyboardInterrupt
            raise QuorumError(f"too few sites, {len(opened.survivors)}")
        return original(session, orders)

    monkeypatch.setattr(SecureSession, "step", ended)
    with pytest.raises((KeyboardInterrupt, QuorumError)):
        run(config, out, observer=Copy())
    monkeypatch.undo()
    close_sites()
    for file in (out / "ledger").glob("north*"):
        file.unlink()
        shutil.copy2(kept / file.name, file)
    with pytest.raises(SiteError, match=r"(?s)1 of 3 sites.*north: HT402 the ledger lacks charges"):
        run(config, out, resume=True)


def test_whole_clients_are_protected_by_their_shares(settings: Settings, tmp_path: Path) -> None:
    config = distributed(
        settings, privacy__unit="client", privacy__epsilon=50.0, privacy__delta=0.05
    )
    run(config, tmp_path)
    entries = Ledger(ledger_path(tmp_path, "east")).entries()
    assert [(e.round, e.unit, e.event.steps) for e in entries] == [
        (number, "client", 1) for number in (1, 2, 3)
    ]
    assert {e.event.sampling_probability for e in entries} == {1.0}
    told = json.loads((tmp_path / "privacy.json").read_text())
    assert told["unit"] == "client"


@pytest.mark.usefixtures("no_noise")
def test_a_client_s_change_is_clipped_before_it_is_summed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distributed(
        settings,
        privacy__unit="client",
        privacy__epsilon=50.0,
        privacy__delta=0.05,
        privacy__clip_norm=0.01,
        train__learning_rate=1.0,
        train__warmup_learning_rate=1.0,
    )
    norms: list[float] = []
    original = secure._clipped  # pyright: ignore[reportPrivateUsage]

    def noted(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        norms.append(float(np.linalg.norm(secure.one_vector(found))))
        return found

    monkeypatch.setattr(secure, "_clipped", noted)
    workspace = open_workspace(config)
    state = run_federation(RunContext(config, tmp_path), workspace).state
    assert norms == pytest.approx([0.01] * 9, rel=1e-5)
    assert 0 < (state - workspace.initial_state).norm() <= 0.03 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"simulation__sites_per_round": 2}, "between all sites"),
        ({"aggregation__optimizer": "adam"}, "optimiser's steps itself"),
        ({"privacy__trust": "site", "privacy__unit": "client"}, "not protected under this trust"),
        ({"privacy__trust": "server"}, "not protected under this trust"),
    ],
)
def test_what_does_not_go_together_is_refused(
    settings: Settings, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        distributed(settings, **changes)


@pytest.mark.parametrize(
    "changes", [{"privacy__min_survivors": 2}, {"privacy__colluding_sites": 3}]
)
def test_a_cohort_that_protects_nothing_is_refused_before_the_run(
    settings: Settings, tmp_path: Path, changes: dict[str, Any], hushtune: Command
) -> None:
    file = settings.file(tmp_path, privacy__trust="distributed", **changes)
    answer = hushtune("simulate", "--config", file, "--out", tmp_path / "run")
    assert answer.status == 2
    assert "privacy" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_site_whose_policy_does_not_know_the_trust_model_refuses(
    settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    for site in SITES:
        trust = '["site"]' if site == "south" else '["distributed"]'
        (folder / f"{site}.toml").write_text(
            f"max_epsilon = 100.0\nmax_delta = 1e-3\ntrust = {trust}\n"
        )
    config = distributed(settings, simulation__policies=str(folder))
    with pytest.raises(QuorumError, match=r"south: HT404 an order's trust model"):
        run(config, tmp_path / "run")
    assert not Ledger(folder / "east.sqlite").entries()
    for site in SITES:
        (folder / f"{site}.toml").write_text(
            'max_epsilon = 100.0\nmax_delta = 1e-3\ncolluding_sites = 2\ntrust = ["distributed"]\n'
        )
    with pytest.raises(QuorumError, match="withstands fewer false sites"):
        run(config, tmp_path / "other")


def test_messages_of_a_run_hold_no_vector_of_a_site(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a site sends in a step is its masked numbers; its own sum is in none of them."""
    sums: list[bytes] = []
    sent: list[bytes] = []
    original = secure.to_ring

    def noted(values: np.ndarray, *, clip_norm: float) -> np.ndarray:
        sums.append((found := original(values, clip_norm=clip_norm)).tobytes())
        return found

    from hushtune.simulations.engine import InProcessGrid

    call = InProcessGrid._call  # pyright: ignore[reportPrivateUsage]

    def listen(self: InProcessGrid, message: Message) -> Message:
        reply = call(self, message)
        for record in reply.content.array_records.values():
            sent.extend(array.data for array in record.values())
        return reply

    monkeypatch.setattr(secure, "to_ring", noted)
    monkeypatch.setattr(InProcessGrid, "_call", listen)
    run(replace_rounds(distributed(settings)), tmp_path)
    assert len(sums) == len(sent) == 2 * len(SITES)
    for own in sums:
        words = np.frombuffer(own, np.uint64)
        for message in sent:
            assert not np.isin(words, np.frombuffer(message, np.uint64)).any()


def replace_rounds(config: Any) -> Any:
    """A run of one round."""
    train = config.train.model_copy(update={"rounds": 1, "warmup_rounds": 0})
    return config.model_copy(update={"train": train})
