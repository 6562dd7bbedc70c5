"""What a search may choose: a TOML file with a range or a list for each setting.

::

    [train]
    learning_rate = { low = 0.003, high = 0.1, log = true }
    local_steps = { low = 1, high = 4 }

    [adapter]
    rank = { choices = [2, 4, 8] }
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hushtune.common.config import RunConfig
from hushtune.common.config_io import replace
from hushtune.common.errors import ConfigError, MissingFileError, UnknownKeyError

if TYPE_CHECKING:
    import numpy as np

_SECTIONS = ("adapter", "aggregation", "augment", "model", "train")
_ALSO = ("privacy.clip_norm",)
_RANGE = frozenset({"low", "high", "log"})
_EXAMPLE = "learning_rate = { low = 0.003, high = 0.1, log = true } below [train]"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One setting: `choices`, or all numbers from `low` to `high`, whole ones if both are.

    `log`: by equal ratios in place of equal distances.
    """

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> tuple[Any, ...] | None:
        """All that it can be, where that is a list."""
        if self.choices:
            return self.choices
        return tuple(range(int(self.low), int(self.high) + 1)) if self.whole else None

    def draw(self, random: np.random.Generator) -> Any:
        """A value, each as likely as any other."""
        if self.choices:
            return self.choices[int(random.integers(len(self.choices)))]
        if self.whole and not self.log:
            return int(random.integers(int(self.low), int(self.high) + 1))
        if not self.log:
            return float(random.uniform(self.low, self.high))
        if self.whole:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            found = round(math.exp(random.uniform(low, high)))
            return min(max(found, int(self.low)), int(self.high))
        return math.exp(random.uniform(math.log(self.low), math.log(self.high)))


def read_space(path: Path, config: RunConfig) -> tuple[Parameter, ...]:
    """The settings to search, each of which the configuration takes at both ends.

    Raises MissingFileError, and ConfigError for what is no range or list, for a setting that does
    not exist, and for one that says what is promised or what is learned.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError("the file of the search does not exist", file=path) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML", given=str(error)[:200]) from None
    found = tuple(_parameters(tree, ""))
    if not found:
        raise ConfigError("there is nothing to search", given=str(path), expected=_EXAMPLE)
    for parameter in found:
        ends = parameter.choices or (parameter.low, parameter.high)
        for value in ends:
            _check(config, parameter, value, path)
    return found


def _check(config: RunConfig, parameter: Parameter, value: Any, path: Path) -> None:
    """Refuse a value that the setting can never have; what other settings forbid, runs find out."""
    try:
        replace(config, {parameter.key: value}, place=str(path))
    except UnknownKeyError:
        raise
    except ConfigError as error:
        if error.message.startswith(f"{parameter.key} has a value"):
            raise


def _parameters(tree: Mapping[str, Any], prefix: str) -> Iterator[Parameter]:
    for name, value in tree.items():
        key = prefix + name
        if not isinstance(value, Mapping):
            raise _bad(key, value)
        below = cast("Mapping[str, Any]", value)
        if "choices" in below or "low" in below or "high" in below:
            yield _parameter(key, below)
        else:
            yield from _parameters(below, f"{key}.")


def _parameter(key: str, told: Mapping[str, Any]) -> Parameter:
    if key.partition(".")[0] not in _SECTIONS and key not in _ALSO:
        raise ConfigError(
            f"{key} is not for a search to choose: it says what is learned or promised, or how a "
            "run is shown",
            given=key,
            expected=f"settings of {', '.join(_SECTIONS)}, or {', '.join(_ALSO)}",
        )
    if set(told) == {"choices"} and isinstance(told["choices"], list) and told["choices"]:
        return Parameter(key=key, choices=tuple(cast("list[Any]", told["choices"])))
    low, high, log = told.get("low"), told.get("high"), told.get("log", False)
    numbers = [
        value
        for value in (low, high)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]
    if not set(told) <= _RANGE or len(numbers) != 2 or not isinstance(log, bool):
        raise _bad(key, dict(told))
    if numbers[0] >= numbers[1] or (log and numbers[0] <= 0):
        raise _bad(key, dict(told))
    return Parameter(key=key, low=numbers[0], high=numbers[1], log=log)


def _bad(key: str, given: object) -> ConfigError:
    return ConfigError(
        f"{key} has no range that can be searched",
        given=json.dumps(given, default=str),
        expected="{ low = 1, high = 4 }, log = true if low is above 0, or { choices = [2, 4] }",
        remedy=f"for instance {_EXAMPLE}",
    )
