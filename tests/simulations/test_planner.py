"""The planner: figures of the plan and the accountant, warnings by name, tables and picture."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hushtune.common.config import PrivacyConfig, TrainConfig
from hushtune.common.errors import ConfigError, PlanError
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Relation, Trust, Unit, make_plan
from hushtune.simulations import planner_plot
from hushtune.simulations.planner import check_any, epsilon_curve, plan_run, signal_to_noise
from hushtune.simulations.planner_outline import Outline, demo_trained_values, parse_sites
from hushtune.simulations.planner_show import show_plan

pytestmark = pytest.mark.pictures

SIZES = {"north": 5000, "south": 1200, "west": 300}
OPTIONS = ("--epsilon", 3, "--delta", 1e-5, "--rounds", 20)


def the_plan(size: int, outline: Outline, rounds: int) -> PrivacyPlan:
    """Asked for in other words than the planner's."""
    return make_plan(
        epsilon=outline.epsilon,
        delta=outline.delta,
        public_size=size,
        batch_size=outline.batch_size,
        sampling_probability=outline.sampling_probability,
        steps=rounds * outline.local_steps,
        clip_norm=outline.clip_norm,
        unit=Unit.EXAMPLE,
        relation=outline.relation,
        trust=Trust.SITE,
    )


# ------------------------------------------------------------------------------ figures ----


@pytest.mark.parametrize(
    ("sizes", "outline"),
    [
        ({"north": 5000, "west": 300}, Outline(rounds=20, sampling_probability=0.13)),
        (
            {"north": 5120, "whole": 512},
            Outline(rounds=4, local_steps=2, batch_size=512, relation=Relation.REPLACE_ONE),
        ),
    ],
)
def test_figures_are_those_of_the_plan_and_the_accountant(
    sizes: dict[str, int], outline: Outline
) -> None:
    figures = plan_run(sizes, outline)
    assert figures["steps"] == outline.rounds * outline.local_steps
    for name, size in sizes.items():
        site, plan = figures["sites"][name], the_plan(size, outline, outline.rounds)
        assert site["takes_part"]
        assert site["rows"] == size
        assert site["batch"] == plan.denominator
        for key in ("sampling_probability", "noise_multiplier", "epsilon", "delta", "steps"):
            assert site[key] == getattr(plan, key), key
        assert 0.99 * outline.epsilon < site["epsilon_spent"] <= outline.epsilon
        rounds = [other["rounds"] for other in site["other_rounds"]]
        assert rounds == [round(outline.rounds * factor) for factor in (0.25, 0.5, 2, 4)]
        for other in site["other_rounds"]:
            # What so many rounds charge to a ledger, one by one.
            event = DpSgdEvent(
                sampling_probability=plan.sampling_probability,
                noise_multiplier=plan.noise_multiplier,
                steps=outline.local_steps,
            )
            spent = epsilon(
                [event] * other["rounds"], delta=outline.delta, relation=outline.relation
            )
            assert other["epsilon"] == spent
            needed = the_plan(size, outline, other["rounds"])
            assert other["noise_multiplier"] == needed.noise_multiplier
            assert other["signal_to_noise"] == signal_to_noise(
                needed.noise_multiplier / needed.denominator,
                trained_values=figures["trained_values"],
                steps=needed.steps,
            )


def test_more_rounds_cost_more_at_one_noise_and_need_more_at_one_epsilon() -> None:
    figures = plan_run(SIZES, Outline(rounds=8, delta=3e-6))
    site = figures["sites"]["south"]
    rows = sorted(
        [*site["other_rounds"], {"rounds": 8, **site, "epsilon": site["epsilon_spent"]}],
        key=lambda row: row["rounds"],
    )
    assert [row["rounds"] for row in rows] == [2, 4, 8, 16, 32]
    for key in ("epsilon", "noise_multiplier"):
        column = [row[key] for row in rows]
        assert column == sorted(set(column)), key
    curve = epsilon_curve(figures, "south")
    assert curve == sorted(set(curve))
    assert (curve[0][0], curve[-1][0]) == (1, 32)
    assert [e for _, e in curve] == sorted({e for _, e in curve if e is not None})
    assert {(row["rounds"], row["epsilon"]) for row in rows[2:]} <= set(curve)


