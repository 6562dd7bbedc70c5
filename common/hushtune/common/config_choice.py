"""When a run may stop early, or choose a round's model: refused where the choice would leak.

The promise is about training records, or whole groups, and a choice by noised figures, or by
validation records of which nothing is promised, takes nothing from those. Of a whole client the
validation records are protected as well: plain figures on them would be released without noise.
"""

from __future__ import annotations

from hushtune.common.config_base import refuse
from hushtune.common.config_data import DataConfig
from hushtune.common.config_federation import AggregationConfig, MetricsConfig, PersonalConfig
from hushtune.common.config_privacy import PrivacyConfig
from hushtune.common.config_train import TrainConfig
from hushtune.common.lora_rules import RULES


def check_choice(
    train: TrainConfig,
    data: DataConfig,
    privacy: PrivacyConfig,
    metrics: MetricsConfig,
    personal: PersonalConfig,
    aggregation: AggregationConfig,
) -> None:
    """Refuse early stopping, and the best round's model, where nothing public can decide them."""
    stops = train.patience is not None
    if not stops and train.keep == "last":
        return
    key, given = ("train.patience", str(train.patience)) if stops else ("train.keep", '"best"')
    if metrics.release != "noised":
        _check_look(data, privacy, metrics, key=key, given=given)
    if personal.method != "none":
        refuse(
            "what sites train for themselves goes with rounds that are fixed before, and with the "
            "last model",
            key=key,
            given=f"{given}, personal.method = {personal.method!r}",
            expected='personal.method = "none", or a fixed number of rounds and the last model',
            remedy="leave personal.method, or train.patience and train.keep, out",
        )
    if train.keep == "best" and RULES[aggregation.rule].kept:
        refuse(
            "each site's own part of the model is that of the last round, and goes with no other "
            "round's",
            key="train.keep",
            given=f'"best", aggregation.rule = {aggregation.rule!r}',
            expected='"last", or a rule that leaves nothing at the sites',
            remedy="leave train.keep out; train.patience goes with the rule",
        )


def _check_look(
    data: DataConfig, privacy: PrivacyConfig, metrics: MetricsConfig, *, key: str, given: str
) -> None:
    """Refuse choices by plain figures where looking at them is a release."""
    noised = 'metrics.release = "noised"'
    if data.source == "sites":
        refuse(
            "at real sites nobody may look at validation rows but by figures that the sites tell "
            "with noise, and are charged for: a stop that follows from plain ones would tell of "
            "those rows without noise",
            key=key,
            given=f"{given}, metrics.release = {metrics.release!r}",
            expected=f"{noised}, or a fixed number of rounds",
            remedy=f"set {noised}, or leave train.patience and train.keep out",
        )
    if privacy.unit == "client" and privacy.trust != "off":
        refuse(
            "all data of a client are protected, its validation rows too: a choice by plain "
            "figures on them would release something of them without noise",
            key=key,
            given=f'{given}, privacy.unit = "client"',
            expected="a fixed number of rounds and the last model",
            remedy="leave train.patience and train.keep out",
        )
    if data.validation_fraction == 0:
        refuse(
            "there are no validation rows to judge rounds by, and test rows choose nothing",
            key=key,
            given=f"{given}, data.validation_fraction = 0",
            expected="data.validation_fraction above 0",
            remedy="raise data.validation_fraction",
        )
