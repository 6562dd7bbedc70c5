"""The settings of [privacy]: what is promised, about what, against whom, and what goes with it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hushtune.common.config_base import Count, CountOrNone, Delta, Positive, Section, refuse
from hushtune.common.config_federation import AggregationConfig, SimulationConfig

_TRUST_OF_UNIT = {
    "example": ("site", "distributed", "off"),
    "group": ("site", "distributed", "off"),
    "client": ("server", "distributed", "off"),
}


class PrivacyConfig(Section):
    """What is promised about each record, group or client, and against whom."""

    trust: Literal["site", "server", "distributed", "off"] = Field(
        default="site",
        description="site = DP-SGD at each site, which trusts only itself; server = the server "
        "sees each update and adds the noise; distributed = the server sees sums alone, which "
        "carry every site's share of the noise; off = NO PRIVACY",
    )
    epsilon: Positive = Field(default=3.0, description="the whole run's budget at each site")
    delta: Delta = Field(
        default=1e-5,
        description="must be below 1 / (rows of the smallest site); below 1 / (rows of all sites) "
        "with trust = distributed, below 1 / (clients) with unit = client",
    )
    clip_norm: Positive = Field(
        default=1.0,
        description="largest norm of one example's gradient, over all trained tensors; with "
        "unit = client, of one client's update",
    )
    unit: Literal["example", "group", "client"] = Field(
        default="example",
        description="what neighbouring data differ by: a row; all rows of a data.group; or all "
        "that a client holds (trust = server or distributed)",
    )
    records_per_group: Count = Field(
        default=8, description="rows that a group has at most in training; more are left out"
    )
    relation: Literal["add_or_remove_one", "replace_one"] = Field(
        default="add_or_remove_one", description="how neighbouring data differ"
    )
    colluding_sites: CountOrNone = Field(
        default=1,
        description="for trust = distributed: how many sites may side with the server; their "
        "shares of the noise are known to it, and not counted",
    )
    min_survivors: Count | None = Field(
        default=None,
        description="for trust = distributed: sites without whose answers a step is refused. Fewer "
        "survive more drop-outs and add more noise; left out, all sites",
        examples=[3],
    )
    insecure_seeded_noise: bool = Field(
        default=False, description="repeatable noise from the seed, for tests; voids the promise"
    )

    @field_validator("trust", mode="before")
    @classmethod
    def _known_trust(cls, value: object) -> object:
        if value in ("central", "secagg", "local"):
            refuse(
                f"privacy.trust has no {value!r}",
                key="",
                given=str(value),
                expected="'site', 'server', 'distributed' or 'off'",
                remedy='central DP is trust = "server", secure aggregation '
                'trust = "distributed", noise at each site trust = "site"',
            )
        return value

    @model_validator(mode="after")
    def _unit_of_the_trust(self) -> PrivacyConfig:
        if self.trust not in _TRUST_OF_UNIT[self.unit]:
            refuse(
                "this unit of privacy is not protected under this trust model",
                key="unit",
                given=f"unit = {self.unit!r}, trust = {self.trust!r}",
                expected={
                    "server": 'unit = "client": the server sees whole updates, and clips and '
                    "noises those",
                    "site": 'unit = "example" or "group"; a whole client has to hide in a sum, '
                    'with trust = "server" or "distributed"',
                }[self.trust],
            )
        return self


def check_together(
    privacy: PrivacyConfig, aggregation: AggregationConfig, simulation: SimulationConfig
) -> None:
    """Refuse what does not go with a trust model."""
    if privacy.trust != "distributed":
        return
    if simulation.sites_per_round:
        refuse(
            "secure aggregation is between all sites of a run: each adds its share of the noise",
            key="simulation.sites_per_round",
            given=simulation.sites_per_round,
            expected="0",
        )
    if privacy.unit == "client":
        return
    plain = AggregationConfig()
    if (aggregation.optimizer, aggregation.learning_rate) != (plain.optimizer, plain.learning_rate):
        refuse(
            "with trust = distributed the server takes the optimiser's steps itself, as [train] "
            "has them",
            key="aggregation.optimizer",
            given=f"{aggregation.optimizer}, learning_rate {aggregation.learning_rate:g}",
            expected="neither of the two",
            remedy="set train.optimizer and train.learning_rate",
        )
