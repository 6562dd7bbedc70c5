"""Inputs that are changed at random each time they are trained on.

What is drawn for a view follows from the step's draw, the content of the example and the view's
number, and from nothing else: neither from who is in its batch nor from who is in the table. So the
bound on what an example moves holds for every draw, and nothing rests on its being secret.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.common.config_augment import AugmentConfig
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.image_rows import ImageRows
from hushtune.common.tasks.units import Rows


class AugmentedRows(Protocol):
    """The inputs of all rows, as a training step changes them."""

    @property
    def views(self) -> int:
        """Changed copies of an example in a step."""
        ...

    def inputs(self, rows: Rows, draw: int) -> Mapping[str, Tensor]:
        """A view of each row; of one that comes again the next, each ``(b, ...)``."""
        ...


@dataclass(frozen=True)
class ImageViews:
    """Images mirrored, turned, zoomed into and noised."""

    images: ImageRows
    keys: Rows  # (n,), see ``keys_of``
    how: AugmentConfig

    @property
    def views(self) -> int:
        """See ``AugmentedRows``."""
        return self.how.views

    def inputs(self, rows: Rows, draw: int) -> dict[str, Tensor]:
        """``pixel_values (b, 3, h, w)``."""
        pixels = self.images.pixels(rows).float()
        changed = [
            image_view(image, self.how, random)
            for image, random in zip(pixels, randoms(rows, self.keys, draw), strict=True)
        ]
        return {"pixel_values": self.images.processor.scaled(torch.stack(changed))}


def image_view(pixels: Tensor, how: AugmentConfig, random: np.random.Generator) -> Tensor:
    """One changed copy of an image ``(3, h, w)`` of pixels 0..255, of the same shape.

    Mirror, turn and crop are one map of the plane, so that pixels are interpolated once. What is
    turned in from outside repeats the edge.
    """
    _, height, width = pixels.shape
    mirrored = -1.0 if how.flip and random.random() < 0.5 else 1.0
    angle = math.radians(random.uniform(-how.rotation, how.rotation))
    kept = 1.0 - random.uniform(0.0, how.crop)  # of each side
    right, down = random.uniform(kept - 1.0, 1.0 - kept, 2)  # where its middle is
    if (angle, kept) != (0.0, 1.0):
        # In units of half a side, so that turning needs the ratio of the sides.
        cosine, sine, ratio = math.cos(angle), math.sin(angle), height / width
        turned = torch.tensor(
            [
                [kept * cosine * mirrored, -kept * sine * ratio, right],
                [kept * sine / ratio * mirrored, kept * cosine, down],
            ],
            dtype=torch.float32,
        )
        grid = nn.functional.affine_grid(turned[None], [1, *pixels.shape], align_corners=False)
        pixels = nn.functional.grid_sample(
            pixels[None], grid, padding_mode="border", align_corners=False
        )[0]
    elif mirrored < 0:
        pixels = pixels.flip(-1)
    if how.noise:
        noise = torch.from_numpy(random.standard_normal((3, height, width), dtype=np.float32))
        pixels = (pixels + 255.0 * how.noise * noise).clamp(0.0, 255.0)
    return pixels


@dataclass(frozen=True)
class TextViews:
    """Texts with words left out and neighbours exchanged, none longer than it was."""

    tokens: TokenRows
    words: TokenRows  # in place of ids the number of the word in its text; -1 for special tokens
    keys: Rows  # (n,), see ``keys_of``
    how: AugmentConfig

    @property
    def views(self) -> int:
        """See ``AugmentedRows``."""
        return self.how.views

    def inputs(self, rows: Rows, draw: int) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, each ``(b, t)``, as wide as unchanged texts."""
        inputs = self.tokens.inputs(rows)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        generators = randoms(rows, self.keys, draw)
        for place, (row, random) in enumerate(zip(rows, generators, strict=True)):
            span = slice(int(self.tokens.offsets[row]), int(self.tokens.offsets[row + 1]))
            words = self.words.ids[span].numpy()
            kept = torch.from_numpy(text_view(words, self.how, random))
            ids[place], mask[place] = self.tokens.pad_id, 0
            ids[place, : len(kept)] = self.tokens.ids[span][kept]
            mask[place, : len(kept)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def text_view(words: Rows, how: AugmentConfig, random: np.random.Generator) -> Rows:
    """Places of the tokens of a changed text, in their order.

    ``words (t,)``: the word of each token, -1 for special ones, which stay where they are. At least
    one word stays. Words change places with the next one of the same text only.
    """
    edges = np.flatnonzero(np.diff(words)) + 1
    parts = np.split(np.arange(len(words)), edges)
    is_word = np.array([words[part[0]] >= 0 for part in parts])
    kept = ~is_word | (random.random(len(parts)) >= how.word_dropout)
    if is_word.any() and not kept[is_word].any():
        kept[random.choice(np.flatnonzero(is_word))] = True
    left = [(part, word) for part, word, stays in zip(parts, is_word, kept, strict=True) if stays]
    swapped = random.random(len(left)) < how.word_swap
    place = 0
    while place + 1 < len(left):
        if swapped[place] and left[place][1] and left[place + 1][1]:
            left[place], left[place + 1] = left[place + 1], left[place]
            place += 1  # a word changes places once
        place += 1
    return np.concatenate([part for part, _ in left])


def word_numbers(word_ids: Sequence[int | None], sequences: Sequence[int | None]) -> list[int]:
    """The number of each token's word, counted on over both texts of a pair; -1 for none."""
    found: list[int] = []
    last: tuple[int | None, int | None] = (None, None)
    number = -1
    for word, sequence in zip(word_ids, sequences, strict=True):
        if word is not None and (word, sequence) != last:
            number += 1
        last = (word, sequence)
        found.append(-1 if word is None else number)
    return found


def keys_of(contents: Iterable[str]) -> Rows:
    """A number for each example, ``(n,)``, that follows from what it is, not from its place."""
    digests = [hashlib.sha256(content.encode()).digest() for content in contents]
    return np.array([int.from_bytes(digest[:8]) >> 1 for digest in digests], dtype=np.int64)


def randoms(rows: Rows, keys: Rows, draw: int) -> Iterator[np.random.Generator]:
    """A generator for each row, of its own; ``keys``: of all rows."""
    seen: dict[int, int] = {}
    for row in rows.tolist():
        view = seen[row] = seen.get(row, -1) + 1
        yield np.random.default_rng([draw, int(keys[row]), view])
