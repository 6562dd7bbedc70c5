"""Examples that are changed at random: what may change, what stays, and that draws keep apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.config_augment import AugmentConfig
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.augment import (
    TextViews,
    image_view,
    keys_of,
    randoms,
    text_view,
    word_numbers,
)
from hushtune.common.tasks.units import Units

IMAGE = torch.arange(3 * 12 * 16, dtype=torch.float32).reshape(3, 12, 16) % 251


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ----------------------------------------------------------------------------- images ----


def test_a_mirror_is_drawn_half_of_the_time_and_moves_whole_pixels() -> None:
    how = AugmentConfig(flip=True)
    found = [image_view(IMAGE, how, random(seed)) for seed in range(200)]
    mirrored = sum(torch.equal(view, IMAGE.flip(-1)) for view in found)
    assert mirrored + sum(torch.equal(view, IMAGE) for view in found) == 200
    assert 70 <= mirrored <= 130


class Fixed:
    """A generator whose uniform numbers are given."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)

    def uniform(self, _low: float, _high: float, size: int | None = None) -> Any:
        return self.values.pop(0) if size is None else [self.values.pop(0) for _ in range(size)]


def test_a_quarter_turn_and_a_crop_are_those_of_the_plane() -> None:
    square = IMAGE[:, :, :12]
    turned = image_view(square, AugmentConfig(rotation=180), Fixed(90, 0, 0, 0))  # pyright: ignore
    expected = {torch.rot90(square, k, (1, 2)) for k in (1, 3)}
    assert any(torch.allclose(turned, other, atol=1e-2) for other in expected)
    # Half of each side, around the middle of the upper left quarter.
    zoomed = image_view(IMAGE, AugmentConfig(crop=0.5), Fixed(0, 0.5, -0.5, -0.5))  # pyright: ignore
    quarter = torch.nn.functional.interpolate(
        IMAGE[None, :, :7, :9], scale_factor=2, mode="bilinear", align_corners=False
    )[0, :, :12, :16]
    torch.testing.assert_close(zoomed, quarter, atol=1e-2, rtol=0)


