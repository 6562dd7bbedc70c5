"""``hushtune audit``: planted faults are found, a sound run is not accused, and what is printed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from hushtune.client import dp
from hushtune.common.errors import ConfigError, UnsupportedModelError
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.tasks.workspace import open_workspace
from hushtune.server import central, plain
from hushtune.server.aggregation import central_dp
from hushtune.simulations.audit import membership
from hushtune.simulations.audit.assess import ONE_RUN, ONE_RUN_F, TWO_SAMPLES, Row, assess
from hushtune.simulations.audit.canaries import num_coordinates
from hushtune.simulations.audit.clients import directions
from hushtune.simulations.audit.federation import audited
from hushtune.simulations.audit.games import MODEL, SERVER, STEPS, gradient_games
from hushtune.simulations.audit.report import audit
from hushtune.simulations.audit.show import sentences, show_audit
from hushtune.simulations.audit.wrap import Plant, planted

from ..conftest import Command, Settings

CANARIES = 192  # as many as one run of three sites has room for


def config(settings: Settings, **changes: Any) -> Any:
    """Eight steps in which every unit is, so that few canaries show much."""
    how: dict[str, Any] = {
        "privacy__trust": "site",
        "privacy__epsilon": 8.0,
        "train__rounds": 8,
        "train__local_steps": 1,
        "train__sampling_probability": 1.0,
    }
    return settings.config(**{**how, **changes})


def first_row(given: Any, *, seed: int = 0, plant: Plant | None = None) -> Row:
    """Of gradient canaries, seen in each step: the row that decides."""
    run = audited(given)
    seen, claim = gradient_games(
        run, open_workspace(run), canaries=CANARIES, seed=seed, fault=plant
    )
    return assess(seen[0], claim)[0]


# ------------------------------------------------------------------------ faults and none ----


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_run_is_not_accused(settings: Settings, seed: int) -> None:
    """Of seeded noise, as the planted faults: what it shows it shows each time."""
    found = first_row(config(settings, privacy__insecure_seeded_noise=True), seed=seed)
    assert 7.9 < found.claimed <= 8.0
    assert not found.refutes
    assert found.lower_bound <= found.claimed
    # It looks at something.
    assert found.lower_bound > 0.5
    assert found.in_family is not None
    assert found.in_family > 2.0


def test_nor_is_one_with_noise_that_nobody_knows(settings: Settings) -> None:
    """How much so few canaries show then differs from run to run."""
    found = first_row(config(settings))
    assert not found.refutes
    assert found.lower_bound <= found.claimed


@pytest.mark.parametrize("plant", [plant for plant in Plant if plant is not Plant.HALF_NOISE])
def test_a_planted_fault_is_found(settings: Settings, plant: Plant) -> None:
    """By one run, of seeded noise: found each time, or never."""
    given = config(settings, privacy__insecure_seeded_noise=True)
    assert first_row(given, plant=plant).refutes


def test_half_of_the_noise_is_found_by_one_run_of_three(settings: Settings) -> None:
    """The system's own noise may hide it from one run with so few canaries."""
    found = (first_row(config(settings), seed=seed, plant=Plant.HALF_NOISE) for seed in range(3))
    assert any(row.refutes for row in found)


@pytest.mark.parametrize("plant", [Plant.NO_NOISE, Plant.NO_CLIP])
def test_a_gross_fault_lifts_the_bound_above_what_is_claimed(
    settings: Settings, plant: Plant
) -> None:
    found = first_row(config(settings, privacy__epsilon=1.0), plant=plant)
    assert found.lower_bound > 2 * found.claimed > 1.9


def test_a_reset_accountant_claims_one_round(settings: Settings) -> None:
    given = config(settings)
    plan = next(iter(site_plans(audited(given)).values()))
    one = epsilon([plan.event(1)], delta=plan.delta, relation=plan.relation)
    for plant in (Plant.RESET_ACCOUNTANT, Plant.RESET_LEDGER):
        found = first_row(given, plant=plant)
        assert found.claimed == pytest.approx(one)
        assert found.claimed < 0.5 * plan.epsilon


@pytest.mark.parametrize("plant", Plant)
def test_the_product_is_as_it_was_afterwards(plant: Plant) -> None:
    parts = [
        *((dp, "noisy_mean"), (dp, "clipped_sum"), (plain, "appended_charges")),
        *((central_dp, "split"), (central_dp, "clipped_sum"), (central, "charged")),
        (Ledger, "entries"),
    ]
    planted_in = 1 if plant is Plant.RESET_LEDGER else 2
    before = [getattr(holder, name) for holder, name in parts]
    with planted(plant):
        during = [getattr(holder, name) for holder, name in parts]
        assert (
            sum(one is not other for one, other in zip(before, during, strict=True)) == planted_in
        )
    assert [getattr(holder, name) for holder, name in parts] == before


