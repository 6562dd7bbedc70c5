"""A site with rows of its own: settings are the coordinator's, rows and columns the site's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.signed_run import SignedRun
from hushtune.client.site import close_sites, open_site
from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.errors import (
    ConfigError,
    DeploymentError,
    KeyFileError,
    PolicyError,
    QuorumError,
    SignatureError,
)
from hushtune.common.messages import RoundOrder
from hushtune.common.metrics_messages import MetricsOrder
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import CALIBRATION_TOLERANCE, epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import PrivacyPlan, Unit
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.secagg.wire import KeysOrder
from hushtune.common.signing import (
    check,
    load_signing_key,
    make_signing_key,
    public_text,
    sign,
)
from hushtune.server.app import federate
from hushtune.server.deployment.federate import loaded_model
from hushtune.server.orders import make_orders
from hushtune.server.roll_call import RollCall

from .institutions import LABELS, SIZES, OwnSites, coordinator_key, policy, site_folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    key = coordinator_key(tmp_path / "coordinator")
    return {
        name: site_folder(tmp_path / name, name, rows=rows, sign_key=key)
        for name, rows in SIZES.items()
    }


def own_rows(settings: Any, **changes: Any) -> RunConfig:
    """Settings of a run of the made-up institutions."""
    return settings.config(
        **{
            "data": {"source": "sites", "labels": LABELS, "public_sizes": dict(SIZES)},
            "privacy": {"trust": "site", "epsilon": 8.0, "delta": 1e-3},
            **changes,
        }
    )


def federated(config: RunConfig, folders: dict[str, Path], out: Path) -> Any:
    """The run's result, over sites that are called one after the other."""
    close_sites()
    grid = OwnSites(folders, run_config=run_config(config, out))
    model = loaded_model(config)
    return federate(
        RunContext(config, out),
        grid,  # type: ignore[arg-type]
        initial=lora.initial_state(model, seed=config.seed),
        roll=lambda _: RollCall(grid.nodes, {}),
    )


