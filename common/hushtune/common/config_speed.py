"""The settings of [speed]: what makes training cheaper and cannot change a result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hushtune.common.config_base import Section


class SpeedConfig(Section):
    """What saves time, each with a way to do without it, to compare. None of it changes a result
    but for rounding, nor which batches are drawn. See train.cache_megabytes, model.precision too.
    """

    gradients: Literal["hooks", "fused"] = Field(
        default="hooks",
        description="how each example's gradient is taken: hooks = by Opacus; fused = by the "
        "layers' own backward pass, the same numbers a little sooner. Layers that fused does not "
        "know are left to Opacus",
    )
    pad: Literal["length", "max_tokens"] = Field(
        default="length",
        description="length = texts of one length are computed together, hardly padded; max_tokens "
        "= any are, all padded to model.max_tokens",
    )
    pack: bool = Field(
        default=True,
        description="let the texts of a step lie side by side in one row of places, where few are "
        "empty, in place of texts of one width by themselves: with fused gradients, for a head on "
        "the mean of BERT, RoBERTa, DistilBERT, Electra and their like",
    )
    together: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1,
        description="so many sites of a simulation in this process take their steps at once, their "
        "rows in one pass, each with its own site's adapter, by the layers' own backward pass; "
        "1 = one site after the other",
    )
    keep_freed_memory: bool = Field(
        default=True,
        description="let glibc keep what is freed for the next step, in place of asking the "
        "system for it anew",
    )
