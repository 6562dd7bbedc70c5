"""The settings of [train]: local training, the same at every site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import (
    MOST_STEPS,
    Count,
    CountOrNone,
    LearningRate,
    Probability,
    Section,
    refuse,
    refuse_balanced,
    refuse_idle,
)

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
    unfreeze: Literal["all", "gradual"] = Field(
        default="all",
        description="after the warm-up: all = every adapter is trained in each round; gradual = "
        "those of the top block first, and one block more from round to round (1801.06146). "
        "What is not trained is neither sent, clipped nor noised",
    )
    unfreeze_every: Count = Field(
        default=1,
        description="of unfreeze = gradual: rounds from one block to the next (of a rule of turns, "
        "such as rolora, rounds of each turn)",
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
    patience: Count | None = Field(
        default=None,
        description="early stopping: the run ends when so many rounds have passed without an "
        "improvement on validation rows: of the figures that sites tell with noise, or, in a "
        "simulation, of the researcher's. Rounds of the head stop no run in which adapters follow",
        examples=[5],
    )
    watch: Literal["loss", "metric"] = Field(
        default="loss", description="what has to improve: the loss, or the main metric (accuracy)"
    )
    min_improvement: Annotated[float, Field(ge=0, le=1000)] = Field(
        default=0.0, description="by how much, to count as an improvement"
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="the model of the last round, or of the best one by the same figures",
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
    rate_warmup_steps: CountOrNone = Field(
        default=0,
        description="the learning rate rises evenly to its full height over so many of the first "
        "steps of each phase of the run (the head alone, then the adapter); the schedule spans "
        "the steps after them. Not warmup_rounds, which says how long the head is trained alone",
    )
    weight_decay: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="decoupled, as in AdamW"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0,
        description="of classification: the part of each example's label that is spread evenly "
        "over all labels in its loss (1512.00567); reported losses are without it",
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
        default=32,
        description="most rows computed at once, of smaller steps fewer; cannot change results; "
        "left out = 4 for language models",
    )
    cache_megabytes: CountOrNone = Field(
        default=2048, description="memory for cached outputs of the frozen layers; 0 = no cache"
    )
    pixel_megabytes: CountOrNone = Field(
        default=1024,
        description="memory for decoded images, each of 150 KB at 224 by 224 pixels; those beyond "
        "it are decoded at each use",
    )

    @model_validator(mode="before")
    @classmethod
    def _warmup_follows_rounds(cls, data: Any) -> Any:
        refuse_balanced(data)
        # A user who only shortens the run should not have to know about the warm-up.
        if not isinstance(data, Mapping) or "warmup_rounds" in data:
            return data
        rounds: Any = data.get("rounds")
        if type(rounds) is not int:
            return data
        return {**data, "warmup_rounds": max(0, rounds) * 9 // 10}

    @model_validator(mode="after")
    def _settings_of_stopping(self) -> TrainConfig:
        if self.patience is None and self.keep == "last":
            refuse_idle(
                self,
                *("watch", "min_improvement"),
                table="train",
                needed="early stopping, or the best round's model",
                expected='train.patience, or train.keep = "best"',
            )
        return self

    @model_validator(mode="after")
    def _settings_of_unfreezing(self) -> TrainConfig:
        if self.unfreeze != "gradual":
            refuse_idle(
                self,
                "unfreeze_every",
                table="train",
                needed="gradual unfreezing",
                expected='train.unfreeze = "gradual"',
            )
        elif self.warmup_rounds == self.rounds:
            refuse(
                "adapters are unfrozen after the warm-up, and there are no rounds after it",
                key="unfreeze",
                given=f"gradual, train.warmup_rounds = train.rounds = {self.rounds}",
                expected="fewer rounds of warm-up",
                remedy="lower train.warmup_rounds, or leave train.unfreeze out",
            )
        return self

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
        shortest = min(
            steps
            for rounds in (self.warmup_rounds, self.rounds - self.warmup_rounds)
            if (steps := rounds * self.local_steps)
        )
        if self.rate_warmup_steps > shortest:
            refuse(
                "the learning rate would never reach its full height",
                key="rate_warmup_steps",
                given=self.rate_warmup_steps,
                expected=f"at most {shortest}, the steps of the shorter phase (train.warmup_rounds "
                f"= {self.warmup_rounds} of {self.rounds} rounds, {self.local_steps} steps each)",
                remedy="lower train.rate_warmup_steps, or have longer phases",
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
