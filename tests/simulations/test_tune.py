"""The search for settings: who pays for the choice, what it costs, what leaves, what is refused."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import config_hash, loads_config, replace
from hushtune.common.errors import CheckpointError, ConfigError, PlanError
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.common.privacy.selection import CountLaw, RandomCount, epsilon_of_best
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations.searching import tune as searching
from hushtune.simulations.searching.cost import check_covered, cost_of
from hushtune.simulations.searching.payer import Choice
from hushtune.simulations.searching.proposals import at_random
from hushtune.simulations.searching.record import Trial, best_of, read_record
from hushtune.simulations.searching.space import Parameter, read_space
from hushtune.simulations.searching.tune import Search, check_search, tune

from ..conftest import Command, Settings, made_up_rows, write_csv

PRIVATE = {"trust": "site", "epsilon": 4.0, "delta": 1e-3}
GEOMETRIC = RandomCount(law=CountLaw.GEOMETRIC, mean=5.0)
RATE = Parameter(key="train.learning_rate", low=0.003, high=0.3, log=True)
SPACE = "[train]\nlearning_rate = { low = 0.003, high = 0.3, log = true }\n"


def quick(settings: Settings, **changes: Any) -> Any:
    return settings.config(
        **{"privacy": PRIVATE, "train__rounds": 1, "train__warmup_rounds": 0, **changes}
    )


def search(config: Any, **changes: Any) -> Search:
    told: Mapping[str, Any] = {"choice": Choice.CHARGED, "trials": 5.0, "law": CountLaw.GEOMETRIC}
    return Search(config=config, space=(RATE,), **{**told, **changes})


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A configuration of public data."""
    rows = made_up_rows({"east": 60, "north": 60, "south": 60}, seed=5)
    path = write_csv(tmp_path / "public.csv", rows)
    file = tmp_path / "public.toml"
    file.write_text(f'[data]\nfile = "{path}"\nsite = "site"\n', encoding="utf-8")
    return file


def written(folder: Path, text: str = SPACE) -> Path:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------- cost ----


def test_a_charged_choice_costs_what_the_theorem_says_of_the_plan(settings: Settings) -> None:
    config = resolve(quick(settings))
    cost = cost_of(config, (RATE,), GEOMETRIC)
    for site, plan in site_plans(config).items():
        events = [plan.event(plan.steps)]
        told = {"delta": plan.delta, "relation": plan.relation}
        assert cost.sites[site].epsilon == epsilon_of_best([events], count=GEOMETRIC, **told)
        assert cost.sites[site].epsilon_of_one == epsilon(events, **told) <= 4.0
        assert cost.sites[site].epsilon > 2 * cost.sites[site].epsilon_of_one


def test_settings_that_change_the_noise_are_all_counted(settings: Settings) -> None:
    config = resolve(quick(settings))
    steps = Parameter(key="train.local_steps", low=1, high=3)
    cost = cost_of(config, (RATE, steps), GEOMETRIC)
    for site, events in cost.kinds.items():
        plans = [site_plans(replace(config, {"train.local_steps": n}))[site] for n in (1, 2, 3)]
        assert events == tuple(plan.event(plan.steps) for plan in plans)
        told = {"delta": 1e-3, "relation": Relation.ADD_OR_REMOVE_ONE}
        alone = [epsilon_of_best([[event]], count=GEOMETRIC, **told) for event in events]
        assert cost.sites[site].epsilon >= max(alone)


