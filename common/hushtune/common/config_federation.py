"""The settings of [aggregation], [metrics] and [simulation]: what the server does, and where."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import (
    Count,
    CountOrNone,
    FilePath,
    LearningRate,
    Positive,
    Section,
    refuse,
    refuse_idle,
)

PLAIN = ("sgd", 1.0)
"""The server's optimiser and its learning rate that are plain averaging."""
RATES: Mapping[str, float] = MappingProxyType(
    {"sgd": 1.0, "momentum": 0.1, "adam": 0.01, "yogi": 0.01, "adagrad": 0.03}
)
"""The server's learning rate by optimiser, unless a run says otherwise. Steps of momentum 0.9 add
up to ten times what a round changed. With the last three each number takes steps of about this
length, however long the sites' are; docs/aggregation.md has what others reach."""
SCALED_ATTACKS = ("sign_flip", "scale", "collude")
"""The attacks that ``simulation.attack_scale`` is of."""


class AggregationConfig(Section):
    """How the server makes one adapter of the sites' updates."""

    rule: Literal[
        "fedit",
        "ffa",
        "fedsvd",
        "rolora",
        "fedex",
        "flora",
        "flexlora",
        "hetlora",
        "fedsa",
        "fedsb",
        "fedsgd",
    ] = Field(
        default="ffa",
        description="what sites train and how it becomes one adapter: ffa = B and head, A frozen; "
        "fedit = A, B and head; docs/aggregation.md has all of them",
    )
    estimate: Literal[
        "mean",
        "median",
        "trimmed_mean",
        "krum",
        "multi_krum",
        "bulyan",
        "norm_clipping",
        "geometric_median",
    ] = Field(
        default="mean",
        description="of the sites' change; mean = weighted, and one site can move it at will; the "
        "others stay bounded while some sites send anything at all",
    )
    faulty_sites: CountOrNone | None = Field(
        default=None,
        description="for another estimate than mean: how many of a round's updates may be "
        "anything; left out, as many as the estimate allows",
        examples=[1],
    )
    norm_bound: Positive | None = Field(
        default=None,
        description="for estimate = norm_clipping: updates are scaled to this norm at most; left "
        "out, to the median of the round's norms",
        examples=[1.0],
    )
    optimizer: Literal["sgd", "momentum", "adam", "yogi", "adagrad"] = Field(
        default="sgd",
        description="at the server; momentum = FedAvgM (1909.06335), the last three adapt "
        "(2003.00295)",
    )
    learning_rate: LearningRate | None = Field(
        default=None,
        description="at the server; left out: "
        + ", ".join(f"{r:g} with {n}" for n, r in RATES.items())
        + ". 1 with sgd is plain averaging",
        examples=[1.0],
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="of optimizer = momentum: what stays of the last step"
    )
    average: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="decay of an average over the rounds' models, which is evaluated and saved, "
        "while training goes on from the last one; 0 = none",
    )
    weighting: Literal["size", "uniform"] = Field(
        default="size",
        description="weight of a site: its public size, or the same for all, as it always is where "
        "clients are what is protected (privacy.unit = client), and in every estimate but mean, "
        "norm_clipping and geometric_median",
    )
    max_update_norm: Positive = Field(
        default=1e3, description="updates with a larger norm are rejected and reported"
    )
    encoding: Literal["float32", "bfloat16", "int8"] = Field(
        default="float32",
        description="of updates on their way to the server: 4, 2 or 1 bytes a number. What is "
        "released is rounded, after its noise, so that it costs no privacy",
    )

    @property
    def server_rate(self) -> float:
        """The learning rate at the server: the one that was set, or what follows."""
        if self.learning_rate is not None:
            return self.learning_rate
        return RATES[self.optimizer]

    @model_validator(mode="after")
    def _settings_of_the_estimate(self) -> AggregationConfig:
        if self.faulty_sites and self.estimate == "mean":
            refuse(
                "the mean guards against no faulty site",
                key="faulty_sites",
                given=f"faulty_sites = {self.faulty_sites}, estimate = 'mean'",
                expected="another aggregation.estimate, such as median, or no faulty_sites",
                remedy='set aggregation.estimate = "median", or leave aggregation.faulty_sites out',
            )
        if self.norm_bound is not None and self.estimate != "norm_clipping":
            refuse(
                "a bound on the updates' norms is for norm clipping",
                key="norm_bound",
                given=f"norm_bound = {self.norm_bound:g}, estimate = {self.estimate!r}",
                expected='estimate = "norm_clipping", or no norm_bound',
                remedy="to reject larger updates, set aggregation.max_update_norm",
            )
        return self

    @model_validator(mode="after")
    def _momentum_for_momentum(self) -> AggregationConfig:
        if self.optimizer != "momentum":
            refuse_idle(
                self,
                "momentum",
                table="aggregation",
                needed="one optimiser of the server",
                expected='aggregation.optimizer = "momentum"',
            )
        return self