def test_a_turned_wide_image_keeps_its_shapes() -> None:
    """Turned by angles of its own sides, and not of a square: a disc stays one."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(64.0), indexing="ij")
    disc = (((y - 15.5) ** 2 + (x - 31.5) ** 2) < 100).float().expand(3, -1, -1) * 255
    for angle in (30.0, 90.0):
        found = image_view(disc, AugmentConfig(rotation=180), Fixed(angle, 0, 0, 0))  # pyright: ignore
        assert (found - disc).abs().mean() < 4


def test_noise_has_its_scale_and_stays_in_range() -> None:
    grey = torch.full((3, 64, 64), 128.0)
    noise = image_view(grey, AugmentConfig(noise=0.1), random()) - grey
    assert float(noise.std()) == pytest.approx(25.5, rel=0.03)
    assert abs(float(noise.mean())) < 1.0
    loud = image_view(IMAGE, AugmentConfig(noise=1.0), random())
    assert float(loud.min()) >= 0
    assert float(loud.max()) <= 255


# ------------------------------------------------------------------------------- words ----

WORDS = np.array([-1, 0, 0, 1, 2, 3, 3, 3, -1, 4, 5, -1])  # a pair of texts


def test_words_leave_whole_and_special_tokens_stay() -> None:
    how = AugmentConfig(word_dropout=0.5)
    kept = np.zeros(6)
    for seed in range(400):
        found = text_view(WORDS, how, random(seed))
        assert (np.diff(found) > 0).all()
        assert [place for place in found if WORDS[place] < 0] == [0, 8, 11]
        left = WORDS[found]
        for word in range(6):
            there = int((left == word).sum())
            assert there in (0, int((word == WORDS).sum()))
            kept[word] += there > 0
    assert ((kept > 150) & (kept < 260)).all()
    only = text_view(WORDS, AugmentConfig(word_dropout=0.999999), random())
    assert len({WORDS[place] for place in only} - {-1}) == 1  # a text is never empty


def test_neighbours_change_places_within_one_text() -> None:
    always = text_view(WORDS, AugmentConfig(word_swap=0.999999), random())
    assert WORDS[always].tolist() == [-1, 1, 0, 0, 3, 3, 3, 2, -1, 5, 4, -1]
    assert sorted(always.tolist()) == list(range(len(WORDS)))


def test_a_text_without_words_stays_as_it_is() -> None:
    how = AugmentConfig(word_dropout=0.9, word_swap=0.9)
    for words in (np.array([-1]), np.array([-1, -1])):
        assert text_view(words, how, random()).tolist() == list(range(len(words)))


def test_words_are_counted_on_over_a_pair() -> None:
    word_ids = [None, 0, 0, 1, None, 0, 1, None]
    sequences = [None, 0, 0, 0, None, 1, 1, None]
    assert word_numbers(word_ids, sequences) == [-1, 0, 0, 1, -1, 2, 3, -1]
    assert word_numbers([0, 0, 1], [0, 0, 0]) == [0, 0, 1]


def test_a_changed_text_is_as_wide_as_it_was() -> None:
    ids = torch.arange(30, dtype=torch.int32) + 5
    tokens = TokenRows(ids, np.array([0, 12, 30]), 0, 18)
    words = TokenRows(torch.tensor([*WORDS, *range(18)], dtype=torch.int32), tokens.offsets, -1, 18)
    how = AugmentConfig(word_dropout=0.5, views=2)
    views = TextViews(tokens, words, keys_of(["a", "b"]), how)
    rows = np.array([0, 0, 1], dtype=np.int64)
    found, plain = views.inputs(rows, draw=3), tokens.inputs(rows)
    assert found["input_ids"].shape == plain["input_ids"].shape
    for place, row in enumerate(rows):
        size = int(found["attention_mask"][place].sum())
        own = set(ids[tokens.offsets[row] : tokens.offsets[row + 1]].tolist())
        assert set(found["input_ids"][place, :size].tolist()) <= own
        assert not found["input_ids"][place, size:].any()
        assert not found["attention_mask"][place, size:].any()
    assert not torch.equal(found["input_ids"][0], found["input_ids"][1])  # two views
    assert torch.equal(tokens.ids, ids)


# ------------------------------------------------------------------------------- draws ----


KEYS = keys_of(f"text {row}" for row in range(10))


def test_what_is_drawn_for_a_row_depends_on_no_other_row() -> None:
    def numbers(rows: list[int], draw: int = 7) -> dict[tuple[int, int], float]:
        seen: dict[tuple[int, int], float] = {}
        for row, generator in zip(rows, randoms(np.array(rows), KEYS, draw), strict=True):
            view = sum(1 for other, _ in seen if other == row)
            seen[row, view] = float(generator.random())
        return seen

    alone, together = numbers([4, 4]), numbers([9, 9, 4, 4, 0, 0])
    assert alone == {key: together[key] for key in alone}
    assert len(set(together.values())) == 6
    assert not set(numbers([4, 4], draw=8).values()) & set(alone.values())


def test_what_is_drawn_for_a_row_does_not_depend_on_its_place() -> None:
    """Else the table without its first row would have other views of all rows."""
    (here,) = randoms(np.array([4]), KEYS, 7)
    (there,) = randoms(np.array([3]), KEYS[1:], 7)
    assert here.random() == there.random()
    assert len(set(KEYS.tolist())) == 10
    assert (KEYS >= 0).all()


def test_views_of_a_unit_are_its_rows_so_often() -> None:
    units = Units(np.array([5, 2, 9]), np.array([0, 2, 3])).repeated(2)
    assert units.rows.tolist() == [5, 5, 2, 2, 9, 9]
    assert units.starts.tolist() == [0, 4, 6]
    values = torch.tensor([1.0, 3.0, 5.0, 7.0, 10.0, 20.0])
    assert units.means(values).tolist() == [4.0, 15.0]
    assert Units.single(np.array([1, 2])).repeated(1).is_single