def test_other_numbers_of_rounds_are_whole_and_not_the_planned_one() -> None:
    (site,) = plan_run({"a": 900}, Outline(rounds=1))["sites"].values()
    assert [other["rounds"] for other in site["other_rounds"]] == [2, 4]


def test_rounds_that_no_noise_is_enough_for_are_told_apart() -> None:
    # Hardly within reach of the most noise that there is: twice as many steps are not.
    outline = Outline(epsilon=5e-6, delta=1e-9, rounds=1, local_steps=1, sampling_probability=1.0)
    figures = plan_run({"a": 9}, outline)
    json.dumps(figures, allow_nan=False)
    (site,) = figures["sites"].values()
    assert site["takes_part"]
    (*_, last) = site["other_rounds"]
    assert (last["noise_multiplier"], last["signal_to_noise"]) == (None, None)


# ---------------------------------------------------------------------- signal to noise ----


def test_signal_to_noise_is_that_of_noise_drawn_and_averaged() -> None:
    """The formulas against drawing: longest gradient over the noise's length, step and run."""
    draw = np.random.default_rng(5)
    sizes, outline = {"a": 700, "b": 250}, Outline(rounds=4, clip_norm=0.7, trained_values=900)
    figures = plan_run(sizes, outline)
    total = np.zeros((12, 900))
    for name, size in sizes.items():
        site = figures["sites"][name]
        noise = draw.normal(0, site["noise_multiplier"] * 0.7, (12, 900)) / site["batch"]
        total += size / 950 * noise
        assert site["signal_to_noise"] == pytest.approx(_drawn(noise), rel=0.06)
    assert figures["federation"]["signal_to_noise"] == pytest.approx(_drawn(total), rel=0.06)


def _drawn(noise: Any) -> dict[str, float]:
    """Of noise on the mean, (steps, values), against a gradient at the clip norm."""
    step = math.sqrt(float((noise**2).sum(1).mean()))
    run = float(np.linalg.norm(noise.mean(0)))
    # One direction's share of white noise is a value's: their root mean square.
    return {
        "step": 0.7 / step,
        "run": 0.7 / run,
        "run_one_direction": 0.7 / (run / math.sqrt(noise.shape[1])),
    }


@given(
    deviation=st.floats(1e-6, 1e3),
    values=st.integers(1, 10**9),
    steps=st.integers(1, 10**6),
    more=st.integers(2, 100),
)
def test_ratios_rise_with_steps_and_fall_with_noise_and_values(
    deviation: float, values: int, steps: int, more: int
) -> None:
    base = signal_to_noise(deviation, trained_values=values, steps=steps)
    assert 0 < base["step"] <= base["run"] <= base["run_one_direction"]
    longer = signal_to_noise(deviation, trained_values=values, steps=steps * more)
    assert longer["step"] == base["step"]
    assert longer["run"] == pytest.approx(base["run"] * math.sqrt(more))
    noisier = signal_to_noise(deviation * more, trained_values=values, steps=steps)
    assert noisier["run"] == pytest.approx(base["run"] / more)
    wider = signal_to_noise(deviation, trained_values=values * more, steps=steps)
    assert wider["run"] == pytest.approx(base["run"] / math.sqrt(more))
    assert wider["run_one_direction"] == pytest.approx(base["run_one_direction"])


