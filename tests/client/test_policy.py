"""A site's own policy stands above whatever a server asks."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from hushtune.client.app import answer
from hushtune.client.policy import SitePolicy
from hushtune.client.site import Site, close_sites, open_site
from hushtune.client.terms import Terms, load_terms, terms_template
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import (
    ConfigError,
    MissingFileError,
    PolicyError,
    QuorumError,
    SiteError,
    UnknownKeyError,
)
from hushtune.common.messages import (
    ClientUpdate,
    Refusal,
    RoundOrder,
    decode_order,
    decode_reply,
    encode_order,
)
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import Relation, Trust
from hushtune.common.run_context import run_config
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run

from .families import TensorTask, make_order, moved, private_plan, tensor_task
from .test_app import make_site

PLAN = private_plan(noise_multiplier=4.0)
GENEROUS: dict[str, Any] = {"max_epsilon": 1e6, "max_delta": 1e-5}


@pytest.fixture(scope="module")
def task() -> TensorTask:
    return tensor_task(30)


@pytest.fixture(scope="module")
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


def policy(task: TensorTask, **terms: Any) -> SitePolicy:
    return SitePolicy(
        site="north",
        trust=Trust.SITE,
        spec=lora.spec(task.model),
        public_size=100,
        terms=Terms(**{**GENEROUS, **terms}),
    )


def test_a_fit_order_passes(task: TensorTask, state: AdapterState) -> None:
    policy(task).check(make_order(state, PLAN))


# name -> (terms, changes of the order, what the refusal must say)
BEYOND: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "noise below the floor": ({"min_noise_multiplier": 4.01}, {}, "too little noise"),
    "a batch that is too small": ({"min_batch": 60.0}, {}, "too small a batch"),
    "another base model": ({"base_models": ("00" * 32,)}, {}, "base model"),
    "a rule that is not allowed": ({"rules": ("ffa",)}, {}, "rule of aggregation"),
    "a rule that nobody knows": ({}, {"rule": "a new rule"}, "rule of aggregation"),
    "a rank that is too high": ({"max_rank": 1}, {}, "at a rank"),
    "a target that is not allowed": ({"targets": ("query",)}, {}, "adapts modules"),
    "a tensor that the rule freezes": ({}, {"rule": "ffa"}, "does not"),
    "another unit": ({"unit": "group", "group": "patient"}, {}, "unit of privacy"),
    "another relation": ({"relation": "replace_one"}, {}, "neighbouring relation"),
    "a larger delta": ({"max_delta": 1e-6}, {}, "larger delta"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_the_terms_is_refused(
    task: TensorTask, state: AdapterState, name: str
) -> None:
    terms, changes, said = BEYOND[name]
    order = make_order(state, PLAN, **changes)
    with pytest.raises(PolicyError, match=said):
        policy(task, **terms).check(order)


@pytest.mark.parametrize("terms", [{"max_rounds": 3}, {"max_steps": 7}])
def test_rounds_and_steps_count_over_the_life_of_the_data(
    task: TensorTask, state: AdapterState, tmp_path: Path, terms: dict[str, int]
) -> None:
    limit = Terms(**{**GENEROUS, **terms}).limit(whole_ledger=True)
    site = replace(make_site(task, tmp_path, epsilon=1e6), limit=limit)
    for number in range(3):
        order = make_order(state, PLAN, run=f"run {number}", local_steps=2)
        assert isinstance(decode_reply(answer(encode_order(order), site)), ClientUpdate)
    order = make_order(state, PLAN, run="one more", local_steps=2)
    reply = decode_reply(answer(encode_order(order), site))
    assert isinstance(reply, Refusal)
    assert reply.code == "HT401"
    assert "rounds or steps" in reply.reason


def test_what_is_unknown_in_an_order_is_refused(state: AdapterState) -> None:
    content = encode_order(make_order(state, PLAN))
    record = content.config_records["hushtune"]
    body = json.loads(str(record["json"]))
    record["json"] = json.dumps({**body, "also_send": "the rows"})
    with pytest.raises(Exception, match="not known here") as caught:
        decode_order(content)
    assert "also_send" in str(caught.value)
    record["json"] = json.dumps({**body, "training": {**body["training"], "clip": 9}})
    with pytest.raises(Exception, match="damaged"):
        decode_order(content)


# ---------------------------------------------------------------------------------- the file ----


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_template_is_a_policy(tmp_path: Path) -> None:
    terms = load_terms(written(tmp_path, terms_template()))
    assert terms == Terms(max_epsilon=3.0, max_delta=1e-5)


def test_a_policy_must_name_its_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_epsilon is missing"):
        load_terms(written(tmp_path, "max_delta = 1e-5\n"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_epsilon = 0.0", "max_epsilon"),
        ("max_epsilon = inf", "max_epsilon"),
        ("min_noise_multiplier = 0.0", "min_noise_multiplier"),
        ("max_delta = 1.0", "max_delta"),
        ("max_delta = 1e-15", "too small to account for"),
        ('metrics = "all"', "metrics"),
        ('rules = ["a new rule"]', "a new rule"),
        ("rules = []", "no rule"),
    ],
)
def test_a_term_that_cannot_be_used_is_named(tmp_path: Path, line: str, said: str) -> None:
    key = line.partition(" ")[0]
    rest = [f"{k} = {v}" for k, v in GENEROUS.items() if k != key]
    with pytest.raises(ConfigError, match=said) as caught:
        load_terms(written(tmp_path, "\n".join([*rest, line])))
    assert "policy.toml" in str(caught.value)
    assert str(tmp_path) not in caught.value.message  # which may leave the site


def test_an_unknown_term_proposes_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownKeyError, match="max_epsilom") as caught:
        load_terms(written(tmp_path, "max_epsilom = 1.0\n"))
    assert "perhaps max_epsilon" in str(caught.value)


def test_a_policy_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="policy"):
        load_terms(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_terms(written(tmp_path, "= 3"))
    assert str(tmp_path) not in caught.value.message  # which may leave the site
    assert str(tmp_path) in str(caught.value)


def test_commands(hushtune: Any, tmp_path: Path) -> None:
    shown = hushtune("policy", "new")
    path = written(tmp_path, shown.out)
    checked = hushtune("policy", "check", path, "--json")
    assert checked.status == 0, checked.err
    assert json.loads(checked.out.splitlines()[-1])["max_epsilon"] == 3.0
    path.write_text("max_epsilon = -1\n", encoding="utf-8")
    assert hushtune("policy", "check", path).status == 2
    path.write_text("max_epsilon = \n", encoding="utf-8")
    for unreadable in (path, tmp_path):
        said = hushtune("policy", "check", unreadable)
        assert (said.status, "do: mend it" in said.err) == (2, True)


# ---------------------------------------------------------------------------------- in a run ----


def policies(folder: Path, **by_site: Mapping[str, Any]) -> str:
    """A folder of policies; sites that are not named get a generous one."""
    import tomli_w

    folder.mkdir()
    for site in ("east", "north", "south"):
        text = tomli_w.dumps({"max_epsilon": 3.0, "max_delta": 1e-3, **by_site.get(site, {})})
        (folder / f"{site}.toml").write_text(text, encoding="utf-8")
    return str(folder)


def test_a_site_that_grants_less_refuses_and_the_run_goes_on(settings: Any, tmp_path: Path) -> None:
    folder = policies(tmp_path / "policies", north={"max_rounds": 1})
    config = settings.config(privacy__trust="site", simulation__policies=folder)
    summary = run(config, tmp_path / "out")
    assert [row["round"] for row in summary["refusals"]["north"]] == [2, 3]
    assert all(row["code"] == "HT401" for row in summary["refusals"]["north"])
    assert len(Ledger(tmp_path / "policies" / "north.sqlite").entries()) == 1
    assert set(summary["refusals"]) == {"north"}
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text(encoding="utf-8"))
    assert privacy["sites"]["north"]["epsilon"] < privacy["sites"]["east"]["epsilon"]
    assert len(privacy["sites"]["north"]["refusals"]) == 2
    assert privacy["sites"]["north"]["lifetime"]["limit_epsilon"] == 3.0


def test_a_site_with_a_policy_never_trains_without_privacy(settings: Any, tmp_path: Path) -> None:
    folder = policies(tmp_path / "policies")
    config = settings.config(simulation__policies=folder, train__rounds=1)
    with pytest.raises(Exception, match="HT404"):
        run(config, tmp_path / "out")


def test_a_site_with_a_policy_never_draws_what_a_seed_gives(settings: Any, tmp_path: Path) -> None:
    """Noise and batches that the run's seed determines would be taken off again."""
    folder = policies(tmp_path / "policies")
    seeded = {"privacy__trust": "site", "privacy__insecure_seeded_noise": True}
    config = settings.config(**seeded, simulation__policies=folder, train__rounds=1)
    with pytest.raises(SiteError, match=r"(?s)3 of 3.*HT404 the run asks for noise and batches"):
        run(config, tmp_path / "out")
    run(settings.config(**seeded, train__rounds=1, train__warmup_rounds=0), tmp_path / "without")


