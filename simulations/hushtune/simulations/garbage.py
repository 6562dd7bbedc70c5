"""How often Python looks for garbage: most new objects of a command are of libraries that load."""

from __future__ import annotations

import atexit
import gc

_SELDOM, _HARDLY_EVER = 200_000, 2_000_000
"""New objects, about, after which it looks; 700 by itself."""


def look_seldom() -> None:
    """To a command's end, where it does not look at all: with all that is loaded it took a second.
    In a run's rounds too looking seldom takes less time and no more memory."""
    gc.set_threshold(_SELDOM, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)  # a command may be called more than once in a process
    atexit.register(gc.freeze)


def look_hardly_ever() -> None:
    """Until ``loaded``."""
    gc.set_threshold(_HARDLY_EVER, *gc.get_threshold()[1:])


def loaded() -> None:
    """What there is now stays to the command's end, and is not looked at again."""
    gc.freeze()
    look_seldom()
