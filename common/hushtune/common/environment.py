"""Environment variables that keep libraries from calling home or installing anything.

Set by importing any of hushtune's packages: Flower reads its switch once, when it is imported.
What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

QUIET: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def be_quiet() -> None:
    """Set each variable that is not set."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