def test_the_policy_s_own_size_is_the_one_that_counts(settings: Any, tmp_path: Path) -> None:
    """A run that declares a larger site would get a smaller batch past its policy."""
    path = written(tmp_path, "max_epsilon = 3.0\nmax_delta = 1e-6\npublic_size = 42\n")
    sizes = {"east": 42, "north": 56, "south": 49}
    site = open_at(settings, path, tmp_path / "out", data__public_sizes=sizes)()
    assert site.public_size == site.policy.public_size == 42
    larger = open_at(settings, path, tmp_path / "out", data__public_sizes={**sizes, "east": 420})
    with pytest.raises(PolicyError, match="declares another size"):
        larger()
    close_sites()


def test_a_policy_that_is_made_stricter_holds_at_once(settings: Any, tmp_path: Path) -> None:
    """For the next order, in a process that goes on."""
    path = written(tmp_path, "max_epsilon = 3.0\nmax_delta = 1e-6\n")
    opened = open_at(settings, path, tmp_path / "out")
    assert opened().limit.epsilon == 3.0
    assert opened() is opened()
    path.write_text("max_epsilon = 0.5\nmax_delta = 1e-6\n", encoding="utf-8")
    assert opened().limit.epsilon == 0.5
    path.unlink()
    with pytest.raises(MissingFileError):
        opened()
    close_sites()


