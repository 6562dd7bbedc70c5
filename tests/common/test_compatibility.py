"""Every cell of the tables of rules, estimates, optimisers, averaging and protections.

What is expected stands here as a second set of tables, written by hand from the reasons.
"""

from __future__ import annotations

import doctest
from typing import get_args

import pytest

from hushtune.common import compatibility
from hushtune.common.compatibility import legal_combinations, refusal, why_not
from hushtune.common.config_federation import AggregationConfig, MetricsConfig, SimulationConfig
from hushtune.common.config_io import load_config
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.errors import ConfigError
from hushtune.common.lora_rules import RULES

# x = goes together, - = refused.
TRUST = """
           site server distributed off
ffa        x    x      x           x
rolora     x    x      x           x
fedsa      x    x      x           x
fedsb      x    x      x           x
fedsgd     x    x      x           x
fedsvd     x    x      x           x
fedit      x    x      x           x
hetlora    x    -      -           x
fedex      x    -      -           x
flora      x    -      -           x
flexlora   x    -      -           x
"""
ESTIMATE_TRUST = """
                 site server distributed off
mean             x    x      x           x
median           x    -      -           x
trimmed_mean     x    -      -           x
krum             x    -      -           x
multi_krum       x    -      -           x
bulyan           x    -      -           x
norm_clipping    x    -      -           x
geometric_median x    -      -           x
"""
ESTIMATE = """
         mean median trimmed_mean krum multi_krum bulyan norm_clipping geometric_median
ffa      x    x      x            x    x          x      x             x
rolora   x    x      x            x    x          x      x             x
fedsa    x    -      -            -    -          -      x             -
fedsb    x    x      x            x    x          x      x             x
fedsgd   x    x      x            x    x          x      x             x
fedsvd   x    x      x            x    x          x      x             x
fedit    x    -      -            x    x          -      x             x
hetlora  x    -      -            x    x          -      x             x
fedex    x    -      -            x    x          -      -             x
flora    x    -      -            x    x          -      -             x
flexlora x    -      -            x    x          -      -             x
"""
STEP = """
         sgd momentum adam yogi adagrad learning_rate average
ffa      x   x        x    x    x       x             x
rolora   x   x        x    x    x       x             x
fedsa    x   x        x    x    x       x             -
fedsb    x   x        x    x    x       x             x
fedsgd   x   x        x    x    x       x             x
fedsvd   x   -        -    -    -       x             -
fedit    x   x        x    x    x       x             x
hetlora  x   x        x    x    x       x             x
fedex    x   -        -    -    -       -             -
flora    x   -        -    -    -       -             -
flexlora x   -        -    -    -       -             -
"""


def cells(table: str) -> list[tuple[str, str, bool]]:
    head, *lines = (line.split() for line in table.strip().splitlines())
    return [
        (row, column, mark == "x")
        for row, *marks in lines
        for column, mark in zip(head, marks, strict=True)
    ]


def check(trust: str = "site", **settings: object) -> None:
    """Ask as a configuration will when the rule is offered."""
    privacy = PrivacyConfig(
        trust=trust,  # type: ignore[arg-type]
        unit="client" if trust in ("server", "distributed") else "example",
    )
    aggregation = AggregationConfig().model_copy(update=settings)
    check_together(privacy, aggregation, SimulationConfig(), MetricsConfig(), rounds=20)


def ask(allowed: bool, key: str, trust: str = "site", **settings: object) -> None:
    if allowed:
        check(trust, **settings)
        return
    with pytest.raises(Exception, match="does not go with") as caught:
        check(trust, **settings)
    told = caught.value.context  # type: ignore[attr-defined]
    assert told["key"] == f"aggregation.{key}"
    assert told["given"]
    assert told["expected"]
    assert len(told["message"]) > 90


@pytest.mark.parametrize(("rule", "trust", "allowed"), cells(TRUST))
def test_rule_and_protection(rule: str, trust: str, allowed: bool) -> None:
    assert (why_not(rule, trust) is None) is allowed
    ask(allowed, "rule", trust, rule=rule)


@pytest.mark.parametrize(("estimate", "trust", "allowed"), cells(ESTIMATE_TRUST))
def test_estimate_and_protection(estimate: str, trust: str, allowed: bool) -> None:
    ask(allowed, "estimate", trust, estimate=estimate)


