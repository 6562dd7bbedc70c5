"""Simulated attackers: who they are, what exactly they send, and that nothing else changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from hushtune.client.app import app as client_app
from hushtune.client.site import ledger_path
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.errors import ConfigError
from hushtune.common.messages import (
    ClientUpdate,
    Refusal,
    RoundOrder,
    decode_reply,
    encode_order,
    encode_refusal,
)
from hushtune.common.model import Level
from hushtune.common.planning import POOLED, site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.run_context import run_config
from hushtune.common.tasks.targets import DenseTargets
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.app import app as server_app
from hushtune.server.orders import make_orders
from hushtune.simulations import engine, run
from hushtune.simulations.attacks import (
    attack_of,
    attackers,
    attacking,
    flipped_labels,
    spoil,
    told,
)
from hushtune.simulations.baselines import trained_baselines
from hushtune.simulations.engine import InProcessGrid, around
from hushtune.simulations.observer import Silent

from ..conftest import made_up_rows, write_csv

KINDS = ("label_flip", "sign_flip", "scale", "collude", "nan")


class StopAt(Silent):
    """Presses Ctrl-C when a round is over, before its checkpoint is written."""

    def __init__(self, number: int) -> None:
        self._number = number

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        if row["round"] == self._number:
            raise KeyboardInterrupt


def of_sites(count: int, **simulation: Any) -> RunConfig:
    """A configuration that knows its sites, which is all that choosing attackers takes."""
    config = load_config(overrides=["data.source=demo", "seed=3"])
    sizes = {f"site-{place:02}": 100 for place in range(count)}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"public_sizes": sizes}),
            "simulation": config.simulation.model_copy(update=simulation),
        }
    )


def updates(config: RunConfig, out: Path, app: Any = client_app) -> dict[str, ClientUpdate]:
    """What each site sends in the first round after the warm-up, from the initial adapter."""
    config = resolve(config)
    orders = make_orders(
        open_workspace(config).initial_state,
        run="a run",
        round=config.train.warmup_rounds + 1,
        config=config,
        plans=site_plans(config),
        sizes=config.data.public_sizes,
    )
    found: dict[str, ClientUpdate] = {}

    def serve(grid: Grid) -> None:
        for node, site in zip(sorted(grid.get_node_ids()), sorted(orders), strict=True):
            (reply,) = grid.send_and_receive([asking(orders[site], node)])
            update = decode_reply(reply.content)
            assert isinstance(update, ClientUpdate), update
            found[site] = update

    engine.run_in_process(serve, app, num_sites=len(orders), run_config=run_config(config, out))
    return found


def asking(order: RoundOrder, node: int) -> Message:
    return Message(encode_order(order), dst_node_id=node, message_type="train", group_id="1")


def same(left: AdapterState, right: AdapterState) -> bool:
    return left.to_bytes() == right.to_bytes()


# ------------------------------------------------------------------------------ which sites ----


@pytest.mark.parametrize(
    ("sites", "share", "count"),
    [(10, 0.1, 1), (10, 0.2, 2), (10, 0.29, 2), (10, 0.3, 3), (10, 0.4, 4), (100, 0.29, 29),
     (4, 0.2, 1), (4, 0.49, 1), (10, 0.49, 4), (3, 0.01, 1)],
)  # fmt: skip
def test_a_share_of_the_sites_attacks_and_never_half(sites: int, share: float, count: int) -> None:
    config = of_sites(sites, attack="scale", attackers=share)
    found = attackers(config)
    assert len(found) == len(set(found)) == count
    assert list(found) == sorted(found)
    assert set(found) < set(config.data.public_sizes)


def test_who_attacks_follows_from_the_seed_alone() -> None:
    config = of_sites(10, attack="scale", attackers=0.3)
    chosen = attackers(config)
    assert attackers(of_sites(10, attack="nan", attackers=0.3)) == chosen
    backwards = dict(reversed(config.data.public_sizes.items()))
    data = config.data.model_copy(update={"public_sizes": backwards})
    assert attackers(config.model_copy(update={"data": data})) == chosen
    others = {attackers(config.model_copy(update={"seed": seed})) for seed in range(20)}
    assert len(others) > 10
    assert set().union(*others) == set(config.data.public_sizes)  # nobody is spared


def test_a_larger_share_adds_attackers_and_replaces_none() -> None:
    chosen = [set(attackers(of_sites(10, attack="nan", attackers=s / 10))) for s in range(1, 5)]
    assert chosen[0] < chosen[1] < chosen[2] < chosen[3]


def test_without_an_attack_nobody_attacks() -> None:
    assert attackers(of_sites(10, attackers=0.4)) == ()
    assert attack_of(of_sites(10)) is None


# -------------------------------------------------------------------------- what they send ----


def six_sites(settings: Any, **changes: Any) -> RunConfig:
    """Six sites, of which two attack where ``simulation__attack`` says so."""
    return settings.config(
        data__site=None,
        data__partition="iid",
        data__sites=6,
        **({"simulation__attackers": 0.4} if "simulation__attack" in changes else {}),
        **changes,
    )


@pytest.mark.parametrize("kind", ["sign_flip", "scale", "collude", "nan"])
def test_attackers_change_their_update_and_the_others_none(
    kind: str, settings: Any, tmp_path: Path
) -> None:
    honest = updates(six_sites(settings), tmp_path)
    scale = {} if kind == "nan" else {"simulation__attack_scale": 3.0}
    config = resolve(six_sites(settings, simulation__attack=kind, **scale))
    found = updates(config, tmp_path, attacking(client_app))
    chosen = attackers(config)
    assert len(chosen) == 2
    for site, update in found.items():
        before = honest[site]
        told_else = (update.run, update.round, update.site, update.num_examples, update.charge)
        assert told_else == (before.run, before.round, site, before.num_examples, before.charge)
        if site not in chosen:
            assert same(update.delta, before.delta)
        elif kind == "sign_flip":
            assert same(update.delta, before.delta * -3.0)
        elif kind == "scale":
            assert same(update.delta, before.delta * 3.0)
        elif kind == "nan":
            assert update.delta.keys == before.delta.keys
            assert all(bool(t.isnan().all()) for t in update.delta.tensors.values())
        else:
            assert update.delta.norm() == pytest.approx(3.0 * before.delta.norm(), rel=1e-5)
    if kind == "collude":
        one, other = (flat(found[site].delta) for site in chosen)
        assert float(torch.cosine_similarity(one, other, dim=0)) == pytest.approx(1, abs=1e-6)
        own = flat(honest[chosen[0]].delta)
        assert abs(float(torch.cosine_similarity(one, own, dim=0))) < 0.5  # not its own direction


def flat(state: AdapterState) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in state.tensors.values()])


def test_colluders_keep_their_direction_from_one_phase_to_the_next(
    settings: Any, tmp_path: Path
) -> None:
    """The warm-up trains the head alone: its part of the direction is that of later rounds."""
    config = resolve(settings.config(simulation__attack="collude"))
    whole = next(iter(updates(config, tmp_path).values())).delta
    head = whole.select([key for key in whole.keys if key.startswith("head.")])
    late = spoil(whole, config.simulation, seed=1).select(head.keys)
    early = spoil(head, config.simulation, seed=1)
    assert float(torch.cosine_similarity(flat(early), flat(late), dim=0)) == pytest.approx(1)
    other = spoil(head, config.simulation, seed=2)
    assert abs(float(torch.cosine_similarity(flat(early), flat(other), dim=0))) < 0.9


def test_what_is_no_update_passes_as_it_is(settings: Any, tmp_path: Path) -> None:
    """A refusal of an attacker stays one; so does an error."""
    config = resolve(settings.config(simulation__attack="nan"))
    (site,) = attackers(config)
    node = sorted(config.data.public_sizes).index(site) + 1
    refusal = encode_refusal(Refusal(run="a run", round=1, site=site, code="HT1", reason="no"))

    def refuse(message: Message, context: Context) -> Message:
        return Message(refusal, reply_to=message)

    def fail(message: Message, context: Context) -> Message:
        raise ValueError

    found: list[Message] = []

    def serve(grid: Grid) -> None:
        asked = Message(RecordDict(), dst_node_id=node, message_type="train", group_id="1")
        found.extend(grid.send_and_receive([asked]))

    for call in (refuse, fail):
        engine.run_in_process(
            serve,
            attacking(around(call)),
            num_sites=3,
            run_config=run_config(config, tmp_path),
        )
    assert decode_reply(found[0].content) == decode_reply(refusal)
    assert found[1].has_error()


# ------------------------------------------------------------------------------- label_flip ----


@pytest.fixture
def three_labels(settings: Any, tmp_path: Path) -> Any:
    """Settings over four sites with three labels."""
    sizes = {"east": 60, "north": 60, "south": 60, "west": 60}
    rows = made_up_rows(sizes, seed=5, labels=("bad", "good", "plain"))
    data = write_csv(tmp_path / "three.csv", rows)
    return lambda **changes: settings.config(data__file=str(data), **changes)


def labels_now(workspace: Any) -> np.ndarray:
    rows = np.arange(len(workspace.data.labels))
    return workspace.task.batch(rows, Level.TOKENS).targets.numpy()


def test_only_the_attackers_training_labels_are_flipped(three_labels: Any) -> None:
    config = resolve(three_labels(simulation__attack="label_flip"))
    workspace = open_workspace(config)
    right = workspace.data.labels.copy()
    (site,) = attackers(config)
    with flipped_labels(workspace, site):
        poisoned = labels_now(workspace)
        assert np.array_equal(workspace.data.labels, right)  # of which ledgers and reports speak
    mine = workspace.rows(site, "train")
    assert np.array_equal(poisoned[mine], (right[mine] + 1) % 3)
    assert {int(label) for label in right[mine]} == {0, 1, 2}
    others = np.setdiff1d(np.arange(len(right)), mine)
    assert np.array_equal(poisoned[others], right[others])
    for part in ("validation", "test"):
        assert not set(workspace.rows(site, part).tolist()) & set(mine.tolist())
    assert np.array_equal(labels_now(workspace), right)


def test_labels_are_right_again_after_an_error(three_labels: Any) -> None:
    config = resolve(three_labels(simulation__attack="label_flip"))
    workspace = open_workspace(config)
    with pytest.raises(KeyboardInterrupt), flipped_labels(workspace, attackers(config)[0]):
        raise KeyboardInterrupt
    assert np.array_equal(labels_now(workspace), workspace.data.labels)


def test_an_attacker_trains_on_the_flipped_labels_and_nobody_else_does(
    three_labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = updates(three_labels(), tmp_path)
    config = resolve(three_labels(simulation__attack="label_flip"))
    found = updates(config, tmp_path, attacking(client_app))
    (site,) = attackers(config)
    workspace = open_workspace(config)
    wrong = torch.from_numpy(workspace.data.labels.copy())
    mine = workspace.rows(site, "train")
    wrong[mine] = (wrong[mine] + 1) % 3
    monkeypatch.setattr(workspace.task, "_targets", DenseTargets(wrong))
    wanted = updates(config, tmp_path)  # an honest site whose rows are so labelled
    for name in honest:
        assert same(found[name].delta, wanted[name].delta)
        assert same(found[name].delta, honest[name].delta) == (name != site)


def test_masked_sums_of_flipped_labels_are_possible(settings: Any, tmp_path: Path) -> None:
    """Under secure aggregation an attacker trains in other messages than elsewhere."""
    asked = {"privacy__trust": "distributed", "privacy__insecure_seeded_noise": True}
    honest = run(settings.config(**asked), tmp_path / "a")
    config = settings.config(**asked, simulation__attack="label_flip")
    attacked = run(config, tmp_path / "b")
    again = run(config, tmp_path / "c")
    assert honest["adapter_digest"] != attacked["adapter_digest"] == again["adapter_digest"]
    assert attacked["rejected"] == {}


# ------------------------------------------------------------------------------- whole runs ----


def lines(out: Path) -> list[dict[str, Any]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_nan_is_rejected_by_name_and_the_round_goes_on(settings: Any, tmp_path: Path) -> None:
    summary = run(settings.config(simulation__attack="nan"), tmp_path / "out")
    (site,) = summary["attack"]["sites"]
    others = sorted({"east", "north", "south"} - {site})
    for row in lines(tmp_path / "out"):
        assert row["accepted"] == others
        assert row["rejected"] == {site: "rejected, nonfinite: NaN or infinity"}
        assert math.isfinite(row["loss"])
    assert [row["round"] for row in summary["rejected"][site]] == [1, 2, 3]
    assert summary["attack"] == {"kind": "nan", "sites": [site], "scale": None}


def test_an_update_that_is_scaled_beyond_bounds_is_rejected(settings: Any, tmp_path: Path) -> None:
    changes = {"simulation__attack": "scale", "simulation__attack_scale": 1e6}
    summary = run(settings.config(**changes), tmp_path / "out")
    (site,) = summary["attack"]["sites"]
    assert {row["reason"].split(":")[0] for row in summary["rejected"][site]} == {"rejected, norm"}
    assert set(summary["rejected"]) == {site}


@pytest.mark.parametrize("kind", KINDS)
def test_attackers_charge_what_honest_sites_do(kind: str, settings: Any, tmp_path: Path) -> None:
    quick = {"privacy__trust": "site", "train__rounds": 2}
    honest = run(settings.config(**quick), tmp_path / "a")
    attacked = run(settings.config(**quick, simulation__attack=kind), tmp_path / "b")
    for site in honest["sites"]:
        before, after = (Ledger(ledger_path(tmp_path / x, site)).entries() for x in "ab")
        told_of = [[(entry.round, entry.event, entry.unit) for entry in e] for e in (before, after)]
        assert told_of[0] == told_of[1]
        assert len(before) == 2
        for key in ("epsilon", "delta", "public_size"):
            assert attacked["sites"][site][key] == honest["sites"][site][key]


@pytest.mark.parametrize("kind", KINDS)
def test_an_attacked_run_that_is_resumed_is_the_run_bit_for_bit(
    kind: str, settings: Any, tmp_path: Path
) -> None:
    config = settings.config(simulation__attack=kind)
    whole = run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out", observer=StopAt(2))
    summary = run(config, tmp_path / "out", resume=True)
    for key in ("adapter_digest", "value", "attack", "rejected"):
        assert summary[key] == whole[key]


def test_an_attack_changes_the_model_and_no_baseline(settings: Any, tmp_path: Path) -> None:
    changes = {"simulation__baselines": True, "train__rounds": 2}
    honest = run(settings.config(**changes), tmp_path / "a")
    for kind in ("label_flip", "scale"):
        attacked = run(settings.config(**changes, simulation__attack=kind), tmp_path / kind)
        assert attacked["adapter_digest"] != honest["adapter_digest"]
        baselines = [{k: v for k, v in s["table"].items() if k != "federated"}
                     for s in (honest, attacked)]  # fmt: skip
        assert baselines[0] == baselines[1]
        assert "head_private" in baselines[0]


def test_baselines_know_of_no_attack() -> None:
    for trust in ("off", "site"):
        config = of_sites(4, attack="scale")
        privacy = config.privacy.model_copy(update={"trust": trust})
        baselines = trained_baselines(config.model_copy(update={"privacy": privacy}))
        assert {b.simulation.attack for b in baselines.values()} == {"none"}
        assert POOLED in baselines


def test_every_report_of_an_attacked_run_says_so(
    settings: Any, tmp_path: Path, hushtune: Any
) -> None:
    file = settings.file(tmp_path, simulation__attack="sign_flip", simulation__attack_scale=4.0)
    answer = hushtune("simulate", "--config", file, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    (site,) = summary["attack"]["sites"]
    assert summary["attack"] == {"kind": "sign_flip", "sites": [site], "scale": 4.0}
    words = f"1 site attacks in this simulation (sign_flip, scale 4): {site}"
    assert f"ATTACK: {words}" in answer.out
    card = (tmp_path / "out" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "> **Attacked.** 1 site attacks in this simulation (sign" in card
    dry = hushtune("simulate", "--config", file, "--dry-run")
    assert f"ATTACK: {words}" in dry.out


def test_no_report_of_an_honest_run_speaks_of_attacks(
    settings: Any, tmp_path: Path, hushtune: Any
) -> None:
    file = settings.file(tmp_path, train__rounds=1, train__warmup_rounds=1)
    answer = hushtune("simulate", "--config", file, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "attack" not in (answer.out + card).casefold()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert summary["attack"] is None


def test_many_attackers_are_counted() -> None:
    attack = attack_of(of_sites(30, attack="nan", attackers=0.4))
    assert attack is not None
    text = told(attack)
    assert text.startswith("12 sites attack in this simulation (nan): site-")
    assert text.endswith(" and 6 more")


# --------------------------------------------------------------------------- configuration ----


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["data.source=demo", *overrides])
    return caught.value


@pytest.mark.parametrize("share", ["0.6", "0.5", "0.0", "-0.1"])
def test_attackers_are_some_and_fewer_than_half(share: str) -> None:
    error = refused("simulation.attack=nan", f"simulation.attackers={share}")
    assert "simulation.attackers" in error.message
    assert error.given == share
    assert "than 0" in str(error.expected)


def test_the_word_nan_is_a_word() -> None:
    """TOML reads it as a number, in --set as elsewhere."""
    config = load_config(overrides=["data.source=demo", "simulation.attack=nan"])
    assert config.simulation.attack == "nan"


def test_an_unknown_attack_names_those_there_are() -> None:
    error = refused("simulation.attack=bribe")
    assert "simulation.attack" in error.message
    assert error.given == '"bribe"'
    assert all(kind in str(error.expected) for kind in KINDS)


@pytest.mark.parametrize("kind", ["sign_flip", "scale", "collude", "nan"])
@pytest.mark.parametrize("unit", ["example", "client"])
def test_masked_updates_cannot_be_attacked(kind: str, unit: str) -> None:
    error = refused(
        f"simulation.attack={kind}", "privacy.trust=distributed", f"privacy.unit={unit}"
    )
    assert "simulation.attack" in error.message
    assert "masked sums" in error.message
    assert (error.given, error.expected) == (kind, "'none' or 'label_flip'")


def test_flower_s_own_command_refuses_a_run_in_which_nobody_would_attack(
    settings: Any, tmp_path: Path
) -> None:
    config = resolve(settings.config(simulation__attack="nan"))
    asked = run_config(config, tmp_path / "out")
    grid = InProcessGrid(client_app, num_sites=3, run_config=asked)
    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(asked)
    )
    with pytest.raises(ConfigError, match="no site would attack"):
        server_app(grid, context)
    assert not (tmp_path / "out").exists()
