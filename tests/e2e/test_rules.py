"""Whole runs under each rule of aggregation: they finish, go on, and hand out what they trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from hushtune.client.app import app as client_app
from hushtune.client.site import ledger_path
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import ConfigError, QuorumError
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import Relation
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.tasks import partition
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server import checkpoint
from hushtune.server.app import federate
from hushtune.server.strategy import RoundResult
from hushtune.simulations import own_models, plots, run, saved
from hushtune.simulations.engine import InProcessGrid, run_in_process
from hushtune.simulations.study import run_federation

from ..client.test_policy import policies
from .test_resume import StopAt

SITES = ("east", "north", "south")
TEXTS = ["a lovely song", "the meal was quite grim again today", "zebra! 12", "so very dull"]
MIXED = ("flora", "flexlora", "hetlora")
RANKS = {"east": 2, "north": 4, "south": 8}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn elsewhere, and take longer than the runs."""
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


every_rule = pytest.mark.parametrize("rule", RULES)


def config(settings: Any, rule: str, **changes: Any) -> Any:
    """Four rounds, three of them after the warm-up, so that both turns of rolora come."""
    usual = {"train__rounds": 4, "train__warmup_rounds": 1, "train__learning_rate": 0.05}
    return resolve(settings.config(aggregation__rule=rule, **{**usual, **changes}))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def rows(out: Path) -> list[dict[str, Any]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def tokens(workspace: Any, state: AdapterState) -> torch.Tensor:
    """Logits of ``TEXTS`` by the model that trained, with the run's own state in it."""
    lora.install(workspace.task.model, state)
    workspace.task.model.frozen_mode()
    found = workspace.encoder(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return workspace.task.model({k: found[k] for k in ("input_ids", "attention_mask")})


def federated(
    made: Any, out: Path, *, stop: int | None = None, resume: bool = False
) -> AdapterState:
    """The final model of a run's federation alone, or KeyboardInterrupt in the round ``stop``."""

    def on_round(result: RoundResult) -> dict[str, Any]:
        if result.round == stop:
            raise KeyboardInterrupt
        return {}

    found: list[AdapterState] = []
    context, initial = RunContext(made, out), open_workspace(made).initial_state
    run_in_process(
        lambda grid: found.append(
            federate(context, grid, initial=initial, on_round=on_round, resume=resume).state
        ),
        client_app,
        num_sites=len(SITES),
        run_config=run_config(made, out),
    )
    return found[0]


# ---------------------------------------------------------------------------- each rule ----


@every_rule
def test_a_run_finishes_is_told_saved_and_goes_on_bit_for_bit(
    settings: Any, tmp_path: Path, rule: str
) -> None:
    made = config(settings, rule)
    summary = run(made, tmp_path / "whole")
    state = checkpoint.load(tmp_path / "whole" / "checkpoint").state
    assert state.is_finite()
    assert state.has_effect() != bool(RULES[rule].kept)  # fedsa's B are at the sites
    assert (summary["refusals"], summary["rejected"]) == ({}, {})
    changes = [key for key in state.keys if ".base_" in key]
    assert bool(changes) == RULES[rule].changes_base
    expected = tokens(open_workspace(made), state)
    found = saved.load(tmp_path / "whole").logits(TEXTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    check_summary(summary, rows(tmp_path / "whole"), rule)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        federated(made, out, stop=3)
    assert checkpoint.load(out / "checkpoint").round == 2
    assert federated(made, out, resume=True).to_bytes() == state.to_bytes()
    for path in sorted((tmp_path / "whole" / "own").glob("*")):
        assert (out / "own" / path.name).read_bytes() == path.read_bytes()


def check_summary(summary: dict[str, Any], told: list[dict[str, Any]], rule: str) -> None:
    assert summary["personal"] is None
    values = {site: row["value"] for site, row in summary["sites"].items()}
    worst = summary["worst_site"]
    assert worst["value"] == values[worst["site"]] == min(values.values())
    assert summary["spread"] == pytest.approx(max(values.values()) - min(values.values()))
    bias = [row.get("aggregation_bias") for row in told]
    assert bias[0] is None  # the warm-up trains no factor
    if RULES[rule].gradient or RULES[rule].kept:
        assert bias[1:] == [None] * 3
        assert summary["aggregation_bias"] is None
        assert summary["largest_bias"] is None
        return
    assert all(value >= 0 for row in bias[1:] for value in row.values())
    last = list(bias[-1].values())
    assert summary["aggregation_bias"] == pytest.approx(sum(last) / len(last))
    largest = summary["largest_bias"]
    assert largest["value"] == bias[-1][largest["module"]] == max(last)
    assert largest["rule"] == rule
    exact = rule in ("ffa", "fedsvd", "rolora", "fedex", "flora", "fedsb")
    if exact:
        assert summary["aggregation_bias"] < 1e-5
    if rule in ("fedit", "hetlora"):
        assert summary["aggregation_bias"] > 1e-3


@every_rule
def test_under_privacy_it_costs_what_was_promised(settings: Any, tmp_path: Path, rule: str) -> None:
    made = config(settings, rule, privacy__trust="site", train__rounds=3)
    context = RunContext(made, tmp_path)
    result = run_federation(context, open_workspace(made))
    assert result.state.is_finite()
    for site in SITES:
        entries = Ledger(ledger_path(tmp_path, site)).entries()
        assert 2.9 < spent(entries) <= made.privacy.epsilon
        assert len(entries) == (6 if RULES[rule].gradient else 3)
        assert result.history[-1]["epsilon"][site] == pytest.approx(spent(entries))


def spent(entries: Any) -> float:
    events = [entry.event for entry in entries]
    return epsilon(events, delta=1e-3, relation=Relation.ADD_OR_REMOVE_ONE)


CLIENTS: dict[str, Any] = {"privacy__unit": "client", "privacy__delta": 0.05}
TRUSTS: dict[str, dict[str, Any]] = {
    "distributed": {"privacy__trust": "distributed"},
    "distributed clients": {**CLIENTS, "privacy__trust": "distributed", "privacy__epsilon": 50.0},
    "server": {**CLIENTS, "privacy__trust": "server", "privacy__epsilon": 50.0},
}
OF_SUMS = {
    "distributed": {"fedit", "ffa", "fedsvd", "rolora", "fedsb", "fedsgd"},
    "distributed clients": {"fedit", "ffa", "fedsvd", "rolora", "fedsb", "fedsgd", "fedsa"},
    "server": {"fedit", "ffa", "fedsvd", "rolora", "fedsb", "fedsgd", "fedsa"},
}


@pytest.mark.parametrize("trust", TRUSTS)
@every_rule
def test_where_noise_is_on_a_sum(settings: Any, tmp_path: Path, trust: str, rule: str) -> None:
    """A rule of sums runs; another is refused before anything begins."""
    short = {"train__rounds": 2, "train__local_steps": 1, **TRUSTS[trust]}
    if rule not in OF_SUMS[trust]:
        with pytest.raises(ConfigError, match=r"aggregation\.rule"):
            config(settings, rule, **short)
        return
    made = config(settings, rule, **short)
    result = run_federation(RunContext(made, tmp_path), open_workspace(made))
    assert result.state.is_finite()
    assert not result.refusals
    assert [row.get("aggregation_bias") for row in result.history] == [None, None]
    assert all(0 < value <= 50.0 for value in result.history[-1]["epsilon"].values())


def test_no_message_of_a_fedsa_run_holds_a_b_of_a_site(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    call = InProcessGrid._call  # pyright: ignore[reportPrivateUsage]

    def listen(self: InProcessGrid, message: Message) -> Message:
        reply = call(self, message)
        for record in reply.content.array_records.values():
            sent.extend(array.data for array in record.values())
        return reply

    monkeypatch.setattr(InProcessGrid, "_call", listen)
    made = config(settings, "fedsa")
    result = run_federation(RunContext(made, tmp_path), open_workspace(made))
    assert len(sent) == 4 * len(SITES)
    assert not any(b'.lora_B"' in data.partition(b"__metadata__")[0] for data in sent)
    assert all(b"lora_B" not in data for data in sent)
    # The server's own B is the one that everybody began with.
    for module in result.state.spec.targets:
        assert not result.state.factors(module)[1].any()
    states = own_models.site_states(RunContext(made, tmp_path), result.state, run=result.run)
    assert len({state.digest() for state in states.values()}) == len(SITES)
    assert all(state.has_effect() for state in states.values())


# --------------------------------------------------------------------------- mixed ranks ----


@pytest.mark.parametrize("rule", MIXED)
def test_sites_of_three_ranks_each_get_their_own(settings: Any, tmp_path: Path, rule: str) -> None:
    made = config(settings, rule, adapter__ranks=RANKS)
    summary = run(made, tmp_path / "out")
    assert (summary["refusals"], summary["rejected"]) == ({}, {})
    last = checkpoint.load(tmp_path / "out" / "checkpoint")
    assert last.state.spec.rank == 8
    assert summary["personal"] is not None
    states = own_models.site_states(RunContext(made, tmp_path / "out"), last.state, run=last.run)
    for site, rank in RANKS.items():
        to = own_models.export_own(tmp_path / "out", site, tmp_path / site, merged=False)
        assert f"model of site {site} alone" in (to / "README.md").read_text(encoding="utf-8")
        assert states[site].spec.rank == rank
        stored = read(to / "adapter_config.json")["r"]
        # Of flora, whose adapters begin anew, everything is in the change of the weights.
        assert (rank <= stored <= 32) if RULES[rule].changes_base else stored == rank
        found = saved.load(to).logits(TEXTS)
        expected = tokens(open_workspace(made), states[site])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if rule == "flexlora":  # ranks that differ give models that do
        assert states["east"].digest() != states["south"].digest()


@pytest.mark.parametrize("rule", ["flora", "hetlora"])
def test_what_is_kept_of_the_frozen_layers_decides_nothing_whatever_the_ranks(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Features that are computed anew put another adapter into the model, and back."""
    monkeypatch.setattr("hushtune.server.app.run_name", lambda config: "one")  # one draw of batches
    states = [
        federated(
            config(settings, rule, adapter__ranks=RANKS, train__cache_megabytes=megabytes),
            tmp_path / str(megabytes),
        )
        for megabytes in (64, 0)
    ]
    assert states[0].to_bytes() == states[1].to_bytes()


def test_a_site_that_is_not_there_has_no_model(settings: Any, tmp_path: Path) -> None:
    run(config(settings, "fedsa", train__rounds=2), tmp_path / "out")
    with pytest.raises(ConfigError, match="no site of this name"):
        own_models.export_own(tmp_path / "out", "west", tmp_path / "west", merged=False)
    to = own_models.export_own(tmp_path / "out", "north", tmp_path / "north", merged=False)
    other = own_models.export_own(tmp_path / "out", "south", tmp_path / "south", merged=False)
    one, two = (saved.load(place).logits(TEXTS) for place in (to, other))
    assert (one - two).abs().max() > 1e-6


# ------------------------------------------------------------------------------ personal ----

PERSONAL: dict[str, dict[str, Any]] = {
    "finetune": {"personal__method": "finetune", "personal__steps": 3},
    "ditto": {"personal__method": "ditto", "personal__proximal": 0.5},
}


@pytest.mark.parametrize("how", PERSONAL)
def test_own_adapters_are_paid_for_within_the_promise(
    settings: Any, tmp_path: Path, how: str
) -> None:
    made = config(settings, "fedit", privacy__trust="site", **PERSONAL[how])
    summary = run(made, tmp_path / "out")
    assert summary["refusals"] == {}
    assert isinstance(summary["personal"], float)
    told = read(tmp_path / "out" / "privacy.json")["sites"]
    for site in SITES:
        entries = Ledger(ledger_path(tmp_path / "out", site)).entries()
        own = [entry for entry in entries if entry.run.endswith("/personal")]
        assert [entry.round for entry in own] == ([4] if how == "finetune" else [2, 3, 4])
        assert sum(entry.event.steps for entry in own) == (3 if how == "finetune" else 6)
        assert len(entries) == 4 + len(own)
        assert 2.9 < spent(entries) <= made.privacy.epsilon
        assert told[site]["epsilon"] == pytest.approx(spent(entries))
        assert summary["sites"][site]["epsilon"] == pytest.approx(spent(entries))
        assert spent([e for e in entries if e not in own]) < 0.97 * spent(entries)
        steps = sum(entry.event.steps for entry in entries)
        assert site_plans(made)[site].steps == steps
    states = own_models.site_states(
        RunContext(made, tmp_path / "out"),
        checkpoint.load(tmp_path / "out" / "checkpoint").shown,
        run=checkpoint.load(tmp_path / "out" / "checkpoint").run,
    )
    assert len({state.digest() for state in states.values()}) == len(SITES)


def test_a_run_that_stopped_after_the_sites_trained_for_themselves_pays_once(
    settings: Any, tmp_path: Path
) -> None:
    made = config(settings, "ffa", privacy__trust="site", **PERSONAL["ditto"])
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "out", observer=StopAt(3))
    before = {s: Ledger(ledger_path(tmp_path / "out", s)).entries() for s in SITES}
    run(made, tmp_path / "out", resume=True)
    for site, entries in before.items():
        after = Ledger(ledger_path(tmp_path / "out", site)).entries()
        assert after[: len(entries)] == entries
        assert [(e.run.endswith("/personal"), e.round) for e in after[len(entries) :]] == [
            (False, 4),
            (True, 4),
        ]
        assert spent(after) <= made.privacy.epsilon


@pytest.mark.parametrize("how", PERSONAL)
def test_own_adapters_without_privacy_are_the_same_again(
    settings: Any, tmp_path: Path, how: str
) -> None:
    made = config(settings, "fedit", **PERSONAL[how])
    whole = run(made, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "out", observer=StopAt(3))
    again = run(made, tmp_path / "out", resume=True)
    assert again["table"] == whole["table"]
    for site in SITES:
        name = f"{site}.adapter.safetensors"
        own = (tmp_path / "whole" / "own" / name).read_bytes()
        assert (tmp_path / "out" / "own" / name).read_bytes() == own
    assert whole["sites"]["east"]["personal"] is not None
    values = [whole["sites"][site]["personal"] for site in SITES]
    assert whole["worst_site"]["value"] == min(values)
    assert whole["spread"] == pytest.approx(max(values) - min(values))


def test_a_dry_run_knows_the_personal_charges_and_the_run_goes_on_without_them(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    """One site grants four charges, which is what the rounds alone make."""
    changes: dict[str, Any] = {
        "aggregation__rule": "fedit",
        "train__rounds": 4,
        "privacy__trust": "site",
        **PERSONAL["finetune"],
    }
    granted = {"max_epsilon": 9.0}
    folder = policies(
        tmp_path / "policies", east=granted, north={**granted, "max_rounds": 4}, south=granted
    )
    changes["simulation__policies"] = folder
    toml = settings.file(tmp_path, **changes)
    answer = hushtune("simulate", "--config", toml, "--dry-run", "--json")
    assert answer.status == 0, answer.err
    found = json.loads(answer.out.splitlines()[-1])["refusals"]
    assert [(row["site"], row["what"], row["code"], row["round"]) for row in found] == [
        ("north", "personal training", "HT401", 4)
    ]
    assert "north would refuse its personal training from round 4 on: HT401" in " ".join(
        answer.err.split()
    )
    run(settings.config(**changes), tmp_path / "out")
    *before, last = rows(tmp_path / "out")
    assert last["personal"]["trained"] == ["east", "south"]
    assert "HT401" in last["personal"]["missing"]["north"]
    assert all(row["rejected"] == {} for row in [*before, last])


def test_a_run_whose_sites_all_refuse_to_train_for_themselves_is_not_stopped(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    """No quorum is of what nobody else sees; of ditto's charges the rounds' follow, and end it."""
    four = {site: {"max_epsilon": 9.0, "max_rounds": 4} for site in SITES}
    changes: dict[str, Any] = {
        "aggregation__rule": "fedit",
        "train__rounds": 4,
        "privacy__trust": "site",
        "simulation__policies": policies(tmp_path / "policies", **four),
    }
    toml = settings.file(tmp_path, **changes, **PERSONAL["finetune"])
    assert hushtune("simulate", "--config", toml, "--dry-run").status == 0
    summary = run(settings.config(**changes, **PERSONAL["finetune"]), tmp_path / "out")
    assert set(summary["refusals"]) == set(SITES)
    other = settings.file(
        tmp_path,
        "ditto.toml",
        **{**changes, "simulation__policies": policies(tmp_path / "more", **four)},
        **PERSONAL["ditto"],
    )
    said = hushtune("simulate", "--config", other, "--dry-run")
    assert said.status == 2
    assert "too few sites would take part in round 4" in said.err
    with pytest.raises(QuorumError, match="round 4"):
        run(
            settings.config(
                **{**changes, "simulation__policies": str(tmp_path / "more")}, **PERSONAL["ditto"]
            ),
            tmp_path / "ditto",
        )
    assert math.isfinite(summary["value"])
