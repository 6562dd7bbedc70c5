"""The settings of [model] and [adapter]: the frozen base, and what is trained beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from hushtune.common.config_base import (
    Count,
    CountOrNone,
    Name,
    Names,
    Positive,
    Section,
    refuse,
)


class ModelConfig(Section):
    """The frozen base model and how its output becomes features for the head."""

    name: Name = Field(
        default="demo",
        description="an asset's name, a folder, or an id of the model hub; columns = no pretrained "
        "model but a small network on a table's columns, trained whole",
    )
    head: Literal["mean", "own"] = Field(
        default="mean",
        description="mean = a linear head on mean-pooled token states; own = the family's own head",
    )
    layer: Count | None = Field(
        default=None, description="keep only this many of the model's first blocks", examples=[3]
    )
    width: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=32, description="of name = columns: hidden units"
    )
    max_tokens: Annotated[int, Field(ge=4, le=10**6)] = Field(
        default=128, description="longer texts are cut to this many tokens"
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = Field(
        default=None,
        description="for images: side in pixels that the model reads, in place of its own; smaller "
        "is faster. Not for models whose positions are fixed, as ViT's",
        examples=[112],
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