@pytest.mark.parametrize(("rule", "estimate", "allowed"), cells(ESTIMATE))
def test_rule_and_estimate(rule: str, estimate: str, allowed: bool) -> None:
    ask(allowed, "estimate", rule=rule, estimate=estimate)


@pytest.mark.parametrize(("rule", "step", "allowed"), cells(STEP))
def test_rule_and_step_of_the_server(rule: str, step: str, allowed: bool) -> None:
    settings = {"learning_rate": {"learning_rate": 0.5}, "average": {"average": 0.9}}
    key = step if step in settings else "optimizer"
    ask(allowed, key, rule=rule, **settings.get(step, {"optimizer": step}))


@pytest.mark.parametrize("trust", ["site", "server", "off"])
def test_every_optimiser_and_an_average_follow_noise(trust: str) -> None:
    for optimizer in compatibility.OPTIMIZERS:
        check(trust, optimizer=optimizer, learning_rate=0.1, average=0.9)


def test_what_is_expected_would_do() -> None:
    found = refusal(rule="fedit", trust="site", estimate="bulyan")
    assert found is not None
    names = found.expected.removeprefix("one of ").split(", ")
    assert names == ["mean", "krum", "multi_krum", "geometric_median", "norm_clipping"]
    assert all(refusal(rule="fedit", trust="site", estimate=n) is None for n in names)
    found = refusal(rule="ffa", trust="server", estimate="krum")
    assert found is not None
    assert found.expected == "mean"


def test_the_legal_combinations_are_those_of_the_tables() -> None:
    estimates, steps = cells(ESTIMATE), cells(STEP)
    expected = {
        (rule, estimate, step)
        for rule, estimate, good in estimates
        for other, step, fine in steps
        if rule == other and good and fine and step in compatibility.OPTIMIZERS
    }
    found = legal_combinations()
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == expected
    assert set(legal_combinations("off")) == expected
    assert {estimate for _, estimate, _ in legal_combinations("distributed")} == {"mean"}


def test_every_setting_that_is_offered_is_in_the_tables_and_others_are_refused() -> None:
    fields = AggregationConfig.model_fields
    assert set(get_args(fields["estimate"].annotation)) == set(compatibility.ESTIMATES)
    assert set(get_args(fields["optimizer"].annotation)) == set(compatibility.OPTIMIZERS)
    assert set(RULES) <= set(compatibility.RULES)
    assert set(compatibility.REFUSED) == {(rule, trust) for rule, trust, _ in cells(TRUST)}
    assert why_not("unheard of", "site")
    assert why_not("unheard of", "off") is None
    for unknown in ({"estimate": "x"}, {"optimizer": "x"}):
        found = refusal(rule="ffa", trust="site", **unknown)  # type: ignore[arg-type]
        assert found is not None
        assert found.reason == "nothing is known of these together"


def test_a_file_is_told_which_key_is_wrong_and_why() -> None:
    overrides = ["data.source=demo", "aggregation.rule=fedit", "aggregation.estimate=median"]
    with pytest.raises(
        ConfigError, match=r"does not go with aggregation\.rule = 'fedit'"
    ) as caught:
        load_config(overrides=overrides)
    assert "aggregation.estimate" in str(caught.value)
    assert caught.value.given == "median"
    assert "krum" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"faulty_sites": 1}, "faulty_sites"),
        ({"norm_bound": 1.0}, "norm_bound"),
        ({"norm_bound": 1.0, "estimate": "median"}, "norm_bound"),
        ({"norm_bound": 0.0, "estimate": "norm_clipping"}, "norm_bound"),
        ({"faulty_sites": -1, "estimate": "median"}, "faulty_sites"),
        ({"average": 1.0}, "average"),
        ({"momentum": 1.0}, "momentum"),
        ({"estimate": "mode"}, "estimate"),
    ],
)
def test_settings_of_another_estimate_or_out_of_range(
    settings: dict[str, object], key: str
) -> None:
    overrides = [f"aggregation.{name}={value}" for name, value in settings.items()]
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["data.source=demo", *overrides])
    assert f"aggregation.{key}" in str(caught.value)


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(compatibility).failed == 0