def test_canaries_pass_through_the_real_step(settings: Settings) -> None:
    """Each that is in adds the clip norm at its coordinate, and none leaks into another."""
    run = audited(config(settings, privacy__epsilon=1e4, train__rounds=2))
    seen, claim = gradient_games(run, open_workspace(run), canaries=CANARIES, seed=0, fault=None)
    assert claim.epsilon() > 100
    of_steps, of_rounds, of_model = seen
    assert [one.observer for one in seen] == [STEPS, SERVER, MODEL]
    # With hardly any noise every canary is told, by far.
    assert ((of_steps.scores > 0) == of_steps.included).all()
    assert 0.3 < of_steps.included.mean() < 0.7
    told = of_rounds.scores
    assert told[of_rounds.included].min() > told[~of_rounds.included].max()
    assert not of_model.independent


# --------------------------------------------------------------------------------- clients ----


def clients(settings: Settings, **changes: Any) -> Any:
    return settings.config(
        data__site=None,
        data__partition="iid",
        data__sites=40,
        privacy__trust="server",
        privacy__unit="client",
        privacy__epsilon=8.0,
        train__rounds=4,
        train__local_steps=1,
        train__sampling_probability=1.0,
        **changes,
    )


@pytest.mark.parametrize("plant", [None, *(p for p in Plant if p is not Plant.RESET_LEDGER)])
def test_clients_as_canaries(settings: Settings, plant: Plant | None) -> None:
    """Of seeded noise: each fault is found each time, and a sound run never accused."""
    given = clients(settings, privacy__insecure_seeded_noise=True)
    report = audit(given, canaries=400, shadows=0, plant=plant).report
    assert (report["unit"], report["trust"], report["canaries"]) == ("client", "server", 400)
    assert report["refuted"] is (plant is not None), report["rows"][0]


def test_clients_that_do_not_answer_are_no_want_of_a_quorum(settings: Settings) -> None:
    run = audited(clients(settings, simulation__quorum=40))
    assert run.simulation.quorum == 1
    report = audit(clients(settings, simulation__quorum=40), canaries=40, shadows=0).report
    assert report["canaries"] == 40


def test_clients_have_no_ledger_that_could_forget(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="no site has a ledger"):
        audit(clients(settings), canaries=400, shadows=0, plant=Plant.RESET_LEDGER)


def test_directions_are_orthogonal_where_there_is_room() -> None:
    few = directions(10, 30, np.random.default_rng(0))
    np.testing.assert_allclose(few @ few.T, np.eye(10), atol=1e-12)
    many = directions(50, 30, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1.0)


# ------------------------------------------------------------------------------ membership ----


def test_an_attack_by_hand() -> None:
    scores = np.array([3.0, 2.0, 1.0, 0.0])
    attack = membership.Attack("loss", scores, np.array([True, False, True, False]))
    figures = attack.figures()
    assert figures["auc"] == pytest.approx(0.75)
    assert figures["tpr_at_0.01"] is None  # of two others none can be a hundredth
    many = membership.Attack(
        "loss",
        np.concatenate([np.full(50, 2.0), np.full(50, 0.0), np.full(1000, 1.0)]),
        np.arange(1100) < 100,
    )
    assert many.figures()["tpr_at_0.001"] == pytest.approx(0.5)


def test_likelihood_ratios_compare_with_shadows_that_lack_the_row() -> None:
    target = np.array([1.0, 5.0, 2.0])
    shadows = np.array([[1.0, 1.0, 9.0], [1.0, 3.0, 9.0]])
    outside = np.array([[True, True, False], [True, True, False]])
    found = membership.likelihood_ratios(target, shadows, outside)
    assert found[0] == 0.0
    assert found[1] == pytest.approx((5.0 - 2.0) / np.sqrt(0.5))
    assert found[2] == 0.0  # every shadow had it: nothing to compare with
    assert membership.confidence(np.array([np.log(2)]))[0] == pytest.approx(0.0)


# ---------------------------------------------------------------------------- the command ----


