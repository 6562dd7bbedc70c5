"""One line of ``hushtune site check``: what was looked at, what was found, what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from hushtune.common.errors import HushtuneError


class Verdict(StrEnum):
    """A site may join with warnings, and not where something failed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Check:
    """``given``: what was found. ``expected`` and ``do`` are "" where all is well.

    Nothing of it leaves the site.
    """

    what: str
    verdict: Verdict
    given: str
    expected: str = ""
    do: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def ok(what: str, given: str) -> Check:
    """All is well."""
    return Check(what=what, verdict=Verdict.OK, given=given)


def warning(what: str, given: str, *, expected: str = "", do: str = "") -> Check:
    """To be looked at before the site joins."""
    return Check(what=what, verdict=Verdict.WARNING, given=given, expected=expected, do=do)


def failed(what: str, given: str, *, expected: str = "", do: str = "") -> Check:
    """The site cannot take part so."""
    return Check(what=what, verdict=Verdict.FAILED, given=given, expected=expected, do=do)


def of_error(what: str, error: HushtuneError) -> Check:
    """A failure as an error tells it."""
    lines = str(error).splitlines()
    where = next((line.strip() for line in lines if line.startswith("  where: ")), "")
    given = "; ".join(part for part in (error.message, where, error.given or "") if part)
    return failed(
        what, f"{error.code} {given}", expected=error.expected or "", do=error.remedy or ""
    )


def of_os_error(what: str, error: OSError) -> Check:
    """A failure as the system tells it."""
    where = f"{error.filename}: " if error.filename else ""
    return failed(what, f"{where}{error.strerror or error}", do="check who may read it")


def cannot_tell(what: str, why: str) -> Check:
    """What could not be looked at, as something before it failed."""
    return warning(what, f"cannot tell: {why}", do="mend that, and check again")


def tried(what: str, look: Callable[[], Sequence[Check]]) -> list[Check]:
    """What a look finds; an error in place of it where one is raised."""
    try:
        return list(look())
    except HushtuneError as error:
        return [of_error(what, error)]
    except OSError as error:
        return [of_os_error(what, error)]
