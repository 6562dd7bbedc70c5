"""The settings of a run: one frozen tree, checked as a whole, with a meaning for each key.

Everything here is public information: a run's configuration is written beside its results and
sent to every site. Values that depend on anybody's records never belong in it.

Reading and writing TOML is in :mod:`hushtune.common.config_io`; it turns what pydantic reports
into a :class:`~hushtune.common.errors.ConfigError` that names the key, the file and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import (
    MOST_STEPS,
    REFUSED,
    Count,
    CountOrNone,
    LearningRate,
    Probability,
    Section,
    refuse,
)
from hushtune.common.config_columns import check_columns, whole_rounds
from hushtune.common.config_data import DataConfig
from hushtune.common.config_federation import (
    AggregationConfig,
    MetricsConfig,
    PersonalConfig,
    SimulationConfig,
)
from hushtune.common.config_model import AdapterConfig, ModelConfig
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.config_rules import check_rule
from hushtune.common.config_task import (
    TaskConfig,
    check_source,
    check_task,
    with_source,
    without_warmup,
)

__all__ = [
    "DEFAULT_SAMPLING_PROBABILITY",
    "REFUSED",
    "AdapterConfig",
    "AggregationConfig",
    "DataConfig",
    "MetricsConfig",
    "ModelConfig",
    "PersonalConfig",
    "PrivacyConfig",
    "RunConfig",
    "SimulationConfig",
    "TaskConfig",
    "TrainConfig",
]

DEFAULT_SAMPLING_PROBABILITY = 0.13
"""The rate that a run takes when neither batch_size nor sampling_probability is given."""


class TrainConfig(Section):
    """Local training, the same at every site."""

    rounds: Count = Field(default=20, description="rounds of the whole run, warm-up included")
    warmup_rounds: CountOrNone = Field(
        default=18,
        description="the first rounds train the head alone, on cached frozen features; at most "
        "rounds; left out = nine tenths of rounds",
    )
    local_steps: Count = Field(default=3, description="optimiser steps a site takes in a round")
    batch_size: Count | None = Field(
        default=None, description="expected examples of a step at each site", examples=[512]
    )
    sampling_probability: Probability | None = Field(
        default=None,
        description="in place of batch_size: each example's chance to be in a step; with neither, "
        f"{DEFAULT_SAMPLING_PROBABILITY}",
        examples=[DEFAULT_SAMPLING_PROBABILITY],
    )
    learning_rate: LearningRate = Field(
        default=0.01, description="of adapter and head after the warm-up"
    )
    warmup_learning_rate: LearningRate = Field(
        default=0.015, description="of the head in the warm-up"
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="at the site")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="of the learning rate, over each phase's steps of the whole run",
    )
    weight_decay: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="decoupled, as in AdamW"
    )
    proximal: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0,
        description="mu of FedProx (1812.06127): draws local steps to the round's global adapter",
    )
    scaffold: bool = Field(
        default=False,
        description="control variates against client drift (1910.06378); without privacy only",
    )
    microbatch: Count = Field(
        default=32, description="rows computed at once; cannot change results"
    )
    cache_megabytes: CountOrNone = Field(
        default=2048, description="memory for cached outputs of the frozen layers; 0 = no cache"
    )

    @model_validator(mode="before")
    @classmethod
    def _warmup_follows_rounds(cls, data: Any) -> Any:
        # A user who only shortens the run should not have to know about the warm-up.
        if not isinstance(data, Mapping) or "warmup_rounds" in data:
            return data
        rounds: Any = data.get("rounds")
        if type(rounds) is not int:
            return data
        return {**data, "warmup_rounds": max(0, rounds) * 9 // 10}

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_rounds > self.rounds:
            refuse(
                "the warm-up is longer than the run",
                key="warmup_rounds",
                given=self.warmup_rounds,
                expected=f"0 to {self.rounds} (train.rounds)",
                remedy="set train.warmup_rounds as well, or leave it out",
            )
        if self.rounds * self.local_steps > MOST_STEPS:
            refuse(
                "the run has more steps than a site takes part in",
                key="",
                given=f"{self.rounds} rounds of {self.local_steps} steps",
                expected=f"train.rounds * train.local_steps of at most {MOST_STEPS}",
            )
        if self.batch_size is not None and self.sampling_probability is not None:
            refuse(
                "train.batch_size and train.sampling_probability say the same thing twice",
                key="sampling_probability",
                given=f"batch_size = {self.batch_size}, "
                f"sampling_probability = {self.sampling_probability}",
                expected="one of the two, or neither",
            )
        return self


class RunConfig(Section):
    """All settings of one run; equal settings and seed are the same run but for privacy noise."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0,
        description="of everything but privacy noise, which comes from the operating system",
    )
    task: TaskConfig = Field(default_factory=TaskConfig)
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)
    personal: PersonalConfig = Field(default_factory=PersonalConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    simulation: SimulationConfig = Field(default_factory=SimulationConfig)

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_without_a_head(cls, data: Any) -> Any:
        return whole_rounds(without_warmup(with_source(data)))

    @model_validator(mode="after")
    def _task_goes_with_the_rest(self) -> RunConfig:
        check_source(self.data, self.task)
        check_task(
            self.task,
            self.data,
            head=self.model.head,
            warmup_rounds=self.train.warmup_rounds,
            attack=self.simulation.attack,
        )
        return self

    @model_validator(mode="after")
    def _columns_go_with_the_rest(self) -> RunConfig:
        check_columns(
            self.task,
            self.data,
            self.model,
            self.adapter,
            self.aggregation,
            rounds=self.train.rounds,
            warmup_rounds=self.train.warmup_rounds,
        )
        return self

    @model_validator(mode="after")
    def _privacy_goes_with_the_rest(self) -> RunConfig:
        check_together(
            self.privacy,
            self.aggregation,
            self.simulation,
            self.metrics,
            rounds=self.train.rounds,
        )
        check_rule(
            self.aggregation,
            self.privacy,
            self.personal,
            ranks=self.adapter.ranks,
            local_optimizer=self.train.optimizer,
            proximal=self.train.proximal,
            scaffold=self.train.scaffold,
            adapter_rounds=self.train.rounds - self.train.warmup_rounds,
        )
        return self

    @model_validator(mode="after")
    def _group_known(self) -> RunConfig:
        group = self.data.group
        if (self.privacy.unit == "group") != (group is not None):
            refuse(
                "privacy for a patient or user needs the column that names them, and the other "
                "way round",
                key="privacy.unit",
                given=f"privacy.unit = {json.dumps(self.privacy.unit)}, "
                + ("no data.group" if group is None else f"data.group = {json.dumps(group)}"),
                expected='privacy.unit = "group" and data.group = "the column", or neither',
                remedy='name the column in data.group, or leave privacy.unit = "group" out'
                if group is None
                else 'set privacy.unit = "group", or leave data.group out',
            )
        return self

    @model_validator(mode="after")
    def _held_out_rows(self) -> RunConfig:
        if self.metrics.release != "none" and self.data.validation_fraction == 0:
            refuse(
                "the sites cannot tell how the model does: they hold no validation rows",
                key="metrics.release",
                given=f"{self.metrics.release!r}, data.validation_fraction = 0",
                expected="data.validation_fraction above 0",
            )
        return self

    @model_validator(mode="after")
    def _sites_known(self) -> RunConfig:
        # Here and not in DataConfig, because a preview reads a file without dealing it to sites.
        data = self.data
        natural = data.partition == "natural"
        if natural and data.site is None and (data.file is not None or data.dataset is not None):
            refuse(
                "nothing says which row belongs to which site",
                key="data.site",
                given="no data.site",
                expected="the name of the column that names each row's site",
                remedy='set data.site, or make sites with data.partition = "iid" and data.sites',
            )
        if not natural and data.sites is None:
            refuse(
                f"data.partition = {data.partition!r} needs the number of sites",
                key="data.sites",
                given="no data.sites",
                expected="a whole number, 1 or more",
            )
        if natural and data.sites is not None:
            refuse(
                "with data.partition = 'natural' the data say how many sites there are",
                key="data.sites",
                given=data.sites,
                expected="no data.sites, or another data.partition",
            )
        return self