def open_at(settings: Any, policy: Path, out: Path, **changes: Any) -> Callable[[], Site]:
    """Opens the site of a node that was started with a policy of its own."""
    elsewhere = {"simulation__ledgers": str(out / "elsewhere")}
    config = resolve(settings.config(privacy__trust="site", **elsewhere, **changes))
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0, "num-partitions": 3, "policy": str(policy)},
        state=RecordDict(),
        run_config=run_config(config, out),
    )
    return lambda: open_site(context)


def test_the_policy_s_budget_counts_and_not_the_run_s(settings: Any, tmp_path: Path) -> None:
    """The run asks for epsilon 3; one site grants 1."""
    folder = policies(tmp_path / "policies", south={"max_epsilon": 1.0})
    config = settings.config(privacy__trust="site", simulation__policies=folder)
    summary = run(config, tmp_path / "out")
    assert summary["sites"]["south"]["epsilon"] <= 1.0
    assert {row["code"] for row in summary["refusals"]["south"]} == {"HT401"}
    assert 2.7 < summary["sites"]["north"]["epsilon"] <= 3.0


def test_a_policy_whose_delta_promises_nothing_stops_the_run_at_its_start(
    settings: Any, tmp_path: Path
) -> None:
    folder = policies(tmp_path / "policies", north={"max_delta": 0.5})
    config = settings.config(privacy__trust="site", simulation__policies=folder, train__rounds=1)
    with pytest.raises(SiteError, match=r"(?s)1 of 3 sites.*north: HT404"):
        run(config, tmp_path / "out")


@pytest.mark.parametrize("named", [False, True])
def test_runs_under_one_policy_share_its_budget(settings: Any, tmp_path: Path, named: bool) -> None:
    """By the data's fingerprint, whatever the seed; or by a name, even if the rows change."""
    terms = {"data_set": "ward 7"} if named else {}
    folder = policies(
        tmp_path / "policies",
        east={"max_epsilon": 9.0, **terms},
        north={"max_epsilon": 3.2, **terms},
        south={"max_epsilon": 9.0, **terms},
    )
    common = {
        "privacy__trust": "site",
        "simulation__policies": folder,
        "privacy__epsilon": 2.5,
    }
    first = run(settings.config(**common), tmp_path / "first")
    assert not first["refusals"]
    changed = {"data__max_rows_per_site": 55} if named else {"seed": 8}
    second = run(settings.config(**common, **changed), tmp_path / "second")
    assert set(second["refusals"]) == {"north"}
    assert {row["code"] for row in second["refusals"]["north"]} == {"HT401"}
    statement = json.loads((tmp_path / "second" / "privacy.json").read_text(encoding="utf-8"))
    for site, row in statement["sites"].items():
        entries = Ledger(tmp_path / "policies" / f"{site}.sqlite").entries()
        events = [entry.event for entry in entries]
        whole = epsilon(events, delta=1e-3, relation=Relation.ADD_OR_REMOVE_ONE)
        assert 2.5 < whole <= (3.2 if site == "north" else 9.0)
        assert row["epsilon_lifetime"] == pytest.approx(whole)
        assert row["epsilon"] < row["epsilon_lifetime"]


