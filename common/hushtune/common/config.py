"""The settings of a run: one frozen tree, checked as a whole, with a meaning for each key.

Everything here is public information: a run's configuration is written beside its results and
sent to every site. Values that depend on anybody's records never belong in it.

Reading and writing TOML is in :mod:`hushtune.common.config_io`; it turns what pydantic reports
into a :class:`~hushtune.common.errors.ConfigError` that names the key, the file and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hushtune.common.config_base import (
    REFUSED,
    Count,
    CountOrNone,
    Name,
    Names,
    Positive,
    Section,
    refuse,
)
from hushtune.common.config_choice import check_choice
from hushtune.common.config_data import DataConfig
from hushtune.common.config_federation import (
    AggregationConfig,
    MetricsConfig,
    PersonalConfig,
    SimulationConfig,
)
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.config_rules import check_rule
from hushtune.common.config_train import DEFAULT_SAMPLING_PROBABILITY, TrainConfig

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
    "TrainConfig",
]


class ModelConfig(Section):
    """The frozen base model and how its output becomes features for the head."""

    name: Name = Field(
        default="demo", description="an asset's name, a folder, or an id of the model hub"
    )
    head: Literal["mean", "own"] = Field(
        default="mean",
        description="mean = a linear head on mean-pooled token states; own = the family's own head",
    )
    layer: Count | None = Field(
        default=None, description="keep only this many of the model's first blocks", examples=[3]
    )
    max_tokens: Annotated[int, Field(ge=4, le=10**6)] = Field(
        default=128, description="longer texts are cut to this many tokens"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of the frozen base's products; auto = bfloat16 on CPUs that are twice as fast "
        "with it; clipping, noise and adapters are float32 always",
    )
    feature_scale: Positive = Field(
        default=10.0, description="norm of the features that the mean head reads"
    )


class AdapterConfig(Section):
    """The LoRA adapter: W0 + scale * B A in each target module."""

    rank: Count = Field(default=4, description="rank of A and B")
    ranks: Mapping[Name, Count] = Field(
        default_factory=dict[str, int],
        description="sites with another rank: site = rank; for the rules flora, flexlora, hetlora",
    )
    alpha: Positive = Field(
        default=4.0, description="scale = alpha / rank (alpha / sqrt(rank) in rslora)"
    )
    targets: Names = Field(
        default=(),
        description="names of the modules to adapt, which may be the embedding of tokens; empty = "
        "the family's value and output projections",
    )
    layers: CountOrNone = Field(
        default=1, description="adapt only this many of the top blocks; 0 = all"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before A, in training")
    rslora: bool = Field(default=False, description="rank-stabilised scale")
    trainable_token_indices: Names = Field(
        default=(), description="not available: any is refused with the reason"
    )
    dora: bool = Field(default=False, description="not available: true is refused with the reason")

    @field_validator("targets")
    @classmethod
    def _targets_named_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value or len(set(value)) != len(value):
            refuse(
                "a target is empty or named twice",
                key="",
                given=list(value),
                expected="different names of modules",
            )
        return value

    @field_validator("trainable_token_indices", mode="before")
    @classmethod
    def _no_tokens(cls, value: object) -> object:
        if value:
            refuse(
                "training the embeddings of single tokens is not available: the gradient of one "
                "example cannot be taken there, and which rows move would tell which words occur",
                key="",
                given=str(value),
                expected="none",
                remedy="leave adapter.trainable_token_indices out",
            )
        return value

    @field_validator("dora")
    @classmethod
    def _no_dora(cls, value: bool) -> bool:
        if value:
            refuse(
                "DoRA is not available: its magnitude vector rescales the whole weight, so the "
                "gradient of one example cannot be taken by hooks, clipped and noised",
                key="",
                given="true",
                expected="false",
                remedy="leave adapter.dora out; adapter.rslora = true is available",
            )
        return value


class RunConfig(Section):
    """All settings of one run; equal settings and seed are the same run but for privacy noise."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0,
        description="of everything but privacy noise, which comes from the operating system",
    )
    data: DataConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    aggregation: AggregationConfig = Field(default_factory=AggregationConfig)
    personal: PersonalConfig = Field(default_factory=PersonalConfig)
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    simulation: SimulationConfig = Field(default_factory=SimulationConfig)

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
        if self.data.group is not None and self.data.source == "demo":
            refuse(
                "the built-in data name no patients or users",
                key="data.group",
                given=self.data.group,
                expected="no data.group with data.source",
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
