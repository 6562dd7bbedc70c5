"""Many runs of one study, by the settings that they vary: ``sweep`` runs them, as far as they have
not run, and ``rows_frame`` reads what came of them."""

from __future__ import annotations

from hushtune.simulations.sweep.results import rows_frame
from hushtune.simulations.sweep.running import sweep

__all__ = ["rows_frame", "sweep"]
