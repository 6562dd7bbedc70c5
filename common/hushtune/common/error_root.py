"""The root of all errors that hushtune raises on purpose; the others are in ``errors``."""

from __future__ import annotations

from typing import ClassVar


def _text(value: object) -> str | None:
    """A value as the reader of an error should see it: text as it stands, the rest by repr."""
    return value if value is None or isinstance(value, str) else repr(value)


class HushtuneError(Exception):
    """The root of all errors that hushtune raises on purpose.

    Args:
        message: what is wrong, in one sentence that names the thing.
        given: what was found; anything but text is shown by its ``repr``.
        expected: what would have been accepted.
        remedy: what the reader can do about it.

    >>> print(HushtuneError("rounds is wrong", given=0, expected="1 or more", remedy="set 12"))
    rounds is wrong
      given: 0
      expected: 1 or more
      do: set 12
    """

    code: ClassVar[str] = "HT000"

    def __init__(
        self,
        message: str,
        *,
        given: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        # Only the message goes to args: Exception's own pickling calls the class with args and then
        # restores __dict__, which carries the rest whatever keywords a subclass has.
        super().__init__(message)
        self.message = message
        self.given = _text(given)
        self.expected = _text(expected)
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.message]
        told = {"given": self.given, "expected": self.expected, "do": self.remedy}
        for name, value in told.items():
            if value is not None:
                lines.append(f"  {name}: {value}")
        return "\n".join(lines)
