"""How often Python looks for garbage: most new objects of a command are of libraries that load."""

from __future__ import annotations

import atexit
import gc

_SELDOM, _HARDLY_EVER = 20_000, 2_000_000
"""New objects, about, after which it looks; 700 by itself."""


def look_seldom() -> None:
    """To a command's end, where it does not look at all: with all that is loaded it took a second.
    In a run's rounds too looking seldom takes less time and no more memory."""
    gc.set_threshold(_SELDOM, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)  # a command may be called more than once in a process
    atexit.register(gc.freeze)


def look_hardly_ever() -> None:
    """Until ``loaded`` or ``over``."""
    gc.set_threshold(_HARDLY_EVER, *gc.get_threshold()[1:])


def loaded() -> bool:
    """After ``look_hardly_ever``: what there is now is not looked at again until ``over``, where
    nothing was so before; whether that is so."""
    leaves_out = gc.get_threshold()[0] == _HARDLY_EVER and gc.get_freeze_count() == 0
    if leaves_out:
        gc.freeze()
    look_seldom()
    return leaves_out


def over(left_out: bool) -> None:
    """``left_out``: what ``loaded`` did, which may be garbage by now."""
    if left_out:
        gc.unfreeze()
    look_seldom()
