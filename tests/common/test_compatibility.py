"""Every cell of the table of rules and protections."""

from __future__ import annotations

import pytest

from hushtune.common.compatibility import REFUSED, why_not
from hushtune.common.config_federation import AggregationConfig, MetricsConfig, SimulationConfig
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.lora_rules import RULES

SUMS = ("ffa", "fedsvd", "rolora", "fed-sb", "fedsgd", "fedsa", "fedit")
OTHERS = ("fedex", "flora", "flexlora", "hetlora", "krum", "median", "trimmed_mean", "bulyan")
CELLS = [
    (rule, trust, rule in SUMS or trust == "site")
    for rule in (*SUMS, *OTHERS)
    for trust in ("site", "server", "distributed")
]


@pytest.mark.parametrize(("rule", "trust", "allowed"), CELLS)
def test_a_rule_goes_with_a_protection_or_is_refused_with_its_reason(
    rule: str, trust: str, allowed: bool
) -> None:
    reason = why_not(rule, trust)
    assert (reason is None) is allowed
    if reason is not None:
        assert len(reason) > 60
    privacy = PrivacyConfig(
        trust=trust,  # type: ignore[arg-type]
        unit="client" if trust == "server" else "example",
    )
    # As a configuration will ask when the rule is offered.
    aggregation = AggregationConfig().model_copy(update={"rule": rule})

    def ask() -> None:
        check_together(privacy, aggregation, SimulationConfig(), MetricsConfig(), rounds=20)

    if allowed:
        ask()
    else:
        with pytest.raises(Exception, match="needs more"):
            ask()


def test_every_rule_that_is_offered_is_in_the_table_and_others_are_refused() -> None:
    assert {(rule, "distributed") for rule in RULES} <= set(REFUSED)
    assert len(REFUSED) == len(CELLS)
    assert why_not("unheard of", "site")
    assert why_not("unheard of", "off") is None