def test_a_continuous_range_of_what_changes_the_noise_is_refused(settings: Settings) -> None:
    config = resolve(quick(settings))
    rate = Parameter(key="train.sampling_probability", low=0.1, high=0.5)
    with pytest.raises(ConfigError, match="changes the noise"):
        cost_of(config, (rate,), GEOMETRIC)
    many = Parameter(key="train.local_steps", low=1, high=25)
    with pytest.raises(ConfigError, match="too many combinations"):
        cost_of(config, (many,), GEOMETRIC)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"privacy": {"trust": "off"}}, "privacy.trust = off"),
        ({"privacy": {**PRIVATE, "relation": "replace_one"}}, "privacy.relation"),
        ({"privacy": {**PRIVATE, "trust": "distributed"}}, "privacy.trust = distributed"),
        (
            {"privacy": {**PRIVATE, "trust": "server", "unit": "client", "delta": 1e-2}},
            "privacy.unit = client",
        ),
        ({"privacy": {**PRIVATE, "insecure_seeded_noise": True}}, "privacy.insecure_seeded_noise"),
        ({"metrics": {"release": "noised"}}, "metrics.release"),
        ({"personal": {"method": "finetune", "steps": 1}}, "personal.method"),
        ({"simulation__policies": "policies"}, "simulation.policies"),
        ({"data__validation_fraction": 0.0}, "data.validation_fraction"),
    ],
)
def test_what_has_no_known_cost_is_refused(settings: Settings, changes: Any, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_search(search(quick(settings, **changes)))
    assert key in str(refused.value.given)


def test_a_rule_that_keeps_a_part_at_each_site_is_no_choice(settings: Settings) -> None:
    config = resolve(quick(settings))
    rules = Parameter(key="aggregation.rule", choices=("ffa", "fedsa"))
    with pytest.raises(ConfigError, match="stays at each site") as refused:
        cost_of(config, (rules,), GEOMETRIC)
    assert refused.value.given == "aggregation.rule = fedsa"
    shared = Parameter(key="aggregation.rule", choices=("ffa", "fedit"))
    cost_of(config, (shared,), GEOMETRIC)
    # Of one that no run has nothing is asked.
    kept = resolve(quick(settings, aggregation__rule="fedsa"))
    cost_of(kept, (shared,), GEOMETRIC)
    with pytest.raises(ConfigError, match="stays at each site"):
        cost_of(kept, (), GEOMETRIC)


def test_a_fixed_number_of_runs_is_refused(settings: Settings) -> None:
    with pytest.raises(PlanError, match="fixed number of runs"):
        check_search(search(quick(settings), law=CountLaw.FIXED))


def test_a_run_beyond_what_was_counted_is_noticed() -> None:
    def event(sigma: float, steps: int) -> DpSgdEvent:
        return DpSgdEvent(sampling_probability=0.3, noise_multiplier=sigma, steps=steps)

    kinds = [event(1.5, 6), event(2.0, 9)]
    for charged in ([], [event(1.5, 2)] * 3, [event(2.0, 9)], [event(1.5, 1)]):
        check_covered(charged, kinds, site="east")
    for charged in (
        [event(1.5, 2)] * 4,
        [event(1.4, 1)],
        [event(1.5, 3), event(2.0, 3)],
        [event(2.0, 10)],
    ):
        with pytest.raises(PlanError, match="site east"):
            check_covered(charged, kinds, site="east")


# ------------------------------------------------------------------------------------ choice ----


def test_the_best_does_not_depend_on_which_run_came_first() -> None:
    def trial(number: int, value: float | None, digest: str) -> Trial:
        return Trial(number=number, settings={}, done=True, value=value, digest=digest)

    trials = [trial(0, 0.7, "b"), trial(1, 0.7, "a"), trial(2, None, ""), trial(3, 0.2, "0")]
    for order in (trials, trials[::-1]):
        best = best_of(order, higher_is_better=True)
        assert best is not None
        assert best.digest == "a"
        least = best_of(order, higher_is_better=False)
        assert least is not None
        assert least.value == 0.2
    assert best_of([trials[2]], higher_is_better=True) is None
    assert best_of([], higher_is_better=True) is None


def test_settings_of_a_charged_choice_follow_no_seed_and_no_run() -> None:
    done = [Trial(number=0, settings={RATE.key: 0.1}, done=True, value=0.9)]
    found = {at_random((RATE,), trials)[RATE.key] for trials in ([], [], done, done)}
    assert len(found) == 4


def test_draws_are_even_over_ranges_and_lists() -> None:
    import numpy as np

    random = np.random.default_rng(3)
    whole = Parameter(key="adapter.rank", low=1, high=4)
    listed = Parameter(key="adapter.rank", choices=(2, "x"))
    ratio = Parameter(key="adapter.rank", low=1, high=64, log=True)
    counts = [sum(whole.draw(random) == n for _ in range(2000)) for n in (1, 2, 3, 4)]
    assert all(400 < count < 600 for count in counts)
    assert {listed.draw(random) for _ in range(50)} == {2, "x"}
    logs = [math.log(RATE.draw(random)) for _ in range(2000)]
    assert math.log(0.003) <= min(logs)
    assert max(logs) <= math.log(0.3)
    assert sum(logs) / 2000 == pytest.approx(math.log(0.03), abs=0.1)
    found = {ratio.draw(random) for _ in range(500)}
    assert min(found) == 1
    assert 40 < max(found) <= 64


# ------------------------------------------------------------------------------------- space ----


def test_a_space_is_read(settings: Settings, tmp_path: Path) -> None:
    more = (
        "[adapter]\nrank = { choices = [2, 4] }\n[privacy]\nclip_norm = { low = 0.5, high = 2.0 }\n"
    )
    text = SPACE + more
    found = read_space(written(tmp_path, text), quick(settings))
    assert [each.key for each in found] == [RATE.key, "adapter.rank", "privacy.clip_norm"]
    assert found[0] == RATE
    assert found[1].values == (2, 4)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "nothing to search"),
        ("[train]\nlearning_rate = 0.1\n", "no range"),
        ("[train]\nlearning_rate = { low = 0.1 }\n", "no range"),
        ("[train]\nlearning_rate = { low = 0.2, high = 0.1 }\n", "no range"),
        ("[train]\nlearning_rate = { low = 0.0, high = 0.1, log = true }\n", "no range"),
        ("[train]\nlearning_rate = { low = nan, high = 0.1 }\n", "no range"),
        ("[train]\nlearning_rate = { choices = [] }\n", "no range"),
        ("[train]\nlearning_rat = { low = 0.1, high = 0.2 }\n", "no setting train.learning_rat"),
        ("[train]\nrounds = { low = 0, high = 2 }\n", "train.rounds"),
        ("[privacy]\nepsilon = { low = 1.0, high = 2.0 }\n", "privacy.epsilon is not for a search"),
        ("[data]\nalpha = { low = 1.0, high = 2.0 }\n", "data.alpha is not for a search"),
        ("seed = { low = 1, high = 9 }\n", "seed is not for a search"),
        ("train = [", "not TOML"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(
    settings: Settings, tmp_path: Path, text: str, word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        read_space(written(tmp_path, text), quick(settings))


# -------------------------------------------------------------------------------------- runs ----


def test_of_a_charged_search_one_run_leaves_with_the_whole_cost(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomCount, "draw", lambda self: 3)
    out, config = tmp_path / "out", quick(settings)
    found = tune(search(config), out)
    record = read_record(out)
    assert record is not None
    assert record.drawn == len(record.trials) == 3
    assert stat.S_IMODE((out / "search.json").stat().st_mode) == 0o600
    best = max(trial.value for trial in record.trials if trial.value is not None)
    assert found["value"] == best
    selected = out / "selected"
    assert {path.name for path in selected.iterdir()} == {
        *("adapter", "config.toml", "privacy.json", "privacy.md")
    }
    settled = loads_config((selected / "config.toml").read_text())
    assert settled.train.learning_rate == found["settings"][RATE.key]
    told = json.loads((selected / "privacy.json").read_text())
    cost = cost_of(resolve(config), (RATE,), GEOMETRIC)
    card = (selected / "adapter" / "README.md").read_text()
    for site, each in cost.sites.items():
        assert told["sites"][site]["epsilon"] == each.epsilon == found["epsilon"][site]
        assert f"| {site} | {math.ceil(each.epsilon * 100) / 100:.2f} | 0.001 |" in card
    assert "4.00" not in card.partition("## Privacy")[2]
    # Whoever sees all runs: three plans one after the other.
    plan = site_plans(resolve(config))["east"]
    together = epsilon([plan.event(plan.steps)] * 3, delta=1e-3, relation=plan.relation)
    assert found["epsilon_of_all_trials"]["east"] == pytest.approx(together)
    # What leaves does not tell how many runs there were, nor which of them this was.
    for path in selected.rglob("*"):
        if path.suffix in (".json", ".md", ".toml"):
            text = path.read_text(encoding="utf-8")
            assert "trials" not in text
            assert str(out) not in text
            assert "drawn" not in told
    # Every run drew batches and noise of its own.
    assert len({trial.digest for trial in record.trials}) == 3


def test_a_search_goes_on_without_drawing_anew(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomCount, "draw", lambda self: 2)
    out, asked = tmp_path / "out", search(quick(settings))
    real, calls = searching.run, []

    def stopping(*arguments: Any, **how: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(searching, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(asked, out)
    before = read_record(out)
    assert before is not None
    assert [trial.done for trial in before.trials] == [True, False]
    monkeypatch.setattr(RandomCount, "draw", lambda self: 9)
    with pytest.raises(CheckpointError, match="no such search"):
        tune(search(quick(settings, seed=99)), out, resume=True)
    tune(asked, out, resume=True)
    after = read_record(out)
    assert after is not None
    assert after.drawn == 2
    assert [t.settings for t in after.trials] == [t.settings for t in before.trials]
    assert after.trials[0] == before.trials[0]


def test_no_run_at_all_releases_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RandomCount, "draw", lambda self: 0)
    found = tune(search(quick(settings), law=CountLaw.POISSON), tmp_path / "out")
    assert found["settings"] is None
    assert not (tmp_path / "out" / "selected").exists()


def test_public_data_are_all_that_a_public_choice_looks_at(
    hushtune: Command, settings: Settings, tmp_path: Path, public: Path
) -> None:
    config = settings.file(
        tmp_path,
        privacy=PRIVATE,
        train__rounds=1,
        train__warmup_rounds=0,
        simulation__ledgers=str(tmp_path / "ledgers"),
    )
    space, out = written(tmp_path), tmp_path / "out"
    common = ("--config", config, "--space", space, "--choice", "public", "--public", public)
    answer = hushtune("tune", *common, "--trials", 3, "--out", out, "--json")
    assert answer.status == 0, answer.err
    assert "costs the sites nothing" in answer.err
    told = json.loads(answer.out.splitlines()[-1])
    assert told["trials"] == 3
    for number in range(3):
        used = loads_config((out / "trials" / f"{number:04}" / "config.toml").read_text())
        assert used.data.file == tmp_path / "public.csv"
    best = loads_config((out / "best.toml").read_text())
    own = loads_config(Path(config).read_text())
    assert best.data == own.data
    assert best == replace(own, told["settings"])
    assert config_hash(best) != config_hash(own)
    assert not (out / "selected").exists()
    assert not (tmp_path / "ledgers").exists()  # the sites' lasting ones


def test_a_public_choice_by_the_sites_own_data_is_refused(
    hushtune: Command, settings: Settings, tmp_path: Path, public: Path
) -> None:
    config = settings.file(tmp_path, privacy=PRIVATE)
    common = ("--config", config, "--space", written(tmp_path), "--trials", 3)
    own = hushtune(
        "tune", *common, "--choice", "public", "--public", config, "--out", tmp_path / "o"
    )
    assert own.status == 2
    assert "the public data are the sites' own" in own.err
    for trials in ("nan", "0", "2.5"):
        odd = hushtune(
            "tune",
            *common,
            "--trials",
            trials,
            "--choice",
            "public",
            "--public",
            public,
            "--dry-run",
        )
        assert odd.status == 2
        assert "a whole number" in odd.err
    none = hushtune("tune", *common, "--choice", "public", "--out", tmp_path / "o")
    assert none.status == 2
    assert "data that are nobody's" in none.err
    assert not (tmp_path / "o").exists()


def test_the_command_says_the_cost_and_refuses_a_fixed_number(
    hushtune: Command, settings: Settings, tmp_path: Path
) -> None:
    config = settings.file(tmp_path, privacy=PRIVATE, train__rounds=1, train__warmup_rounds=0)
    common = ("--config", config, "--space", written(tmp_path), "--choice", "charged")
    told = hushtune("tune", *common, "--trials", 5, "--dry-run", "--json")
    assert told.status == 0, told.err
    cost = cost_of(resolve(quick(settings)), (RATE,), GEOMETRIC)
    found = json.loads(told.out.splitlines()[-1])["epsilon"]
    assert found == pytest.approx({site: each.epsilon for site, each in cost.sites.items()})
    fixed = hushtune("tune", *common, "--trials", 5, "--count", "fixed", "--dry-run")
    assert fixed.status == 2
    assert "HT403" in fixed.err
    assert "fixed number of runs" in fixed.err
