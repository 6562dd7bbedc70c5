"""The settings of [augment]: random changes of an example each time it is trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hushtune.common.config_base import Section, refuse
from hushtune.common.kinds import Inputs, Kind, Targets

Share = Annotated[float, Field(ge=0, lt=1)]
_OF_IMAGES = ("flip", "rotation", "crop", "noise")
_OF_WORDS = ("word_dropout", "word_swap")


class AugmentConfig(Section):
    """Random changes of an example each time it is trained on; without any it stays as it is.

    Of an example in a step `views` are drawn, and the mean of their gradients is clipped as one
    (2204.13650): it costs time and no privacy. Evaluation never changes an example.
    """

    views: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1, description="changed copies of an example in a step; each costs a pass"
    )
    flip: bool = Field(default=False, description="images: left and right, half of the time")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        default=0.0, description="images: turned by up to this many degrees either way"
    )
    crop: Share = Field(
        default=0.0, description="images: up to this share of each side is cut off, the rest zoomed"
    )
    noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="images: standard deviation of noise on pixels, of their range 0..1",
    )
    word_dropout: Share = Field(default=0.0, description="texts: each word's chance to be left out")
    word_swap: Share = Field(
        default=0.0, description="texts: each word's chance to change places with the next"
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return bool(self.named(_OF_IMAGES) or self.named(_OF_WORDS))

    def named(self, keys: tuple[str, ...]) -> list[str]:
        """Which of some changes are made."""
        return [key for key in keys if getattr(self, key)]

    @model_validator(mode="after")
    def _views_differ(self) -> AugmentConfig:
        if self.views > 1 and not self.is_on:
            refuse(
                "all views of an example would be the same",
                key="views",
                given=self.views,
                expected="one of " + ", ".join((*_OF_IMAGES, *_OF_WORDS)) + ", or no views",
            )
        return self


def check_augment(augment: AugmentConfig, kind: Kind) -> None:
    """Refuse changes that a kind of supervision has no inputs for; keys are the whole tree's."""
    images = kind.inputs is Inputs.IMAGE
    words = kind.inputs in (Inputs.TEXT, Inputs.PAIR) and kind.targets not in (
        *(Targets.TAGS, Targets.ANSWER),
    )
    for keys, fits, of in (
        (_OF_IMAGES, images, "images"),
        (_OF_WORDS, words, "texts with a class, labels or a number"),
    ):
        found = augment.named(keys)
        if found and not fits:
            refuse(
                f"this changes {of}, and not the inputs of {kind.name}",
                key=f"augment.{found[0]}",
                given=str(getattr(augment, found[0])),
                expected=f"no augment.{found[0]}",
            )
