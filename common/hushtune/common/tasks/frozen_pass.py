"""One pass of the frozen base over rows, for the states of them that are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.activations import Activations, InputRows, in_pieces
from hushtune.common.tasks.shared_states import Rest
from hushtune.common.tasks.units import Rows, Units

MOST_LAYERS = 6
"""Of heads that are compared by the frozen layer they read, the last one included."""


def readable_layers(model: AdaptedModel) -> Sequence[int]:
    """After how many blocks, but for all, a head can be trained on frozen features: all such
    numbers, or of many six with the last block's, evenly.

    None where no head reads features, and of a model without blocks, as convolutional ones are.
    """
    if not (model.reads_features and model.has_blocks):
        return ()
    depth = len(model.blocks)
    most = min(depth, MOST_LAYERS)
    return sorted({round(n * depth / most) for n in range(1, most)})


@torch.no_grad()
def frozen_pass(
    model: AdaptedModel,
    inputs: InputRows,
    rows: Rows,
    *,
    size: int,
    hidden: bool,
    features: bool,
    layers: Sequence[int],
    without_effect: Callable[[], AdapterState],
    on_fill: Callable[[int, int], None] | None = None,
) -> Rest:
    """The frozen states of some rows, sorted, that are asked for. ``layers``: with them the
    features of those layers. ``without_effect``: an adapter that changes nothing.

    Always as many rows at once as one another, about ``size``, as wide as each of them is: a row's
    states are the same whichever other rows are computed.
    """
    width, pooled_width = model.hidden_size, model.feature_size
    starts = np.concatenate([[0], np.cumsum(inputs.lengths[rows])]).astype(np.int64)
    found = Activations(
        rows,
        starts,
        torch.full((int(starts[-1]), width), torch.nan) if hidden else None,
        torch.full((len(rows), pooled_width), torch.nan) if features else None,
    )
    if not hidden and not features:
        return found, {}
    told = {n: torch.full((len(rows), pooled_width), torch.nan) for n in layers}
    aside = lora.extract(model) if features else None
    if aside is not None:  # features are those of the base alone
        lora.install(model, without_effect())
    device, done = next(model.parameters()).device, 0
    for piece in in_pieces(inputs, Units.single(rows), size):
        given = {key: value.to(device) for key, value in inputs.inputs(piece.rows).items()}
        with model.layers_told(given, layers) as of_layers:
            states, pooled = model.frozen_activations(given, pooled=features)
        places = np.searchsorted(rows, piece.units.rows)
        if found.hidden is not None:
            if states is None or states.shape[1] != inputs.widths[piece.rows].max():
                raise UnsupportedModelError(
                    "the base has other positions than its inputs",
                    given="none" if states is None else states.shape[1],
                    expected=int(inputs.widths[piece.rows].max()),
                    remedy="take another model",
                )
            for row, at in enumerate(places):
                start, end = starts[at], starts[at + 1]
                found.hidden[start:end] = states[row, : end - start]
        if found.features is not None and pooled is not None:
            found.features[torch.from_numpy(places)] = pooled[: len(places)].cpu()
        for number, states_of in of_layers.items():
            told[number][torch.from_numpy(places)] = states_of[: len(places)].cpu()
        done += len(places)
        if on_fill is not None:
            on_fill(done, len(rows))
    if aside is not None:
        lora.install(model, aside)
    return found, told
