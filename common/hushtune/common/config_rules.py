"""What does not go with a rule of aggregation, beside a trust model: refused with its reason."""

from __future__ import annotations

from collections.abc import Mapping

from hushtune.common.compatibility import MOVING_BASIS
from hushtune.common.config_base import refuse
from hushtune.common.config_federation import AggregationConfig, PersonalConfig
from hushtune.common.config_privacy import PrivacyConfig
from hushtune.common.lora_rules import RULES, LoraRule

SAME_COORDINATES = ("fedit", "ffa", "rolora", "fedsb")
"""Rules under which a number of an adapter means the same in each round and at each site."""

WITH_DITTO = ("fedit", "ffa", "fedsb", "fedsgd")
"""Of these, rules that train all that they train in each round, so that an own adapter is whole."""


def sends_gradients(aggregation: AggregationConfig, privacy: PrivacyConfig) -> bool:
    """Whether sites send gradients, and take no steps of their own."""
    by_step = privacy.trust == "distributed" and privacy.unit != "client"
    return by_step or RULES[aggregation.rule].gradient


def check_rule(
    aggregation: AggregationConfig,
    privacy: PrivacyConfig,
    personal: PersonalConfig,
    *,
    ranks: Mapping[str, int],
    local_optimizer: str,
    proximal: float,
    scaffold: bool,
    adapter_rounds: int,
    unfreeze: str = "all",
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
            remedy='leave adapter.ranks out, or set aggregation.rule = "flora"',
        )
    if (proximal or scaffold) and sends_gradients(aggregation, privacy):
        refuse(
            "sites send gradients here and take no steps of their own, so nothing drifts",
            key="train.scaffold" if scaffold else "train.proximal",
            given="true" if scaffold else proximal,
            expected="false" if scaffold else "0",
            remedy=f"leave train.{'scaffold' if scaffold else 'proximal'} out",
        )
    if proximal and scaffold:
        refuse(
            "control variates take the drift out already, and those of a site are made of its "
            "changes, of which a part would then be the pull to the global adapter",
            key="train.proximal",
            given=f"{proximal:g}, train.scaffold = true",
            expected="one of the two",
            remedy="leave train.proximal or train.scaffold out",
        )
    if rule.kept and privacy.trust == "distributed" and privacy.unit != "client":
        refuse(
            "each site's own B takes steps that no sum of gradients covers with noise, and later "
            "gradients depend on it",
            key="aggregation.rule",
            given=f"{rule.name}, trust = distributed, unit = {privacy.unit}",
            expected="another rule, or unit = client",
            remedy='set aggregation.rule = "ffa", or privacy.unit = "client"',
        )
    if privacy.client_turns is not None and rule.name in MOVING_BASIS:
        refuse(
            "correlated noise takes back what earlier rounds added, number by number, and this "
            "rule writes B in another basis in every round",
            key="privacy.client_turns",
            given=f"{privacy.client_turns}, aggregation.rule = {rule.name!r}",
            expected="no client_turns, or another rule",
            remedy='leave privacy.client_turns out, or set aggregation.rule = "ffa"',
        )
    if scaffold:
        _check_scaffold(rule, privacy, local_optimizer)
        _check_scaffold_mean(aggregation)
    if personal.method != "none":
        _check_personal(rule, privacy, personal)
        if personal.method == "ditto" and unfreeze == "gradual":
            refuse(
                "an own adapter is trained whole in each round, and drawn to a global one of which "
                "the lower blocks are not trained yet",
                key="personal.method",
                given='ditto, train.unfreeze = "gradual"',
                expected='train.unfreeze = "all", or another method',
                remedy="leave train.unfreeze out; finetune goes with it",
            )
        if personal.method == "ditto" and not adapter_rounds:
            refuse(
                "own adapters are trained beside rounds after the warm-up, and there are none",
                key="personal.method",
                given="ditto, train.warmup_rounds = train.rounds",
                expected="fewer rounds of warm-up",
                remedy='lower train.warmup_rounds, or set personal.method = "finetune"',
            )


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
            remedy='set train.optimizer = "sgd", or leave train.scaffold out',
        )
    if rule.name not in SAME_COORDINATES:
        refuse(
            "a control variate is kept from round to round, and under this rule the coordinates "
            "change their meaning",
            key="train.scaffold",
            given=f"true, aggregation.rule = {rule.name!r}",
            expected="one of " + ", ".join(SAME_COORDINATES),
            remedy='set aggregation.rule = "ffa", or leave train.scaffold out',
        )


def _check_scaffold_mean(aggregation: AggregationConfig) -> None:
    """The server's variate is the mean of the sites' only where it sees the very same changes."""
    if (aggregation.estimate, aggregation.encoding) != ("mean", "float32"):
        refuse(
            "each site's control variate follows from its change, and the server's from the mean "
            "of all changes as they were",
            key="train.scaffold",
            given=f"true, aggregation.estimate = {aggregation.estimate!r}, "
            f"encoding = {aggregation.encoding!r}",
            expected='estimate = "mean" and encoding = "float32"',
            remedy="leave aggregation.estimate and aggregation.encoding out, or train.scaffold",
        )


def _check_personal(rule: LoraRule, privacy: PrivacyConfig, personal: PersonalConfig) -> None:
    if privacy.trust in ("server", "distributed"):
        refuse(
            "a site's own adapter is trained on its records alone, which noise on a sum does not "
            "cover",
            key="personal.method",
            given=f"{personal.method}, privacy.trust = {privacy.trust!r}",
            expected='"none", or privacy.trust = "site" or "off"',
            remedy='leave personal.method out, or set privacy.trust = "site"',
        )
    if personal.method == "ditto" and rule.name not in WITH_DITTO:
        refuse(
            "an own adapter is drawn to the global one number by number, and under this rule "
            "the numbers change their meaning from round to round, or are the site's own already",
            key="personal.method",
            given=f"ditto, aggregation.rule = {rule.name!r}",
            expected="one of " + ", ".join(WITH_DITTO),
            remedy="finetune goes with every rule",
        )
    if rule.kept and personal.method != "none":
        refuse(
            "the rule gives each site a part of its own already",
            key="personal.method",
            given=f"{personal.method}, aggregation.rule = {rule.name!r}",
            expected='"none"',
            remedy="leave personal.method out, or set another aggregation.rule, such as ffa",
        )
