"""The settings of a run: one frozen tree, checked as a whole, with a meaning for each key.

Everything here is public information: a run's configuration is written beside its results and
sent to every site. Values that depend on anybody's records never belong in it.

Reading and writing TOML is in :mod:`hushtune.common.config_io`; it turns what pydantic reports
into a :class:`~hushtune.common.errors.ConfigError` that names the key, the file and the remedy.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, model_validator

from hushtune.common.config_augment import AugmentConfig, check_augment
from hushtune.common.config_base import (
    REFUSED,
    Section,
    refuse,
)
from hushtune.common.config_choice import check_choice
from hushtune.common.config_columns import check_columns, whole_rounds
from hushtune.common.config_data import DataConfig
from hushtune.common.config_federation import (
    AggregationConfig,
    MetricsConfig,
    PersonalConfig,
    SimulationConfig,
)
from hushtune.common.config_kind import check_source, check_task, with_source, without_warmup
from hushtune.common.config_model import AdapterConfig, ModelConfig
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.config_rules import check_rule
from hushtune.common.config_speed import SpeedConfig
from hushtune.common.config_task import TaskConfig
from hushtune.common.config_train import DEFAULT_SAMPLING_PROBABILITY, TrainConfig

__all__ = [
    "DEFAULT_SAMPLING_PROBABILITY",
    "REFUSED",
    "AdapterConfig",
    "AggregationConfig",
    "AugmentConfig",
    "DataConfig",
    "MetricsConfig",
    "ModelConfig",
    "PersonalConfig",
    "PrivacyConfig",
    "RunConfig",
    "SimulationConfig",
    "SpeedConfig",
    "TaskConfig",
    "TrainConfig",
]


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
    speed: SpeedConfig = Field(default_factory=SpeedConfig)
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
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
            smoothing=self.train.label_smoothing,
            image_size=self.model.image_size,
        )
        check_augment(self.augment, self.task.of)
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
            unfreeze=self.train.unfreeze,
        )
        return self

    @model_validator(mode="after")
    def _chosen_in_public(self) -> RunConfig:
        check_choice(
            *(self.train, self.data, self.privacy, self.metrics, self.personal, self.aggregation)
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
        if self.metrics.release != "none" and self.data.shots is not None:
            refuse(
                "the noise of the sites' figures is scaled for the validation rows that go with "
                "their public sizes, which few-shot training says nothing of",
                key="metrics.release",
                given=f"{self.metrics.release!r}, data.shots = {self.data.shots}",
                expected='"none", or no data.shots',
                remedy="leave metrics.release or data.shots out",
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