@pytest.mark.pictures
def test_the_command_tells_and_writes(
    settings: Settings, hushtune: Command, tmp_path: Path
) -> None:
    file = settings.file(
        tmp_path, privacy__trust="site", train__rounds=2, train__sampling_probability=0.5
    )
    out = tmp_path / "audit"
    how = ("--canaries", 60, "--shadows", 2, "--seed", 3, "--out", out, "--json")
    answer = hushtune("audit", "--config", file, *how)
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    assert {"claimed", "lower_bound", "confidence", "canaries", "method"} <= set(told)
    assert told["confidence"] == 0.95
    assert told["canaries"] == 60
    assert 0.0 <= told["lower_bound"] <= told["claimed"]
    assert {(row["canary"], row["observer"]) for row in told["rows"]} == {
        *(("gradient", who) for who in (STEPS, SERVER, MODEL)),
        *(("mislabelled", who) for who in (SERVER, MODEL)),
    }
    assert {row["method"] for row in told["rows"]} == {ONE_RUN, ONE_RUN_F, TWO_SAMPLES}
    assert set(told["membership"]["attacks"]) == {"loss", "LiRA, offline"}
    assert json.loads((out / "audit.json").read_text()) == told
    assert (out / "membership.png").read_bytes().startswith(b"\x89PNG")
    assert "Not refuted" in answer.err
    assert "proves no privacy" in answer.err


def test_the_table_of_an_audit_fits_a_narrow_screen(settings: Settings) -> None:
    report = audit(config(settings), canaries=60, shadows=0).report
    text = io.StringIO()
    show_audit(Console(file=text, width=80), report)
    lines = text.getvalue().splitlines()
    table = [line for line in lines if line.startswith(("┃", "│"))]
    assert len(table) > 5
    assert all(line.endswith(("┃", "│")) for line in table), text.getvalue()
    steps = [row for row in report["rows"] if row["observer"] == STEPS]
    most = max(row["in_family"] for row in steps if row["in_family"] is not None)
    assert f" {math.floor(most * 100) / 100:.2f} " in "".join(table)


def test_the_claim_that_is_tested_is_told_from_one_of_replacing(
    settings: Settings, hushtune: Command, tmp_path: Path
) -> None:
    file = settings.file(
        tmp_path, privacy__trust="site", privacy__relation="replace_one", train__rounds=1
    )
    answer = hushtune("audit", "--config", file, "--canaries", 30, "--shadows", 0, "--json")
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    assert (told["relation"], told["relation_of_run"]) == ("add_or_remove_one", "replace_one")
    assert "the run's own, about replacing one, follows from the same noise and is larger" in (
        " ".join(answer.err.split())
    )
    lines = " ".join(sentences({**told, "relation_of_run": "add_or_remove_one"}))
    assert "replacing" not in lines


def test_a_run_s_folder_is_audited_by_its_configuration(
    settings: Settings, hushtune: Command, tmp_path: Path
) -> None:
    settings.file(tmp_path, "config.toml", privacy__trust="site", train__rounds=1)
    how = ("--canaries", 30, "--shadows", 0, "--plant", "no-noise", "--json")
    answer = hushtune("audit", tmp_path, *how)
    assert answer.status == 0, answer.err
    told = json.loads(answer.out.splitlines()[-1])
    assert (told["plant"], told["rounds"], told["membership"]) == ("no-noise", 1, None)
    assert "PLANTED FAULT" in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"config.toml"}  # nothing is left there


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "nothing to audit"),
        (("nowhere",), "holds no run"),
        (("nowhere", "--preset", "tiny"), "not of both"),
        (("--preset", "tiny", "--plant", "all"), "no such fault"),
        (("--preset", "tiny", "--canaries", "3"), "enough canaries"),
        (("--preset", "tiny", "--shadows", "-1"), "at least 0"),
        (("--preset", "tiny", "--set", "privacy.trust=off"), "no claim to audit"),
        (("--preset", "tiny", "--set", "privacy.trust=distributed"), "not at secure sums"),
    ],
)
def test_what_cannot_be_audited_says_so(
    hushtune: Command, arguments: tuple[str, ...], expected: str
) -> None:
    answer = hushtune("audit", *arguments)
    assert answer.status == 2
    assert expected in answer.err
    assert "Traceback" not in answer.err


def test_a_model_without_a_linear_head_is_refused(settings: Settings) -> None:
    run = audited(config(settings, model__head="own"))
    with pytest.raises(UnsupportedModelError, match="no linear head"):
        num_coordinates(open_workspace(run).task.model)


def test_nothing_that_is_promised_by_nobody_is_audited(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="no claim"):
        audited(config(settings, privacy__trust="off"))