def test_the_trained_values_are_the_demo_s() -> None:
    """Of a model as wide as the demo's, adapted and read as the demo's is."""
    from transformers import BertConfig, BertModel

    from hushtune.common import lora
    from hushtune.common.config_io import load_config
    from hushtune.common.lora_rules import RULES, trainable_keys
    from hushtune.common.presets import PRESETS

    config = load_config(preset="demo", presets=PRESETS)
    shape = BertConfig(
        vocab_size=40,
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=12,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    model = lora.attach(
        BertModel(shape), num_outputs=2, model=config.model, adapter=config.adapter, seed=0
    )
    state = lora.initial_state(model, seed=0)
    keys = trainable_keys(RULES[config.aggregation.rule], state.spec, turn=0)
    number, source = demo_trained_values()
    assert number == state.select(keys).num_values() == 3842
    assert "770 in the head" in source
    assert plan_run({"a": 900}, Outline())["trained_values_source"] == source
    assert plan_run({"a": 900}, Outline(trained_values=7))["trained_values_source"] == "as given"


# ----------------------------------------------------------------------------- warnings ----


def test_a_small_site_is_warned_about_by_name_and_the_others_go_on() -> None:
    sizes = {"north": 5120, "south": 512, "west": 300}
    figures = plan_run(sizes, Outline(rounds=2, batch_size=512))
    assert [name for name, site in figures["sites"].items() if site["takes_part"]] == [
        "north",
        "south",
    ]
    (warning,) = figures["sites"]["west"]["warnings"]
    assert warning["code"] == "HT206"
    assert "west cannot take part" in warning["message"]
    assert "300 training rows" in warning["message"]
    assert "--batch" in warning["remedy"]
    whole = figures["federation"]
    assert (whole["sites"], whole["rows"], whole["batch"]) == (2, 5632, 1024)
    without = plan_run(
        {name: sizes[name] for name in ("north", "south")}, Outline(rounds=2, batch_size=512)
    )
    assert whole == without["federation"]
    assert figures["sites"]["north"] == without["sites"]["north"]
    check_any(figures)


def test_delta_at_one_over_n_and_noise_over_signal_are_warned_about() -> None:
    sizes = {"large": 200_000, "good": 9000, "few": 300, "tiny": 12}
    sites = plan_run(sizes, Outline(rounds=20))["sites"]
    codes = {
        name: [warning["code"] for warning in site["warnings"]] for name, site in sites.items()
    }
    assert codes == {"large": ["HT403"], "good": [], "few": ["faint"], "tiny": ["drowned"]}
    assert "delta must be below 1/n" in sites["large"]["warnings"][0]["message"]
    assert [site["takes_part"] for site in sites.values()] == [False, True, True, True]
    assert sites["tiny"]["signal_to_noise"]["run"] < 1 < sites["few"]["signal_to_noise"]["run"] < 10
    for name in ("few", "tiny"):
        (warning,) = sites[name]["warnings"]
        assert warning["message"].startswith(f"{name}: noise ")
        assert warning["remedy"]


def test_where_no_site_can_take_part_all_are_named() -> None:
    figures = plan_run({"a": 30, "b": 20}, Outline(batch_size=64))
    assert figures["federation"] is None
    with pytest.raises(PlanError, match="no site can take part") as caught:
        check_any(figures)
    assert "a cannot take part: the site has 30 training rows" in str(caught.value)
    assert "nor can b" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"local_steps": 0},
        {"trained_values": 0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"clip_norm": math.inf},
        {"delta": math.nan},
        {"rounds": 100_001, "local_steps": 1},
    ],
)
def test_settings_that_no_plan_can_have_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"out of range|more steps"):
        plan_run(SIZES, Outline(**changes))


# --------------------------------------------------------------------------------- sites ----


def test_sites_are_read_with_and_without_names() -> None:
    assert parse_sites("5000,1200,300") == {"site-1": 5000, "site-2": 1200, "site-3": 300}
    assert parse_sites(" north = 5000 , south=1200 ") == {"north": 5000, "south": 1200}
    assert parse_sites("north=5000,70") == {"north": 5000, "site-2": 70}
    assert list(parse_sites("b=1,a=2")) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "part", "given"),
    [
        ("5000,12x0", 2, "12x0"),
        ("", 1, ""),
        ("5000,,300", 2, ""),
        ("5000,-3", 2, "-3"),
        ("5e3", 1, "5e3"),
        ("north=", 1, "north="),
        ("=500", 1, "=500"),
        ("a=5,b=6,a=7", 3, "a=7"),
        ("٣٠", 1, "٣٠"),
        ("1_000", 1, "1_000"),
        ("9" * 5000, 1, "999"),
    ],
)
def test_a_malformed_part_is_named(text: str, part: int, given: str) -> None:
    with pytest.raises(ConfigError, match=f"part {part} of --sites") as caught:
        parse_sites(text)
    assert given in str(caught.value)


