"""Studies on one machine: run a federation of simulated sites, compare it, show it.

``run(config, out)`` does what ``hushtune simulate`` does; ``presets`` has the ready configurations;
``report(folder)`` does what ``hushtune report`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hushtune.common.environment import be_quiet

if TYPE_CHECKING:
    from hushtune.common import presets
    from hushtune.simulations.reporting.build import report
    from hushtune.simulations.study import run

be_quiet()

__all__ = ["presets", "report", "run"]


def __getattr__(name: str) -> Any:
    # Lazily: the command line must answer --help before torch is loaded.
    if name == "presets":
        from hushtune.common import presets

        return presets
    if name == "run":
        from hushtune.simulations.study import run

        return run
    if name == "report":
        from hushtune.simulations.reporting.build import report

        return report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