@pytest.mark.parametrize(
    "changed",
    [{"data__max_rows_per_site": 55}, {"seed": 8}, {"data__label": "stars"}],
)
def test_a_site_s_budget_is_for_all_that_its_ledger_holds(
    settings: Any, tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other choice of rows or columns begins with a new budget; `--overwrite` keeps it."""
    # The site itself has to refuse, whatever a run finds out before it begins.
    monkeypatch.setattr("hushtune.simulations.study.check_quorum", lambda *_, **__: None)
    settings = with_columns(settings, tmp_path)
    folder = policies(tmp_path / "policies")
    common = {
        "privacy__trust": "site",
        "simulation__policies": folder,
        "train__rounds": 2,
        "train__warmup_rounds": 1,
    }
    run(settings.config(**common), tmp_path / "out")
    with pytest.raises(QuorumError, match="HT401"):
        run(settings.config(**common, **changed), tmp_path / "out", overwrite=True)
    assert len(Ledger(tmp_path / "policies" / "north.sqlite").entries()) == 2


def test_a_run_that_protects_another_unit_gets_no_site(settings: Any, tmp_path: Path) -> None:
    """A server that named the column could make a patient of every record."""
    settings = with_columns(settings, tmp_path)
    group = {"unit": "group", "group": "patient"}
    folder = policies(tmp_path / "policies", north=group, east=group, south=group)
    config = settings.config(
        privacy__trust="site",
        privacy__unit="group",
        data__group="visit",
        simulation__policies=folder,
        train__rounds=1,
    )
    with pytest.raises(Exception, match="another unit"):
        run(config, tmp_path / "out")
    with pytest.raises(ConfigError, match="belong together"):
        load_terms(written(tmp_path, 'max_epsilon = 1\nmax_delta = 1e-6\nunit = "group"\n'))


def with_columns(settings: Any, folder: Path) -> Any:
    """The same data with a copy of the labels and two columns of groups."""
    with settings.data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    path = folder / "more.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        more = csv.DictWriter(file, [*rows[0], "stars", "patient", "visit"])
        more.writeheader()
        for number, row in enumerate(rows):
            groups = {"patient": f"p{number // 2}", "visit": f"v{number}"}
            more.writerow(
                {**row, "stars": "1" if row["label"] == rows[0]["label"] else "2", **groups}
            )
    return replace(settings, data=path)


def test_the_same_run_again_is_another_run_to_a_policy_s_ledger(
    settings: Any, tmp_path: Path
) -> None:
    folder = policies(tmp_path / "policies", north={"max_epsilon": 9.0}, east={"max_epsilon": 9.0})
    config = settings.config(
        privacy__trust="site",
        simulation__policies=folder,
        train__rounds=2,
        train__warmup_rounds=1,
    )
    first, second = (run(config, tmp_path / name) for name in ("first", "second"))
    assert first["adapter_digest"] != second["adapter_digest"]  # and not the first's replies again
    assert set(second["refusals"]) == {"south"}
    statement = json.loads((tmp_path / "second" / "privacy.json").read_text(encoding="utf-8"))
    assert {site["num_resent"] for site in statement["sites"].values()} == {0}
    assert len(Ledger(tmp_path / "policies" / "north.sqlite").entries()) == 4


def test_runs_that_share_ledgers_share_the_budget(settings: Any, tmp_path: Path) -> None:
    """By the data's fingerprint, whatever the seed."""
    common = {"privacy__trust": "site", "simulation__ledgers": str(tmp_path / "ledgers")}
    common |= {"train__rounds": 2, "train__warmup_rounds": 1}
    run(settings.config(**common), tmp_path / "first")
    with pytest.raises(QuorumError, match="HT401"):
        run(settings.config(**common, seed=8), tmp_path / "second")
    assert len(Ledger(tmp_path / "ledgers" / "north.sqlite").entries()) == 2


def test_the_same_run_again_is_another_run_to_shared_ledgers(settings: Any, tmp_path: Path) -> None:
    common = {"privacy__trust": "site", "simulation__ledgers": str(tmp_path / "ledgers")}
    config = settings.config(**common, train__rounds=2, train__warmup_rounds=1)
    run(config, tmp_path / "first")
    with pytest.raises(QuorumError, match="HT401"):  # and not the first run's replies again
        run(config, tmp_path / "second")


def test_a_policy_at_the_node_is_the_site_s_own(settings: Any, tmp_path: Path) -> None:
    """Named where the node is started, whatever the run's configuration says."""
    path = written(tmp_path, "max_epsilon = 0.25\nmax_delta = 1e-6\n")
    site = open_at(settings, path, tmp_path / "out")()
    close_sites()
    assert site.limit.epsilon == 0.25
    assert site.limit.whole_ledger
    assert site.policy.trust is Trust.SITE
    assert site.ledger is not None
    assert site.ledger.path == path.with_suffix(".sqlite")  # and not where the run wants it


def test_an_order_off_the_wire_keeps_its_rule(state: AdapterState) -> None:
    order = make_order(state, PLAN, rule="fedit")
    back = decode_order(encode_order(order))
    assert isinstance(back, RoundOrder)
    assert back.rule == "fedit"
    assert decode_order(encode_order(replace(order, rule="ffa"))).rule == "ffa"