NAMES = st.text("abyz._-=\u00e9", min_size=1, max_size=9)


@given(st.dictionaries(NAMES, st.integers(0, 10**14), min_size=1, max_size=5))
def test_sites_written_out_are_read_back(sizes: dict[str, int]) -> None:
    assert parse_sites(",".join(f"{name}={rows}" for name, rows in sizes.items())) == sizes


# --------------------------------------------------------------------------- the command ----


def test_the_command_ends_with_json_and_shows_tables(hushtune: Any) -> None:
    answer = hushtune("plan", "--sites", "5000,1200,300", *OPTIONS, "--json")
    assert answer.status == 0, answer.err
    assert len(answer.out.splitlines()) == 1  # all else goes to standard error
    expected = plan_run(parse_sites("5000,1200,300"), Outline(rounds=20))
    found = json.loads(answer.out)
    assert set(found.pop("trust_models")) == {
        *("site", "server", "distributed", "distributed, of clients")
    }
    assert found == json.loads(json.dumps(expected))
    site = expected["sites"]["site-2"]
    for wanted in (
        "site-1",
        f"{site['noise_multiplier']:.3f}",
        f"{site['signal_to_noise']['run']:.3g}",
        "80",
        f"{site['other_rounds'][0]['noise_multiplier']:.3f}",
        "warning site-3: noise",
        "3842",
        "upper bound",
    ):
        assert wanted in answer.err, wanted


def test_epsilons_are_shown_rounded_up(hushtune: Any) -> None:
    shown = hushtune("plan", "--sites", "big[b]=5000", "--rounds", 4, "--epsilon", 2.0009).out
    assert shown.count("big[b]") == 2  # in both tables, and not taken for markup
    (site,) = plan_run({"a": 5000}, Outline(rounds=4, epsilon=2.0009))["sites"].values()
    assert 2.0005 < site["epsilon_spent"] < 2.001
    assert "2.001" in shown
    for other in site["other_rounds"]:
        assert f"{math.ceil(other['epsilon'] * 1000) / 1000:.3f}" in shown


def test_a_site_that_cannot_take_part_leaves_the_command_a_success(hushtune: Any) -> None:
    answer = hushtune("plan", "--sites", "north=5000,west=300", "--batch", 512, "--rounds", 2)
    assert answer.status == 0, answer.err
    assert "west cannot take part" in answer.out


def test_no_site_at_all_is_an_error_after_the_reasons(hushtune: Any, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    answer = hushtune("plan", "--sites", "40,30", "--batch", 64, "--json", "--plot", picture)
    assert answer.status == 2
    assert "HT403 no site can take part in this run" in answer.err
    assert "site-2 cannot take part" in answer.err
    assert not json.loads(answer.out.splitlines()[-1])["sites"]["site-1"]["takes_part"]
    assert not picture.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sites", "5000,x"), "HT100 part 2 of --sites"),
        (("--sites", "5000", "--plot", "no/such/folder/plan.png"), "HT100 --plot"),
        (("--sites", "5000", "--plot", "plan.txt"), "HT100 --plot"),
        (("--sites", "5000", "--epsilon", "nan"), "HT403 --epsilon"),
        (("--sites", "5000", "--epsilon", "-1"), "HT403 --epsilon"),
        (("--sites", "5000", "--batch", "9", "--sampling-probability", "0.1"), "exactly one"),
        (("--sites", "5000", "--rounds", "0"), "--rounds"),
        (("--sites", "5000", "--relation", "other"), "replace_one"),
        ((), "--sites"),
    ],
)
def test_what_cannot_be_planned_says_so(
    hushtune: Any, arguments: tuple[str, ...], said: str
) -> None:
    answer = hushtune("plan", *arguments)
    assert answer.status == 2
    assert said in answer.err + answer.out
    assert "Traceback" not in answer.err
    assert "S/N" not in answer.out  # nor a table first