class PersonalConfig(Section):
    """What each site trains for itself alone, which never leaves it."""

    method: Literal["none", "finetune", "ditto"] = Field(
        default="none",
        description="finetune = steps of its own from the final model; ditto = in each round after "
        "the warm-up, steps of an adapter of its own that is drawn to the global one (2012.04221)",
    )
    steps: Count = Field(
        default=6, description="of finetune; ditto takes train.local_steps a round. Each is charged"
    )
    learning_rate: LearningRate | None = Field(
        default=None, description="left out, train.learning_rate", examples=[0.005]
    )
    proximal: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.1, description="of ditto: how strongly the own adapter is drawn to the global one"
    )

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> PersonalConfig:
        if self.method == "none":
            refuse_idle(
                self,
                *("steps", "learning_rate", "proximal"),
                table="personal",
                needed="adapters of the sites' own",
                expected='personal.method = "finetune" or "ditto"',
            )
        for key, method in (("steps", "finetune"), ("proximal", "ditto")):
            if self.method != method:
                refuse_idle(
                    self,
                    key,
                    table="personal",
                    needed=f"the method {method}",
                    expected=f'personal.method = "{method}"',
                )
        return self


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
    samples: Annotated[int, Field(ge=0, le=50)] = Field(
        default=3,
        description="of language models: test rows that are answered before and after training, "
        "for the researcher; 0 = none",
    )
    train_sample: CountOrNone = Field(
        default=256,
        description="training rows, drawn with the seed, on which loss and accuracy are shown "
        "beside those on validation rows; the researcher's, never sent; 0 = none",
    )
    forgetting: bool = Field(
        default=True,
        description="also show what training did to the model on public texts of another kind; a "
        "few seconds, and no privacy",
    )
    attack: Literal["none", "label_flip", "sign_flip", "scale", "collude", "nan"] = Field(
        default="none",
        description="what some of the simulated sites do: label_flip = train on the next label in "
        "place of each; sign_flip = send minus the update; scale = send it enlarged; collude = all "
        "push in one direction; nan = send no numbers",
    )
    attackers: float = Field(
        default=0.2,
        gt=0,
        lt=0.5,
        description="share of the sites that attack, rounded down, but at least one; which ones "
        "follows from the seed",
    )
    attack_scale: Positive = Field(
        default=10.0,
        description="what sign_flip, scale and collude multiply the update or its norm by; 1 is "
        "the plain sign flip of the literature",
    )

    @model_validator(mode="after")
    def _settings_of_the_attack(self) -> SimulationConfig:
        if self.attack == "none":
            refuse_idle(
                self,
                *("attackers", "attack_scale"),
                table="simulation",
                needed="an attack",
                expected='simulation.attack = "sign_flip" or another one',
            )
        if self.attack not in SCALED_ATTACKS:
            refuse_idle(
                self,
                "attack_scale",
                table="simulation",
                needed="attacks that multiply the update",
                expected="simulation.attack of " + ", ".join(SCALED_ATTACKS),
            )
        return self

    @model_validator(mode="after")
    def _one_place_for_ledgers(self) -> SimulationConfig:
        if self.policies is not None and self.ledgers is not None:
            refuse(
                "a site with a policy keeps its ledger beside it, and nowhere else",
                key="ledgers",
                given=f"ledgers = {self.ledgers}, policies = {self.policies}",
                expected="one of the two",
                remedy="leave simulation.ledgers or simulation.policies out",
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
                remedy="lower simulation.quorum, or raise simulation.sites_per_round",
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
