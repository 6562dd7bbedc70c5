"""Texts of a training step side by side in one row of places; see ``hushtune.common.packing``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hushtune.common.packing import NARROWEST, Packing
from hushtune.common.tasks.activations import USUAL_WIDTH, TokenRows
from hushtune.common.tasks.units import Piece, Rows, Units


def packed_pieces(inputs: TokenRows, units: Units, size: int) -> list[Piece]:
    """Units in pieces of ``size`` times 32 places, widest first, their texts side by side.

    All rows of a unit are padded to the widest of them. How many places a piece has follows from
    ``size`` and, of a unit that takes more and so is alone in its piece, from the unit: never from
    what else there is.
    """
    if not len(units):
        return []
    widths = np.maximum(inputs.widths[units.rows], NARROWEST)
    widest = np.maximum.reduceat(widths, units.starts[:-1])  # (units,)
    order = np.argsort(-widest, kind="stable")
    taken = widest[order] * units.sizes[order]
    pieces: list[Piece] = []
    start = 0
    while start < len(order):
        places = max(size * USUAL_WIDTH, int(taken[start]))
        end = start + int(np.searchsorted(np.cumsum(taken[start:]), places, side="right"))
        own = units.take(order[start:end])
        packing = Packing.of_widths(np.repeat(widest[order[start:end]], own.sizes), places)
        missing = np.repeat(own.rows[:1], packing.most_rows - len(own.rows))
        pieces.append(Piece(own, np.concatenate([own.rows, missing]), packing))
        start = end
    return pieces


def packed_inputs(
    texts: TokenRows, rows: Rows, packing: Packing, hidden: Callable[[Rows, int], Tensor] | None
) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``position_ids``, counted from 0, each ``(1, places)``,
    of the first of ``rows``, which ``packing`` places.

    ``hidden``: gives the states ``(b, width, d)`` of some rows, for ``hidden (1, places, d)``.
    """
    ids = torch.full((1, packing.places), texts.pad_id, dtype=torch.long)
    mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, start in zip(rows, packing.starts, strict=False):
        own = texts.ids[int(texts.offsets[row]) : int(texts.offsets[row + 1])]
        taken = slice(start, start + len(own))
        ids[0, taken], mask[0, taken] = own, 1
        positions[0, taken] = torch.arange(len(own))
    found = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if hidden is not None:
        (_, widest), *_others = packing.blocks
        states = hidden(rows[: packing.rows], widest).split([count for count, _ in packing.blocks])
        parts = zip(states, packing.blocks, strict=True)
        blocks = [part[:, :width] for part, (_, width) in parts]
        found["hidden"] = packing.joined(blocks).unsqueeze(0)
    return found