def test_sites_train_on_rows_that_the_run_knows_nothing_of(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    result = federated(own_rows(settings), folders, tmp_path / "out")
    assert [row["accepted"] for row in result.history] == [sorted(SIZES)] * 3
    assert result.history[-1]["update_norm"] > 0
    for folder in folders.values():
        entries = Ledger(folder / "policy.sqlite").entries()
        assert [entry.round for entry in entries] == [1, 2, 3]
        assert {entry.run for entry in entries} == {result.run}


def test_a_second_run_of_the_same_settings_is_charged_anew(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    first = federated(own_rows(settings), folders, tmp_path / "one")
    second = federated(own_rows(settings), folders, tmp_path / "two")
    assert first.run != second.run
    assert len(Ledger(folders["north"] / "policy.sqlite").entries()) == 6


def test_a_label_that_is_not_declared_stays_unsaid_to_the_server(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    rows = folders["north"] / "rows.csv"
    rows.write_text(rows.read_text() + "a secret remark,goood\n", encoding="utf-8")
    result = federated(own_rows(settings), folders, tmp_path / "out")
    told = result.history[0]["rejected"]["north"]
    assert "HT205" in told
    assert "goood" not in str(result.history)
    assert "secret" not in str(result.history)


@pytest.mark.parametrize(
    ("data", "lacking"),
    [
        ({"source": "sites", "public_sizes": dict(SIZES)}, "data.labels"),
        ({"source": "sites", "labels": LABELS}, "data.public_sizes"),
        ({"source": "sites", "labels": ["bad"], "public_sizes": dict(SIZES)}, "at least two"),
        (
            {"source": "sites", "labels": LABELS, "public_sizes": dict(SIZES), "partition": "iid"},
            "cannot be dealt",
        ),
    ],
)
def test_what_the_rows_would_tell_must_be_declared(
    settings: Any, data: dict[str, Any], lacking: str
) -> None:
    with pytest.raises(ConfigError, match=lacking):
        settings.config(data=data)


def test_labels_are_numbered_as_declared(settings: Any) -> None:
    config = settings.config(data__labels=["good", "bad"])
    from hushtune.common.tasks.data import load_data

    assert load_data(config.data, seed=0).label_names == ("good", "bad")

    assert load_data(settings.config().data, seed=0).label_names == ("bad", "good")


def test_a_folder_without_a_site_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match=r"no site's") as caught:
        SiteFile.read(tmp_path)
    assert "site init" in str(caught.value)


def test_paths_of_a_site_are_relative_to_its_file(folders: dict[str, Path]) -> None:
    own = SiteFile.read(folders["north"])
    assert own.table.data.file == folders["north"] / "rows.csv"
    assert own.ledger == folders["north"] / "policy.sqlite"


def test_keys_of_others_and_changed_documents_are_refused(tmp_path: Path) -> None:
    key, other = make_signing_key(tmp_path / "a.key"), make_signing_key(tmp_path / "b.key")
    document = {"b": [1, 2.5], "a": "ä"}
    signature = sign(key, document)
    check(public_text(key), {"a": "ä", "b": [1, 2.5]}, signature, what="it")
    for public, changed in ((public_text(other), document), (public_text(key), {"a": "ä"})):
        with pytest.raises(SignatureError):
            check(public, changed, signature, what="it")
    with pytest.raises(SignatureError):
        check(public_text(key), document, "", what="it")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    made = make_signing_key(path)
    assert public_text(load_signing_key(path)) == public_text(made)
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="read by others") as caught:
        load_signing_key(path)
    assert "0640" in str(caught.value)
    assert "chmod 600" in str(caught.value)
    with pytest.raises(KeyFileError, match="there already"):
        make_signing_key(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__warmup_rounds": 1},
        {"aggregation__rule": "ffa", "metrics": {"release": "noised", "every": 2}},
        {"aggregation__rule": "fedsgd"},
        {"personal__method": "ditto", "train__warmup_rounds": 1},
        {"personal__method": "finetune"},
        {"privacy": {"trust": "distributed", "epsilon": 8.0, "delta": 1e-3}},
        {"privacy": {"trust": "distributed", "unit": "client", "epsilon": 8.0, "delta": 1e-3}},
        {"privacy": {"trust": "server", "unit": "client", "epsilon": 8.0, "delta": 1e-3}},
    ],
    ids=str,
)
def test_no_order_of_an_honest_run_goes_beyond_its_signed_settings(
    settings: Any, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = own_rows(settings, **changes)
    terms = policy(
        trust=["site", "server", "distributed"],
        unit=config.privacy.unit,
        metrics="noised",
        max_epsilon=100.0,
        colluding_sites=0,
        min_noise_multiplier=0.05,
    )
    for folder in folders.values():
        (folder / "policy.toml").write_text(terms)
    result = federated(config, folders, tmp_path / "out")
    assert not any(result.refusals.values()), result.refusals
    assert [row["accepted"] for row in result.history] == [sorted(SIZES)] * 3


def test_an_order_beyond_the_signed_settings_is_refused_whatever_the_policy_allows(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The policy allows 20 in all; the run that was signed costs 8, and `site check` says so."""
    config = own_rows(settings)
    close_sites()
    out = tmp_path / "out"
    grid = OwnSites(folders, run_config=run_config(config, out))
    site = open_site(grid.contexts[grid.nodes["north"]])
    model = loaded_model(config)
    initial = lora.initial_state(model, seed=config.seed)
    plans = site_plans(config)
    dear = site_plans(own_rows(settings, privacy={"trust": "site", "epsilon": 15.0, "delta": 1e-3}))

    def ordered(number: int, plan: PrivacyPlan) -> RoundOrder:
        asked = {"run": "run", "round": number, "config": config, "sizes": SIZES}
        return make_orders(initial, plans={**plans, "north": plan}, **asked)["north"]  # type: ignore[arg-type]

    sound = ordered(1, plans["north"])
    site.policy.check(sound)
    near = 1 - CALIBRATION_TOLERANCE / 2  # as another machine might calibrate
    site.policy.check(replace(sound, plan=scaled(sound.plan, noise_multiplier=near)))
    beyond = [
        replace(sound, plan=dear["north"]),
        *(
            replace(sound, plan=scaled(sound.plan, **{name: factor}))
            for name, factor in (
                ("epsilon", 0.5),
                ("delta", 0.5),
                ("sampling_probability", 1.5),
                ("noise_multiplier", 0.999),
                ("clip_norm", 2.0),
                ("denominator", 0.5),
                ("steps", 2),
            )
        ),
        replace(sound, round=config.train.rounds + 1),
        replace(sound, local_steps=config.train.local_steps + 1),
        replace(sound, personal=True),
    ]
    for order in beyond:
        with pytest.raises(PolicyError, match="signed settings"):
            site.policy.check(order)
    figures = MetricsOrder(
        run="run",
        round=config.train.rounds,
        site="north",
        adapter=sound.adapter,
        noise_multiplier=5.0,
        unit=Unit.EXAMPLE,
        relation=sound.plan.relation,
    )
    with pytest.raises(PolicyError, match="signed settings"):
        site.policy.check_metrics(figures)


def test_a_secure_sum_of_another_cohort_than_was_signed_is_refused(settings: Any) -> None:
    """A site's share of the noise follows from who stays and who may collude."""
    privacy = {"trust": "distributed", "epsilon": 8.0, "delta": 1e-3}
    signed = SignedRun.of(own_rows(settings, privacy=privacy), "north")
    assert signed.cohort is not None
    sound = KeysOrder(
        run="run",
        session="session",
        site="north",
        cohort=signed.cohort,
        plan=signed.plan,
        steps=(1,),
    )
    signed.check_session(sound)
    larger = (*signed.cohort.sites, "zoo")
    others: list[dict[str, Any]] = [
        {"colluding": 0},
        {"sites": larger, "min_survivors": 4},
        {"sites": larger, "min_survivors": 3, "colluding": 0},
    ]
    for changes in others:
        with pytest.raises(PolicyError, match="signed settings"):
            signed.check_session(replace(sound, cohort=replace(signed.cohort, **changes)))


def test_a_run_that_the_budget_cannot_pay_whole_is_refused_in_its_first_round(
    settings: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Else its first round would be charged, and no model would come of it."""

    def asked(epsilon: float, name: str, **changes: Any) -> str:
        """How a run of that epsilon ends: what was refused in round 1, or nothing."""
        privacy = {"trust": "site", "epsilon": epsilon, "delta": 1e-3}
        config = own_rows(settings, **{"privacy": privacy, **changes})
        try:
            result = federated(config, folders, tmp_path / name)
        except QuorumError as error:
            return str(error)
        assert [row["accepted"] for row in result.history] == [sorted(SIZES)] * 3
        return ""

    def charges() -> list[int]:
        return [len(Ledger(folders[name] / "policy.sqlite").entries()) for name in sorted(SIZES)]

    for folder in folders.values():
        (folder / "policy.toml").write_text(policy(max_epsilon=5.0, metrics="noised"))
    summed = {"trust": "distributed", "epsilon": 7.0, "delta": 1e-3}
    for name, changes in {
        "plain": {},
        "figures": {"metrics": {"release": "noised", "every": 1}},
        "personal": {"personal__method": "finetune"},
        "summed": {"privacy": summed},
    }.items():
        if name == "summed":
            terms = policy(max_epsilon=5.0, trust=["distributed"], colluding_sites=0)
            for folder in folders.values():
                (folder / "policy.toml").write_text(terms)
        refused = asked(7.0, name, **changes)  # its first round alone could be paid
        assert "HT401" in refused, name
        assert "whole run" in refused, name
        assert charges() == [0, 0, 0], name
    for folder in folders.values():
        (folder / "policy.toml").write_text(policy(max_epsilon=5.0))
    assert "HT401" in asked(9.0, "dear")
    assert charges() == [0, 0, 0]
    assert asked(4.0, "fits") == ""
    assert charges() == [3, 3, 3]
    assert "whole run" in asked(4.0, "again")  # its first round alone could still be paid
    assert charges() == [3, 3, 3]


def test_what_a_run_costs_whole_is_its_plan_and_nothing_more(settings: Any) -> None:
    changes = {"personal__method": "finetune", "metrics": {"release": "noised", "every": 2}}
    signed = SignedRun.of(own_rows(settings, **changes), "north")
    plan = signed.plan
    cost = epsilon(signed.events(), delta=plan.delta, relation=plan.relation)
    assert 0.98 * plan.epsilon < cost <= plan.epsilon


def scaled(plan: PrivacyPlan, **by: float) -> PrivacyPlan:
    """A plan of which some numbers are multiplied."""
    return replace(plan, **{name: getattr(plan, name) * factor for name, factor in by.items()})
