"""What does not go with a rule: each refusal names the key, what was given and what would do."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hushtune.common import compatibility, config_federation, config_privacy, config_rules
from hushtune.common.config import RunConfig
from hushtune.common.config_io import loads_config
from hushtune.common.config_rules import SAME_COORDINATES, WITH_DITTO
from hushtune.common.errors import ConfigError
from hushtune.common.lora_rules import RULES

DATA = {"data.source": "demo"}
SGD = {"train.optimizer": "sgd", "train.learning_rate": 0.1, "privacy.trust": "off"}
BY_CLIENT = {"privacy.unit": "client", "privacy.delta": 1e-2}


def toml(changes: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**DATA, **changes}.items()]
    return "\n".join(lines).replace("{", "{ ").replace('": ', '" = ')


def made(changes: dict[str, Any]) -> RunConfig:
    return loads_config(toml(changes))


# name -> (settings, the key that is named, what was given, what would do)
REFUSALS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "ranks under a rule of one shape": (
        {"adapter.ranks": {"amazon": 2, "nyt": 8}},
        "adapter.ranks",
        "ranks of amazon, nyt, with ffa",
        "no ranks, or a rule for any ranks: flora, flexlora, hetlora",
    ),
    "a proximal term at sites that take no steps": (
        {"aggregation.rule": "fedsgd", "train.proximal": 0.5},
        "train.proximal",
        "0.5",
        "0",
    ),
    "a proximal term in secure sums of gradients": (
        {"privacy.trust": "distributed", "train.proximal": 0.5},
        "train.proximal",
        "0.5",
        "0",
    ),
    "a proximal term beside control variates": (
        {**SGD, "train.proximal": 0.5, "train.scaffold": True},
        "train.proximal",
        "0.5, train.scaffold = true",
        "one of the two",
    ),
    "control variates at sites that take no steps": (
        {**SGD, "aggregation.rule": "fedsgd", "train.scaffold": True},
        "train.scaffold",
        "true",
        "false",
    ),
    "a B of the site's own in secure sums": (
        {"aggregation.rule": "fedsa", "privacy.trust": "distributed"},
        "aggregation.rule",
        "fedsa, trust = distributed, unit = example",
        "another rule, or unit = client",
    ),
    "control variates under privacy": (
        {**SGD, "privacy.trust": "site", "train.scaffold": True},
        "train.scaffold",
        "true, privacy.trust = 'site'",
        'false, or privacy.trust = "off"',
    ),
    "control variates under an adaptive optimiser": (
        {**SGD, "train.optimizer": "adamw", "train.scaffold": True},
        "train.scaffold",
        "true, train.optimizer = 'adamw'",
        'train.optimizer = "sgd", with a learning rate for it',
    ),
    "control variates under a rule that changes coordinates": (
        {**SGD, "aggregation.rule": "fedsvd", "train.scaffold": True},
        "train.scaffold",
        "true, aggregation.rule = 'fedsvd'",
        "one of fedit, ffa, rolora, fedsb",
    ),
    "personal training where noise is on a sum": (
        {"privacy.trust": "distributed", "personal.method": "finetune"},
        "personal.method",
        "finetune, privacy.trust = 'distributed'",
        '"none", or privacy.trust = "site" or "off"',
    ),
    "personal training where noise is at the server": (
        {**BY_CLIENT, "privacy.trust": "server", "personal.method": "finetune"},
        "personal.method",
        "finetune, privacy.trust = 'server'",
        '"none", or privacy.trust = "site" or "off"',
    ),
    "an adapter drawn to one of other coordinates": (
        {"aggregation.rule": "fedex", "personal.method": "ditto"},
        "personal.method",
        "ditto, aggregation.rule = 'fedex'",
        "one of fedit, ffa, fedsb, fedsgd",
    ),
    "an adapter drawn to half of the global one": (
        {"aggregation.rule": "rolora", "personal.method": "ditto"},
        "personal.method",
        "ditto, aggregation.rule = 'rolora'",
        "one of fedit, ffa, fedsb, fedsgd",
    ),
    "an adapter that is never trained": (
        {"personal.method": "ditto", "train.warmup_rounds": 20},
        "personal.method",
        "ditto, train.warmup_rounds = train.rounds",
        "fewer rounds of warm-up",
    ),
    "a variate beside another estimate": (
        {**SGD, "privacy.trust": "off", "train.scaffold": True, "aggregation.estimate": "median"},
        "train.scaffold",
        "true, aggregation.estimate = 'median', encoding = 'float32'",
        'estimate = "mean" and encoding = "float32"',
    ),
    "two adapters of the site's own": (
        {"aggregation.rule": "fedsa", "personal.method": "finetune"},
        "personal.method",
        "finetune, aggregation.rule = 'fedsa'",
        '"none"',
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_it_is_refused_and_says_why(name: str) -> None:
    changes, key, given, expected = REFUSALS[name]
    with pytest.raises(ConfigError) as caught:
        made(changes)
    error = caught.value
    assert key in error.message
    assert (error.given, error.expected) == (given, expected)
    # The setting at fault is at fault: without it the rest is fine.
    made({k: v for k, v in changes.items() if k not in (key, "aggregation.rule")})


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_can_do_is_not_refused(rule: str) -> None:
    """One cell a rule of each table: ranks, personal training, control variates, FedProx."""
    base: dict[str, Any] = {**SGD, "aggregation.rule": rule}
    allowed = {
        "ranks": RULES[rule].any_ranks,
        "finetune": not RULES[rule].kept,
        "ditto": rule in WITH_DITTO,
        "scaffold": rule in SAME_COORDINATES,
        "proximal": not RULES[rule].gradient,
    }
    settings: dict[str, dict[str, Any]] = {
        "ranks": {"adapter.ranks": {"amazon": 2}},
        "finetune": {"personal.method": "finetune"},
        "ditto": {"personal.method": "ditto"},
        "scaffold": {"train.scaffold": True},
        "proximal": {"train.proximal": 0.1},
    }
    for what, changes in settings.items():
        if allowed[what]:
            made({**base, **changes})
        else:
            with pytest.raises(ConfigError):
                made({**base, **changes})


def test_a_whole_client_s_own_b_and_steps_are_fine_in_secure_sums() -> None:
    clients = {**BY_CLIENT, "privacy.trust": "distributed"}
    made({**clients, "aggregation.rule": "fedsa"})
    made({**clients, "train.proximal": 0.5})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("personal.method", "both"),
        ("personal.steps", 0),
        ("personal.learning_rate", 0.0),
        ("personal.proximal", -1.0),
        ("train.proximal", -0.1),
        ("train.scaffold", "yes"),
        ("adapter.ranks", {"amazon": 0}),
        ("adapter.ranks", {"": 2}),
        ("aggregation.rule", "hexlora"),
    ],
)
def test_a_value_out_of_range_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        made({key: value})


def refusing_calls(module: ModuleType) -> list[ast.Call]:
    tree = ast.parse(inspect.getsource(module))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "refuse"]


@pytest.mark.parametrize("module", [config_rules, config_federation, config_privacy])
def test_every_refusal_says_what_was_given_what_would_do_and_what_to_do(
    module: ModuleType,
) -> None:
    for call in refusing_calls(module):
        said = {keyword.arg for keyword in call.keywords}
        assert said >= {"key", "given", "expected", "remedy"}, f"line {call.lineno}"


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"aggregation.rule": "fedex", "privacy.trust": "distributed"}, "aggregation.rule"),
        ({"aggregation.estimate": "krum", "privacy.trust": "distributed"}, "privacy.trust"),
        ({"aggregation.estimate": "median", "aggregation.rule": "fedit"}, "aggregation.estimate"),
        ({"aggregation.average": 0.5, "aggregation.rule": "fedex"}, "leave aggregation.average"),
    ],
)
def test_a_refusal_of_the_tables_says_what_to_do(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(changes)
    assert remedy in str(caught.value.remedy)


IDLE: dict[str, tuple[dict[str, Any], str]] = {
    "steps of no method": ({"personal.steps": 3}, "personal.method"),
    "a learning rate of no method": ({"personal.learning_rate": 0.1}, "personal.method"),
    "a pull of no method": ({"personal.proximal": 1.0}, "personal.method"),
    "steps of the other method": ({"personal.method": "ditto", "personal.steps": 3}, "finetune"),
    "a pull of the other method": (
        {"personal.method": "finetune", "personal.proximal": 1.0},
        "ditto",
    ),
    "momentum of another optimiser": (
        {"aggregation.optimizer": "adam", "aggregation.momentum": 0.5},
        "aggregation.optimizer",
    ),
    "attackers without an attack": ({"simulation.attackers": 0.3}, "simulation.attack"),
    "a scale without an attack": ({"simulation.attack_scale": 2.0}, "simulation.attack"),
    "a scale of an attack without one": (
        {"simulation.attack": "nan", "simulation.attack_scale": 2.0},
        "sign_flip",
    ),
}


@pytest.mark.parametrize("name", IDLE)
def test_a_setting_that_would_change_nothing_is_refused(name: str) -> None:
    changes, needed = IDLE[name]
    key = list(changes)[-1]
    with pytest.raises(ConfigError, match="changes nothing here") as caught:
        made(changes)
    assert key in caught.value.message
    assert f"leave {key} out" in str(caught.value.remedy)
    assert needed in str(caught.value.expected)


def test_the_same_settings_are_taken_where_they_have_an_effect_or_are_the_defaults() -> None:
    made({"personal.method": "finetune", "personal.steps": 3, "personal.learning_rate": 0.1})
    made({"personal.method": "ditto", "personal.proximal": 1.0})
    made({"aggregation.optimizer": "momentum", "aggregation.momentum": 0.5})
    made({"simulation.attack": "label_flip", "simulation.attackers": 0.3})
    made({"simulation.attack": "collude", "simulation.attack_scale": 2.0})
    made({"personal.steps": 6, "aggregation.momentum": 0.9, "simulation.attack_scale": 10.0})


DOCS = (Path(__file__).parents[2] / "docs" / "aggregation.md").read_text(encoding="utf-8")


def refused_in_docs(key: str) -> str:
    """The row of the table of what does not go together."""
    table = DOCS.partition("| setting | is refused |")[2]
    rows = [line for line in table.splitlines() if line.startswith(f"| `{key}` | ")]
    assert len(rows) == 1, key
    return rows[0]


def test_the_docs_have_a_row_for_every_setting_that_is_refused() -> None:
    keys = {key for _, key, _, _ in REFUSALS.values()}
    for name in ("rule", "estimate", "optimizer", "learning_rate", "average"):
        keys.add(f"aggregation.{name}")
    for call in refusing_calls(config_rules):
        found = next(keyword.value for keyword in call.keywords if keyword.arg == "key")
        keys |= {str(n.value) for n in ast.walk(found) if isinstance(n, ast.Constant) and n.value}
    for key in keys:
        refused_in_docs(key)
    for changes, _ in IDLE.values():
        key = list(changes)[-1]
        section, _, name = key.rpartition(".")
        assert f"`{key}`" in DOCS or (f"`.{name}`" in DOCS and f"`{section}." in DOCS), key


@pytest.mark.parametrize(
    ("key", "table"),
    [
        ("aggregation.optimizer", compatibility.RULE_WITH_OPTIMIZER),
        ("aggregation.learning_rate", compatibility.RULE_WITH_RATE),
        ("aggregation.average", compatibility.RULE_WITH_AVERAGE),
        ("aggregation.rule", compatibility.REFUSED),
        ("aggregation.estimate", compatibility.RULE_WITH_ESTIMATE),
    ],
)
def test_the_docs_name_every_rule_that_a_table_refuses(key: str, table: Mapping[Any, Any]) -> None:
    row = refused_in_docs(key)
    for cell, reason in table.items():
        rule = cell if isinstance(cell, str) else cell[0]
        assert reason is None or f"`{rule}`" in row, rule
