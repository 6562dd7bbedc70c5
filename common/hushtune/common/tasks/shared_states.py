"""Frozen states that the runs of one process share, where somebody asks for it, as a sweep does.

What the frozen base makes of its rows depends on neither privacy, rule, rank nor seed. Runs that
differ in these compute it once: tensors are kept by what they follow from, up to a size.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.activations import Activations, InputRows, TokenRows
from hushtune.common.tasks.units import Rows

HIDDEN, FEATURES = "hidden", "features"


class SharedStates:
    """Tensors by name, of which the least recently used go where there is no room; final.

    >>> import torch
    >>> kept = SharedStates(most_bytes=8)
    >>> kept.put("a", torch.zeros(1)); kept.put("b", torch.zeros(1)); kept.put("c", torch.zeros(1))
    >>> kept.get("a"), kept.get("c")
    (None, tensor([0.]))
    """

    def __init__(self, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, name: str) -> Tensor | None:
        """What was kept under a name, not to be changed; None where it is not there any more."""
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
        return found

    def put(self, name: str, states: Tensor) -> None:
        """Keep a tensor, if it has room at all."""
        if states.nbytes > self.most_bytes:
            return
        self._kept[name] = states
        self._kept.move_to_end(name)
        while sum(tensor.nbytes for tensor in self._kept.values()) > self.most_bytes:
            self._kept.popitem(last=False)


_shared: SharedStates | None = None


def share_states(megabytes: int) -> None:
    """From now on the runs of this process share up to so much; 0 ends it and forgets all."""
    global _shared  # noqa: PLW0603 - one a process, as the workspace is
    most = megabytes * 2**20
    if _shared is None or _shared.most_bytes != most:
        _shared = SharedStates(most_bytes=most) if most else None


Rest = tuple[Activations, Mapping[int, Tensor]]
"""States of some rows, and what a head on each of several layers reads."""


class Compute(Protocol):
    """Computes those of the states that are asked for."""

    def __call__(self, *, hidden: bool, features: bool, layers: bool) -> Rest: ...


def filled(
    where: tuple[AdaptedModel, InputRows, Rows],
    *,
    hidden: bool,
    features: bool,
    layers: Sequence[int],
    compute: Compute,
) -> Rest:
    """What is wanted of a model's rows: what other runs of this process have is taken.

    ``compute`` gives what is not there yet.
    """
    features = features and where[0].reads_features
    names = None if _shared is None else names_of(*where, hidden, features, layers)
    if _shared is None or names is None:
        return compute(hidden=hidden, features=features, layers=bool(layers))
    found = {what: _shared.get(name) for what, name in names.items()}
    lack = {what for what, states in found.items() if states is None}
    kept, of_layers = compute(
        hidden=HIDDEN in lack,
        features=bool(lack - {HIDDEN}),
        layers=not lack.isdisjoint(layers),
    )
    told: dict[str | int, Tensor | None] = {
        HIDDEN: kept.hidden,
        FEATURES: kept.features,
        **{number: states for number, states in of_layers.items()},
    }
    whole = {what: told[what] if what in lack else states for what, states in found.items()}
    for what in lack:
        if (states := whole[what]) is not None:
            _shared.put(names[what], states)
    of_layers = {n: states for n in layers if (states := whole[n]) is not None}
    return replace(kept, hidden=whole.get(HIDDEN), features=whole.get(FEATURES)), of_layers


def names_of(
    model: AdaptedModel,
    inputs: InputRows,
    rows: Rows,
    hidden: bool,
    features: bool,
    layers: Sequence[int],
) -> dict[str | int, str] | None:
    """The name of each wanted tensor, by ``HIDDEN``, ``FEATURES`` or the number of a layer.

    All that it follows from is in its name: the base's weights and where it is cut, how it rounds,
    pools and scales, and the tokens of the rows. None for inputs that are not tokens.
    """
    if not isinstance(inputs, TokenRows):
        return None
    tokens = hashlib.sha256()
    for part in (inputs.ids.numpy(), inputs.offsets, rows):
        tokens.update(f"{part.dtype}{part.shape}".encode())
        tokens.update(part.tobytes())
    base = (model.fingerprint, len(model.blocks) if model.has_blocks else 0, model.precision)
    read = (model.head_kind, model.feature_scale, model.separator)
    device = next(model.parameters()).device.type
    told = (inputs.pad_id, inputs.max_tokens, inputs.padding)
    common = repr((base, told, device, tokens.hexdigest()))
    wanted: dict[str | int, str] = {}
    if hidden:
        wanted[HIDDEN] = f"{common}-{HIDDEN}-{model.first_adapted}"
    if features:
        wanted[FEATURES] = f"{common}-{FEATURES}-{read!r}"
    return wanted | {n: f"{common}-layer-{n}-{read!r}" for n in layers}
