"""Figures are releases: noised at the right scale, charged, or declared public by the site."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hushtune.client import app, metrics
from hushtune.client.site import Site, ledger_path
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import ConfigError
from hushtune.common.messages import Refusal
from hushtune.common.metrics_messages import (
    MetricsOrder,
    MetricsReport,
    decode_metrics_order,
    decode_report,
    encode_metrics_order,
)
from hushtune.common.names import SEEN_BY
from hushtune.common.planning import metrics_events, public_held_out, site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.figures import upwards
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Relation, Unit
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run

from .families import TensorTask, make_order, moved, private_plan, tensor_task
from .test_app import make_site

RELATION = Relation.ADD_OR_REMOVE_ONE


@pytest.fixture(scope="module")
def task() -> TensorTask:
    return tensor_task(30)


@pytest.fixture(scope="module")
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


def order(state: AdapterState, **changed: Any) -> MetricsOrder:
    usual: dict[str, Any] = {
        "run": "run",
        "round": 1,
        "site": "north",
        "adapter": state,
        "noise_multiplier": 10.0,
        "unit": Unit.EXAMPLE,
        "relation": RELATION,
    }
    return MetricsOrder(**{**usual, **changed})


def site(task: Any, path: Path, *, metrics: str = "noised", **others: Any) -> Site:
    made = make_site(task, path, epsilon=1e6, **others)
    terms = made.policy.terms.model_copy(update={"metrics": metrics})
    return replace(made, policy=replace(made.policy, terms=terms))


def limited(site: Site, **terms: float) -> Site:
    return replace(site, limit=replace(site.limit, **terms))


def told(site: Site, asked: MetricsOrder) -> MetricsReport | Refusal:
    return decode_report(app.answer_metrics(encode_metrics_order(asked), site))


# ---------------------------------------------------------------------------- the mechanism ----


@pytest.mark.parametrize("codes", [np.arange(30), np.arange(30) // 4])
def test_one_unit_moves_the_sums_by_at_most_the_sensitivity(
    task: TensorTask, state: AdapterState, codes: np.ndarray
) -> None:
    """Whatever its rows' number and losses: the scale that the noise is made for."""
    wild = state.map(lambda tensor: 30 * tensor)  # losses far beyond the cut
    units = Units.by_code(np.arange(30), codes)
    for chosen in (state, wild):
        whole = metrics.unit_sums(task, chosen, units)
        for place in range(len(units)):
            rest = units.take(np.array([p for p in range(len(units)) if p != place]))
            moved_by = float((whole - metrics.unit_sums(task, chosen, rest)).norm())
            assert moved_by <= metrics.SENSITIVITY + 1e-5


def test_without_noise_the_figures_are_the_plain_ones(
    task: TensorTask, state: AdapterState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MOST_LOSS", 1.0)
    rows = np.arange(12)
    right, losses = task.row_figures(state, rows)
    found = metrics.figures(
        task,
        state,
        Units.single(rows),
        public_units=40,  # "as they are" is of the rows that there are, and of whole losses
        noise_multiplier=None,
        noise=NoiseSource(),
    )
    assert found["score"] == pytest.approx(float(right.float().mean()))
    assert float(losses.max()) > metrics.MOST_LOSS
    assert found["loss"] == pytest.approx(float(losses.mean()))


def test_a_loss_that_is_not_finite_counts_as_the_largest(state: AdapterState) -> None:
    class Broken(TensorTask):
        def row_figures(self, state: AdapterState, rows: Any) -> Any:
            return torch.ones(len(rows), dtype=torch.bool), torch.full((len(rows),), torch.nan)

    base = tensor_task(4)
    sums = metrics.unit_sums(
        Broken(base.model, base.inputs, base.labels), state, Units.single(np.arange(4))
    )
    assert sums.tolist() == [4.0, 4.0]


def test_the_noise_has_the_scale_that_is_charged(task: TensorTask, state: AdapterState) -> None:
    """Accepts sigma times sqrt(2), and rejects two thirds and three halves of it."""
    units, sigma, public = Units.single(np.arange(30)), 5.0, 1e4
    plain = metrics.unit_sums(task, state, units)
    source = NoiseSource()

    class Big:
        """Many units, so that nothing is cut at 0 or 1."""

        def row_figures(self, state: AdapterState, rows: Any) -> Any:
            return torch.ones(len(rows), dtype=torch.bool), torch.full((len(rows),), 2.0)

    many = Units.single(np.arange(5000))
    draws = np.array(
        [
            list(
                metrics.figures(
                    Big(),  # pyright: ignore[reportArgumentType]
                    state,
                    many,
                    public_units=public,
                    noise_multiplier=sigma,
                    noise=source,
                ).values()
            )
            for _ in range(1500)
        ]
    )
    sums = draws * public / np.array([1.0, metrics.MOST_LOSS])
    noise = (sums - np.array([5000.0, 2500.0])).ravel()
    scale = sigma * math.sqrt(2.0)
    assert stats.kstest(noise, stats.norm(scale=scale).cdf).pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise, stats.norm(scale=wrong * scale).cdf).pvalue < 1e-6
    assert plain.shape == (2,)


