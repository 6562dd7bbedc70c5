"""The settings of [aggregation], [metrics] and [simulation]: what the server does, and where."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import (
    Count,
    CountOrNone,
    FilePath,
    LearningRate,
    Positive,
    Section,
    refuse,
)


class AggregationConfig(Section):
    """How the server makes one adapter of the sites' updates."""

    rule: Literal["ffa", "fedit"] = Field(
        default="ffa", description="ffa = B and head, A frozen (2403.12313); fedit = A, B and head"
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="at the server")
    learning_rate: LearningRate = Field(
        default=1.0, description="at the server; 1 with sgd = plain averaging"
    )
    weighting: Literal["size", "uniform"] = Field(
        default="size",
        description="weight of a site: its public size, or the same for all, as it always is where "
        "clients are what is protected (privacy.unit = client)",
    )
    max_update_norm: Positive = Field(
        default=1e3, description="updates with a larger norm are rejected and reported"
    )
    encoding: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32",
        description="of updates on their way to the server: 4, 2 or 1 bytes a number. What is "
        "released is rounded, after its noise, so that it costs no privacy",
    )


class SimulationConfig(Section):
    """How the federation is run on one machine."""

    engine: Literal["inprocess", "flower"] = Field(
        default="inprocess",
        description="inprocess = one process; flower = Flower's simulation on Ray",
    )
    sites_per_round: CountOrNone = Field(
        default=0, description="sites that are drawn for each round; 0 = all"
    )
    quorum: Count = Field(default=1, description="answers without which a round is fatal")
    policies: FilePath | None = Field(
        default=None,
        description="a folder with a policy of each site, SITE.toml; left out, simulated sites "
        "agree to what the run asks",
        examples=["policies"],
    )
    ledgers: FilePath | None = Field(
        default=None,
        description="a folder that keeps the sites' ledgers over several runs, which then share "
        "the budgets; left out, each run begins with its own. Not with policies: those have theirs "
        "beside them",
        examples=["ledgers"],
    )
    baselines: bool = Field(default=True, description="also train what the result is compared with")
    evaluate_every: Count = Field(default=1, description="evaluate after every so many rounds")

    @model_validator(mode="after")
    def _one_place_for_ledgers(self) -> SimulationConfig:
        if self.policies is not None and self.ledgers is not None:
            refuse(
                "a site with a policy keeps its ledger beside it, and nowhere else",
                key="ledgers",
                given=f"ledgers = {self.ledgers}, policies = {self.policies}",
                expected="one of the two",
            )
        return self

    @model_validator(mode="after")
    def _reachable_quorum(self) -> SimulationConfig:
        if 0 < self.sites_per_round < self.quorum:
            refuse(
                "the quorum can never be reached",
                key="quorum",
                given=self.quorum,
                expected=f"at most {self.sites_per_round} (simulation.sites_per_round)",
            )
        return self


class MetricsConfig(Section):
    """What the sites themselves tell of the global model, on their validation rows."""

    release: Literal["none", "noised", "public"] = Field(
        default="none",
        description="none = nothing leaves a site; noised = accuracy and loss with noise, charged "
        "to the budget; public = as they are, where a site's policy declares them public",
    )
    noise_multiplier: Positive = Field(
        default=20.0,
        description="of noised figures, in units of what one record or group can change",
    )
    every: Count = Field(default=5, description="rounds from one such report to the next")
