"""An empirical lower bound on epsilon, beside the upper bound that the accountant claims."""

from __future__ import annotations

from hushtune.simulations.audit.report import Audit, audit
from hushtune.simulations.audit.wrap import Plant

__all__ = ["Audit", "Plant", "audit"]
