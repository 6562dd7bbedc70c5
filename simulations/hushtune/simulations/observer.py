"""Who hears how a run is going."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Observer(Protocol):
    """Hears of progress; must not change anything."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """Something long before the first round."""
        ...

    def started(self, rounds: int, done: int) -> None:
        """The rounds begin, ``done`` of them behind us."""
        ...

    def forgetting(self, charges: Mapping[str, int]) -> None:
        """A run is replaced along with its own ledgers, which held so many charges by site."""
        ...

    def refusing(self, figures: Mapping[str, Any]) -> None:
        """What sites are going to refuse: ``sites``, ``refusals`` and ``quorum`` of a dry run."""
        ...

    def warning(self, message: str, remedy: str) -> None:
        """Something is sound and probably not what was meant; said before anything is spent."""
        ...

    def nothing_left(self) -> None:
        """The run that should be resumed is finished, and left as it is."""
        ...

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A round is over; ``row`` is its line in metrics.jsonl."""
        ...

    def comparing(self, name: str, done: int, total: int) -> None:
        """A baseline begins; all are over when ``done == total``."""
        ...


class Silent:
    """An observer that says nothing."""

    def preparing(self, what: str, done: int, total: int) -> None:
        """See Observer."""

    def started(self, rounds: int, done: int) -> None:
        """See Observer."""

    def forgetting(self, charges: Mapping[str, int]) -> None:
        """See Observer."""

    def refusing(self, figures: Mapping[str, Any]) -> None:
        """See Observer."""

    def warning(self, message: str, remedy: str) -> None:
        """See Observer."""

    def nothing_left(self) -> None:
        """See Observer."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""

    def comparing(self, name: str, done: int, total: int) -> None:
        """See Observer."""