def test_no_bit_below_the_grid_of_the_noise_is_told(task: TensorTask, state: AdapterState) -> None:
    """Else low-order bits of the noise could show those of the sums (Mironov, CCS 2012)."""
    sigma, public = 5.0, 2**10  # dividing by a power of two rounds nothing
    grid = 2.0 ** (math.floor(math.log2(sigma * metrics.SENSITIVITY)) - 20)
    source = NoiseSource()
    sums = np.array(
        [
            metrics.figures(
                task,
                state,
                Units.single(np.arange(30)),
                public_units=public,
                noise_multiplier=sigma,
                noise=source,
            )["score"]
            * public
            for _ in range(50)
        ]
    )
    assert len(set(sums)) > 40
    assert np.array_equal(sums / grid, np.round(sums / grid))


def test_n_and_n_plus_1_rows_are_divided_by_the_same_number(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """A public number so large, and noise such that no figure is cut to 0 or 1."""
    answers = []
    for count in (9, 10):
        folder = tmp_path / str(count)
        folder.mkdir()
        here = site(
            task,
            folder,
            held_out=Units.single(np.arange(count)),
            public_held_out=1e4,
            noise=NoiseSource.insecure(3),  # two positive draws
        )
        answers.append(told(here, order(state)))
    few, more = answers
    assert isinstance(few, MetricsReport)
    assert isinstance(more, MetricsReport)
    assert few.charge == more.charge
    for one, other in ((few.score, more.score), (few.loss / 4, more.loss / 4)):
        assert 0 < one < 1
        assert abs(one - other) <= 1 / 1e4 + 1e-6


# -------------------------------------------------------------------------------- the charge ----


def test_figures_are_charged_once_and_asked_again_are_the_same(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    here = site(task, tmp_path)
    first = told(here, order(state))
    assert isinstance(first, MetricsReport)
    (entry,) = Ledger(tmp_path / "north.sqlite").entries()
    assert entry.event == metrics.event(10.0)
    assert entry.event.sampling_probability == 1.0
    assert first.charge == entry
    assert told(here, order(state)) == first
    assert len(Ledger(tmp_path / "north.sqlite").entries()) == 1
    other = told(here, order(state, round=2))
    assert isinstance(other, MetricsReport)
    assert len(Ledger(tmp_path / "north.sqlite").entries()) == 2


def test_figures_and_training_of_one_round_are_both_charged(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    here = site(task, tmp_path)
    plan = private_plan(noise_multiplier=4.0)
    told(here, order(state))
    from hushtune.common.messages import encode_order

    app.answer(encode_order(make_order(state, plan, round=1)), here)
    events = [entry.event for entry in Ledger(tmp_path / "north.sqlite").entries()]
    assert events == [metrics.event(10.0), plan.event(1)]


def test_an_exhausted_budget_gives_no_figures(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    cost = accountant.epsilon([metrics.event(10.0)], delta=1e-5, relation=RELATION)
    here = limited(site(task, tmp_path), epsilon=1.01 * cost)
    assert isinstance(told(here, order(state)), MetricsReport)

    class Untouchable:
        def row_figures(self, *_: object) -> Any:
            raise AssertionError("figures were computed beyond the budget")

    second = told(replace(here, task=Untouchable()), order(state, round=2))  # pyright: ignore
    assert isinstance(second, Refusal)
    assert second.code == "HT401"


def test_told_figures_count_as_rounds_and_steps_but_for_a_repeat(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    for name in ("max_rounds", "max_steps"):
        here = limited(site(task, tmp_path / name), **{name: 1})
        first = told(here, order(state))
        assert isinstance(first, MetricsReport)
        assert told(here, order(state)) == first
        second = told(here, order(state, round=2))
        assert isinstance(second, Refusal)
        assert second.code == "HT401"


@pytest.mark.parametrize(
    ("allowed", "noise", "passes"),
    [
        ("none", 10.0, False),
        ("none", None, False),
        ("noised", 10.0, True),
        ("noised", 4.9, False),
        ("noised", None, False),
        ("public", None, True),
        ("public", 10.0, True),
    ],
)
def test_what_the_policy_does_not_release_is_refused(
    task: TensorTask,
    state: AdapterState,
    tmp_path: Path,
    allowed: str,
    noise: float | None,
    passes: bool,
) -> None:
    reply = told(site(task, tmp_path, metrics=allowed), order(state, noise_multiplier=noise))
    assert isinstance(reply, MetricsReport) == passes, reply
    charged = len(Ledger(tmp_path / "north.sqlite").entries())
    assert charged == (1 if passes and noise is not None else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"site": "south"},
        {"unit": Unit.GROUP},
        {"relation": Relation.REPLACE_ONE},
        {"noise_multiplier": 0.0},
    ],
    ids=str,
)
def test_an_order_that_is_not_this_site_s_is_refused(
    task: TensorTask, state: AdapterState, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert isinstance(told(site(task, tmp_path), order(state, **change)), Refusal)
    assert not Ledger(tmp_path / "north.sqlite").entries()


def test_messages_round_trip_and_unknown_keys_are_refused(state: AdapterState) -> None:
    asked = order(state)
    content = encode_metrics_order(asked)
    back = decode_metrics_order(content)
    assert back.adapter.digest() == asked.adapter.digest()
    assert replace(back, adapter=asked.adapter) == asked
    record = content.config_records["hushtune"]
    record["json"] = json.dumps({**json.loads(str(record["json"])), "rows": "all"})
    with pytest.raises(Exception, match="not known here"):
        decode_metrics_order(content)


# ------------------------------------------------------------------------------------ a run ----


def rows_of(out: Path) -> list[dict[str, Any]]:
    text = (out / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_without_them_sends_none(settings: Any, tmp_path: Path) -> None:
    run(settings.config(privacy__trust="site"), tmp_path / "out")
    assert all("released" not in row for row in rows_of(tmp_path / "out"))


def test_a_run_pays_for_its_figures_from_one_budget(settings: Any, tmp_path: Path) -> None:
    config = settings.config(
        privacy__trust="site",
        metrics__release="noised",
        metrics__every=2,
        metrics__noise_multiplier=8.0,
    )
    resolved = resolve(config)
    without = resolve(settings.config(privacy__trust="site"))
    assert len(metrics_events(resolved)) == 2  # after rounds 2 and 3 of 3
    for name, plan in site_plans(resolved).items():
        assert plan.noise_multiplier > site_plans(without)[name].noise_multiplier
    summary = run(config, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert ["released" in row for row in rows] == [False, True, True]
    released = rows[-1]["released"]
    assert released["noised"] is True
    assert set(released["sites"]) == {"east", "north", "south"}
    assert 0 <= released["accuracy"] <= 1
    for name, row in summary["sites"].items():
        entries = Ledger(ledger_path(tmp_path / "out", name)).entries()
        assert len(entries) == 3 + 2
        spent = accountant.epsilon(
            [entry.event for entry in entries], delta=row["delta"], relation=RELATION
        )
        assert row["epsilon"] == pytest.approx(spent)
        assert 0.9 * 3.0 < spent <= 3.0
        assert rows[-1]["epsilon"][name] == pytest.approx(spent)
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text(encoding="utf-8"))
    for row in privacy["sites"].values():
        assert row["steps"] == 6  # of training
        metrics = row["metrics"]
        assert (metrics["release"], metrics["noise_multiplier"]) == ("noised", 8.0)
        assert (metrics["num_reports"], metrics["rounds"]) == (2, [2, 3])
    shares = {
        name: 8.0 * math.sqrt(2) / public_held_out(resolved, name) for name in privacy["sites"]
    }
    assert {s: row["metrics"]["noise_share"] for s, row in privacy["sites"].items()} == shares
    for name in ("privacy.md", "privacy.html"):
        page = (tmp_path / "out" / name).read_text(encoding="utf-8")
        for share in shares.values():  # of so few rows
            told = f"a standard deviation of {upwards(share, places=1)} times the range"
            assert (told in page) is (share > 0.5)


def test_plain_figures_are_the_true_ones(settings: Any, tmp_path: Path) -> None:
    """With privacy off: what the sites tell is what the researcher computes from the rows."""
    config = settings.config(metrics__release="public", metrics__every=3)
    run(config, tmp_path / "out")
    last = rows_of(tmp_path / "out")[-1]
    for name, row in last["released"]["sites"].items():
        for figure, value in row.items():
            assert value == pytest.approx(last["sites"][name][figure], abs=1e-6)


def test_public_figures_need_a_policy_that_says_so(settings: Any, tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    folder.mkdir()
    for name, kind in (("east", "none"), ("north", "noised"), ("south", "public")):
        text = f'max_epsilon = 3.0\nmax_delta = 1e-3\nmetrics = "{kind}"\n'
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    config = settings.config(
        privacy__trust="site", simulation__policies=str(folder), metrics__release="public"
    )
    summary = run(config, tmp_path / "out")
    released = rows_of(tmp_path / "out")[-1]["released"]
    assert set(released["sites"]) == {"south"}
    assert set(released["missing"]) == {"east", "north"}
    assert all("HT404" in why for why in released["missing"].values())
    assert set(summary["refusals"]) == {"east", "north"}
    for rows in summary["refusals"].values():
        assert {row["code"] for row in rows} == {"HT404"}
        assert all(row["reason"].startswith("figures of the round: ") for row in rows)
    assert len(Ledger(folder / "south.sqlite").entries()) == 3
    first, *_, last = rows_of(tmp_path / "out")
    assert set(first["seen_by"].values()) == {SEEN_BY}
    for key, seen in last["seen_by"].items():
        assert seen.startswith("told by south without noise") is (
            key in ("accuracy", "loss", "sites")
        )
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text(encoding="utf-8"))
    (line,) = [line for line in privacy["not_covered"] if "left the site" in line]
    assert "held-out rows of south: " in line
    assert privacy["sites"]["south"]["metrics"]["rounds"] == [3]
    for row in privacy["sites"].values():
        assert [(m["purpose"], m["rounds"]) for m in row["received"]] == [
            ("training", [1, 2, 3]),
            ("evaluation", [3]),
        ]


def test_figures_need_held_out_rows(settings: Any) -> None:
    with pytest.raises(ConfigError, match="validation"):
        settings.config(metrics__release="noised", data__validation_fraction=0.0)
