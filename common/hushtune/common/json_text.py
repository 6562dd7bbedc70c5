"""JSON that any reader takes: it has no infinity and no NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast


def json_text(value: object, *, indent: int | None = None) -> str:
    """Sorted JSON in which a number that is not finite is null.

    >>> json_text({"loss": float("nan"), "epsilon": [float("inf"), 3.0]})
    '{"epsilon": [null, 3.0], "loss": null}'
    """
    return json.dumps(_finite(value), indent=indent, sort_keys=True, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(below) for key, below in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in cast("list[Any]", value)]
    return value
