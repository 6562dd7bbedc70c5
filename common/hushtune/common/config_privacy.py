"""The settings of [privacy]: what is promised, about what, against whom, and what goes with it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hushtune.common.compatibility import refusal
from hushtune.common.config_base import (
    Count,
    CountOrNone,
    Delta,
    Positive,
    Probability,
    Section,
    refuse,
)
from hushtune.common.config_federation import (
    PLAIN,
    AggregationConfig,
    MetricsConfig,
    SimulationConfig,
)
from hushtune.common.privacy.plan import CLIP_NORMS

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
    clip_norm: Annotated[float, Field(ge=CLIP_NORMS[0], le=CLIP_NORMS[1])] = Field(
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
        "shares of the noise are known to it, and not counted, so that the others' are larger: a "
        "sum has sqrt(sites / (min_survivors - colluding_sites)) times the noise of the plan",
    )
    min_survivors: Count | None = Field(
        default=None,
        description="for trust = distributed: sites without whose answers a step is refused. With "
        "fewer more drop-outs are survived and more noise is added. Of n sites all n, or m with "
        "2 m > n + colluding_sites + 1: with one that colludes 4 of 5 sites, or 7 of 10. Left out, "
        "all sites",
        examples=[8],
    )
    client_sampling_probability: Probability = Field(
        default=1.0,
        description="for trust = server: each client's chance to be drawn for a round, by the "
        "server and in secret; 1 = every client in every round",
    )
    client_turns: Annotated[int, Field(ge=2, le=10**9)] | None = Field(
        default=None,
        description="for trust = server, where clients cannot be drawn at random: each takes part "
        "in one round of so many, in turn, and the rounds' noise is correlated (2405.13763)",
        examples=[5],
    )
    adaptive_clipping: bool = Field(
        default=False,
        description="for trust = server: the clip norm begins at clip_norm and follows a quantile "
        "of the clients' norms, which is paid for from the same budget (1905.03871)",
    )
    clipping_quantile: float = Field(
        default=0.5, gt=0, lt=1, description="share of the clients that is not to be clipped"
    )
    clipping_rate: Annotated[float, Field(gt=0, le=5)] = Field(
        default=0.2, description="how fast the clip norm follows, in its logarithm a round"
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
    def _for_a_server_alone(self) -> PrivacyConfig:
        if self.trust in ("server", "off"):
            return self
        for key, given, plain in (
            ("client_sampling_probability", self.client_sampling_probability, 1.0),
            ("client_turns", self.client_turns, None),
            ("adaptive_clipping", self.adaptive_clipping, False),
        ):
            if given != plain:
                refuse(
                    f"privacy.{key} is for clients whose updates a trusted server clips and noises",
                    key=key,
                    given=_toml(given),
                    expected='trust = "server" and unit = "client", or no such key',
                    remedy=f"leave privacy.{key} out",
                )
        return self

    @model_validator(mode="after")
    def _for_secure_sums_alone(self) -> PrivacyConfig:
        if self.trust in ("distributed", "off"):
            return self
        for key, given, plain in (
            ("colluding_sites", self.colluding_sites, 1),
            ("min_survivors", self.min_survivors, None),
        ):
            if given != plain:
                refuse(
                    f"privacy.{key} is for secure sums, which have a share of noise from each site",
                    key=key,
                    given=_toml(given),
                    expected='trust = "distributed", or no such key',
                    remedy=f"leave privacy.{key} out",
                )
        return self

    @model_validator(mode="after")
    def _for_adaptive_clipping_alone(self) -> PrivacyConfig:
        if self.adaptive_clipping or self.trust == "off":
            return self
        for key, given, plain in (
            ("clipping_quantile", self.clipping_quantile, 0.5),
            ("clipping_rate", self.clipping_rate, 0.2),
        ):
            if given != plain:
                refuse(
                    f"privacy.{key} is for a clip norm that moves, and this one stays",
                    key=key,
                    given=_toml(given),
                    expected="adaptive_clipping = true, or no such key",
                    remedy=f"leave privacy.{key} out, or set privacy.adaptive_clipping = true",
                )
        return self

    @model_validator(mode="after")
    def _turns_go_with_the_rest(self) -> PrivacyConfig:
        if self.client_turns is None:
            return self
        if self.client_sampling_probability < 1:
            refuse(
                "clients either take turns or are drawn at random",
                key="client_turns",
                given=f"client_turns = {self.client_turns}, client_sampling_probability = "
                f"{self.client_sampling_probability:g}",
                expected="one of the two",
                remedy="leave privacy.client_sampling_probability out, or client_turns",
            )
        if self.adaptive_clipping:
            refuse(
                "correlated noise takes back what earlier rounds added, which is at another scale "
                "once the clip norm has moved",
                key="adaptive_clipping",
                given=f"client_turns = {self.client_turns}, adaptive_clipping = true",
                expected="one of the two",
                remedy="leave privacy.adaptive_clipping out, or client_turns",
            )
        return self

    @model_validator(mode="after")
    def _unit_of_the_trust(self) -> PrivacyConfig:
        if self.trust not in _TRUST_OF_UNIT[self.unit]:
            refuse(
                "this unit of privacy is not protected under this trust model",
                key="unit",
                given=f"unit = {_toml(self.unit)}, trust = {_toml(self.trust)}",
                expected={
                    "server": 'unit = "client": the server sees whole updates, and clips and '
                    "noises those",
                    "site": 'unit = "example" or "group"; a whole client has to hide in a sum, '
                    'with trust = "server" or "distributed"',
                }[self.trust],
                remedy={
                    "server": 'set privacy.unit = "client", or privacy.trust = "site" or '
                    '"distributed"',
                    "site": 'set privacy.trust = "distributed" or "server", or privacy.unit = '
                    '"example"',
                }[self.trust],
            )
        return self


def _toml(value: object) -> str:
    """A value as it stands in a configuration: true and "site", not True and 'site'."""
    return json.dumps(value, ensure_ascii=False)


def check_together(
    privacy: PrivacyConfig,
    aggregation: AggregationConfig,
    simulation: SimulationConfig,
    metrics: MetricsConfig,
    *,
    rounds: int,
) -> None:
    """Refuse what does not go with a trust model, or with a rule of aggregation."""
    found = refusal(
        rule=aggregation.rule,
        trust=privacy.trust,
        estimate=aggregation.estimate,
        optimizer=aggregation.optimizer,
        learning_rate=aggregation.server_rate,
        average=aggregation.average,
    )
    if found is not None:
        refuse(
            f"this {found.key.replace('_', ' ')} does not go with {found.beside}: {found.reason}",
            key=f"aggregation.{found.key}",
            given=found.given,
            expected=found.expected,
            remedy=found.remedy,
        )
    if privacy.trust == "server":
        _check_server(privacy, simulation, metrics, rounds=rounds)
    if privacy.trust != "distributed":
        return
    if simulation.attack not in ("none", "label_flip"):
        refuse(
            "under secure aggregation a site sends masked sums, so that a simulated attacker has "
            "no update to change: what it can poison is its own training data",
            key="simulation.attack",
            given=simulation.attack,
            expected="'none' or 'label_flip'",
            remedy='attacks on updates need privacy.trust = "site", "server" or "off"',
        )
    if simulation.sites_per_round:
        refuse(
            "secure aggregation is between all sites of a run: each adds its share of the noise",
            key="simulation.sites_per_round",
            given=simulation.sites_per_round,
            expected="0",
            remedy="leave simulation.sites_per_round out",
        )
    if aggregation.encoding != "float32":
        refuse(
            "with trust = distributed sites send masked numbers of a ring, which have a form of "
            "their own and cannot be rounded",
            key="aggregation.encoding",
            given=aggregation.encoding,
            expected='"float32"',
            remedy="leave aggregation.encoding out",
        )
    if privacy.unit == "client":
        if metrics.release != "none":
            refuse(
                "figures of a client on its own rows are not covered by its share of the noise",
                key="metrics.release",
                given=_toml(metrics.release),
                expected='"none"',
                remedy="leave metrics.release out",
            )
        return
    if (aggregation.optimizer, aggregation.server_rate) != PLAIN:
        refuse(
            "with trust = distributed the server takes the optimiser's steps itself, as [train] "
            "has them",
            key="aggregation.optimizer",
            given=f"{aggregation.optimizer}, learning_rate {aggregation.server_rate:g}",
            expected="no aggregation.optimizer and no aggregation.learning_rate",
            remedy="leave both out, and set train.optimizer and train.learning_rate",
        )


def _check_server(
    privacy: PrivacyConfig,
    simulation: SimulationConfig,
    metrics: MetricsConfig,
    *,
    rounds: int,
) -> None:
    if simulation.sites_per_round:
        refuse(
            "who takes part in a round follows from the seed here, so that sampling would protect "
            "nobody",
            key="simulation.sites_per_round",
            given=simulation.sites_per_round,
            expected="0",
            remedy="set privacy.client_sampling_probability: the server then draws in secret",
        )
    if metrics.release != "none":
        refuse(
            "figures of a client on its own rows are not covered by the noise at the server",
            key="metrics.release",
            given=_toml(metrics.release),
            expected='"none"',
            remedy="leave metrics.release out",
        )
    if privacy.client_turns is not None and privacy.client_turns > rounds:
        refuse(
            "some clients would never have a turn",
            key="privacy.client_turns",
            given=privacy.client_turns,
            expected=f"at most {rounds} (train.rounds)",
            remedy="lower privacy.client_turns, or have more rounds",
        )