def test_delta_zero_has_its_own_reason_and_remedy(hushtune: Any) -> None:
    answer = hushtune("plan", "--sites", "900", "--delta", "0")
    assert answer.status == 2
    assert answer.err.startswith("HT403 --delta is out of range\n  given: 0\n")
    assert "do: --delta 1e-5" in answer.err
    assert "lower" not in answer.err


def test_refusals_speak_of_the_command_s_options(hushtune: Any) -> None:
    """Not of fields of the code, nor of a run's settings."""
    rows = hushtune("plan", "--sites", "empty=0,north=900")
    assert rows.status == 0
    assert "empty cannot take part: it has no training rows" in rows.out
    assert "leave it out of --sites" in rows.out
    assert "lower --delta" in hushtune("plan", "--sites", "900", "--delta", "0.01").out
    assert "lower --batch" in hushtune("plan", "--sites", "9", "--batch", "20").out
    values = hushtune("plan", "--sites", "900", "--tensor-size", 10**13)
    assert values.err.startswith("HT403 --tensor-size is out of range")
    for said in (rows.out, values.err):
        assert "public_size" not in said
        assert "trained_values" not in said


@pytest.mark.parametrize(("epsilon", "warned"), [(9.9, False), (10.1, True), (1e6, True)])
def test_an_epsilon_that_protects_nothing_is_said_to(
    hushtune: Any, epsilon: float, warned: bool
) -> None:
    answer = hushtune("plan", "--sites", "900,300", "--epsilon", epsilon)
    assert answer.status == 0
    said = " ".join(answer.out.split())
    assert ("protects next to nothing" in said) == warned
    assert said.count("protects next to nothing") <= 1
    if warned:
        assert "may find 100.0% of those that were" in said
    assert answer.err == ""  # no library's warnings either


def test_a_narrow_table_cuts_no_digits() -> None:
    wide = {"a long name of a site, longer than most": 123_456_789_012, "b": 123_456_789_012}
    console = Console(width=70, file=io.StringIO(), record=True)
    show_plan(console, plan_run(wide, Outline(epsilon=1e6, rounds=9)))
    assert "…" not in console.export_text()


def test_the_options_defaults_are_a_configuration_s(hushtune: Any) -> None:
    privacy, train = PrivacyConfig(), TrainConfig()
    assert Outline() == Outline(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        rounds=train.rounds,
        local_steps=train.local_steps,
        clip_norm=privacy.clip_norm,
        relation=Relation(privacy.relation),
    )
    answer = hushtune("plan", "--sites", "900", "--json")
    expected = plan_run({"site-1": 900}, Outline())
    found = json.loads(answer.out)
    assert "two sites" in found.pop("trust_models")["distributed"]["refused"]
    assert found == json.loads(json.dumps(expected))


def test_the_picture_is_a_png_that_opens(hushtune: Any, tmp_path: Path) -> None:
    sites = "north$1$=100,_south=4000,[west]=30,large=200000"
    path = tmp_path / "plan.png"
    options = ("--batch", 100, "--rounds", 1, "--plot", path)
    answer = hushtune("plan", "--sites", sites, *options)
    assert answer.status == 0, answer.err
    assert str(path) in answer.out
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = matplotlib.image.imread(path)  # (height, width, 4)
    height, width, _ = picture.shape
    assert width > 1200
    assert height > 600
    halves = picture[:, : width // 2, :3], picture[:, width // 2 :, :3]
    for half in halves:  # something is drawn in each
        assert len(np.unique(half.reshape(-1, 3), axis=0)) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["plan.png"]


def test_curves_that_are_not_drawn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = plan_run({"a": 5000}, Outline(rounds=2, sampling_probability=0.13))
    site = figures["sites"]["a"]
    figures["sites"] = {
        f"site {number}": {**site, "noise_multiplier": 1.0 + number} for number in range(9)
    }
    monkeypatch.setattr(planner_plot, "epsilon_curve", lambda *_: [(1, 1.0), (2, 2.0)])
    found = planner_plot.draw_plan(figures).axes[0].get_legend()
    assert found is not None
    assert "2 more rates not drawn: see the table" in [text.get_text() for text in found.texts]
