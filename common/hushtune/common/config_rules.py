"""What does not go with a rule of aggregation, beside a trust model: refused with its reason."""

from __future__ import annotations

from collections.abc import Mapping

from hushtune.common.config_base import refuse
from hushtune.common.config_federation import AggregationConfig, PersonalConfig
from hushtune.common.config_privacy import PrivacyConfig
from hushtune.common.lora_rules import RULES, LoraRule

SAME_COORDINATES = ("fedit", "ffa", "rolora", "fedsb")
"""Rules under which a number of an adapter means the same in each round and at each site."""


def check_rule(
    aggregation: AggregationConfig,
    privacy: PrivacyConfig,
    personal: PersonalConfig,
    *,
    ranks: Mapping[str, int],
    local_optimizer: str,
    proximal: float,
    scaffold: bool,
) -> None:
    """Refuse what a rule cannot do."""
    rule = RULES[aggregation.rule]
    if ranks and not rule.any_ranks:
        refuse(
            "the rule averages factors of one shape, so all sites need the same rank",
            key="adapter.ranks",
            given=f"ranks of {', '.join(sorted(ranks))}, with {rule.name}",
            expected="no ranks, or a rule for any ranks: "
            + ", ".join(other.name for other in RULES.values() if other.any_ranks),
        )
    steps_at_server = rule.gradient or (privacy.trust == "distributed" and privacy.unit != "client")
    if (proximal or scaffold) and steps_at_server:
        refuse(
            "sites send gradients here and take no steps of their own, so nothing drifts",
            key="train.scaffold" if scaffold else "train.proximal",
            given="true" if scaffold else proximal,
            expected="none of the two",
        )
    if rule.kept and privacy.trust == "distributed" and privacy.unit != "client":
        refuse(
            "each site's own B takes steps that no sum of gradients covers with noise, and later "
            "gradients depend on it",
            key="aggregation.rule",
            given=f"{rule.name}, trust = distributed, unit = {privacy.unit}",
            expected="another rule, or unit = client",
        )
    if scaffold:
        _check_scaffold(rule, privacy, local_optimizer)
    if personal.method != "none":
        _check_personal(rule, privacy, personal)


def _check_scaffold(rule: LoraRule, privacy: PrivacyConfig, local_optimizer: str) -> None:
    if privacy.trust != "off":
        refuse(
            "a control variate is made of all of a site's earlier changes, and a step along it has "
            "no bound that the noise is scaled for",
            key="train.scaffold",
            given=f"true, privacy.trust = {privacy.trust!r}",
            expected='false, or privacy.trust = "off"',
            remedy="train.proximal is against client drift too, and costs no privacy",
        )
    if local_optimizer != "sgd":
        refuse(
            "control variates correct gradients, which an adaptive optimiser rescales",
            key="train.scaffold",
            given=f"true, train.optimizer = {local_optimizer!r}",
            expected='train.optimizer = "sgd", with a learning rate for it',
        )
    if rule.name not in SAME_COORDINATES:
        refuse(
            "a control variate is kept from round to round, and under this rule the coordinates "
            "change their meaning",
            key="train.scaffold",
            given=f"true, aggregation.rule = {rule.name!r}",
            expected="one of " + ", ".join(SAME_COORDINATES),
        )


def _check_personal(rule: LoraRule, privacy: PrivacyConfig, personal: PersonalConfig) -> None:
    if privacy.trust in ("server", "distributed"):
        refuse(
            "a site's own adapter is trained on its records alone, which noise on a sum does not "
            "cover",
            key="personal.method",
            given=f"{personal.method}, privacy.trust = {privacy.trust!r}",
            expected='"none", or privacy.trust = "site" or "off"',
        )
    if personal.method == "ditto" and rule.name not in (*SAME_COORDINATES, "fedsgd"):
        refuse(
            "an own adapter is drawn to the global one number by number, and under this rule "
            "the numbers change their meaning from round to round, or are the site's own already",
            key="personal.method",
            given=f"ditto, aggregation.rule = {rule.name!r}",
            expected="one of " + ", ".join((*SAME_COORDINATES, "fedsgd")),
            remedy="finetune goes with every rule",
        )
    if rule.kept and personal.method != "none":
        refuse(
            "the rule gives each site a part of its own already",
            key="personal.method",
            given=f"{personal.method}, aggregation.rule = {rule.name!r}",
            expected='"none"',
        )
