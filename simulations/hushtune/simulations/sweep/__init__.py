"""Many runs of one study, by the settings that they vary: ``sweep`` runs them, as far as they have
not run, and ``rows_frame`` reads what came of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hushtune.simulations.sweep.results import rows_frame
    from hushtune.simulations.sweep.running import sweep

__all__ = ["rows_frame", "sweep"]


def __getattr__(name: str) -> Any:
    # Lazily: a study that cannot be is refused before torch is loaded.
    if name == "rows_frame":
        from hushtune.simulations.sweep.results import rows_frame

        return rows_frame
    if name == "sweep":
        from hushtune.simulations.sweep.running import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
