"""Gradual unfreezing (Howard and Ruder 1801.06146): adapters begin to learn from the top down.

The paper unfreezes the last layer first, since it holds the least general knowledge, and one more
layer after each epoch. Here a layer is a block of the model, and what is unfrozen is its adapter:

    enabled in turn t  =  the adapters of the top  1 + t // every  blocks

The embedding of tokens, where it is adapted, lies below all blocks and comes last. The schedule is
public: it follows from the number of the round, the settings and the names of the adapted modules.
"""

from __future__ import annotations

from collections.abc import Iterable

_BELOW_ALL_BLOCKS = -1


def enabled(targets: Iterable[str], *, turn: int, every: int) -> frozenset[str]:
    """The adapted modules that are trained in a turn, counted from 0.

    ``every``: turns from one block to the next.

    >>> targets = ("layer.0.value", "layer.1.value", "layer.2.value")
    >>> sorted(enabled(targets, turn=3, every=2))
    ['layer.1.value', 'layer.2.value']
    """
    place = {name: block_of(name) for name in targets}
    top_down = sorted(set(place.values()), reverse=True)
    open_now = set(top_down[: 1 + turn // every])
    return frozenset(name for name, block in place.items() if block in open_now)


def block_of(module: str) -> int:
    """The block that a module lies in, by the first number in its name; -1 outside all blocks.

    >>> block_of("encoder.layer.2.output.dense"), block_of("embeddings.word_embeddings")
    (2, -1)
    """
    numbers = (int(part) for part in module.split(".") if part.isdecimal())
    return next(numbers, _BELOW_ALL_BLOCKS)
