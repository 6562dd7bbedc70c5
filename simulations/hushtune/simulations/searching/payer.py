"""Who pays for choosing among runs; light, so that a command can refuse before torch is loaded."""

from __future__ import annotations

from enum import StrEnum

from hushtune.common.errors import ConfigError


class Choice(StrEnum):
    """By what the best run is chosen, and who pays for it."""

    PUBLIC = "public"
    CHARGED = "charged"


def choice_of(text: str) -> Choice:
    """The choice of a name; ConfigError of another one."""
    if text not in list(Choice):
        raise ConfigError(
            "a choice among runs is either made on public data or charged",
            given=f"--choice {text}",
            expected=" or ".join(Choice),
        )
    return Choice(text)


def check_payer(choice: Choice, *, has_public: bool) -> None:
    """Public data are there where the choice is made on them, and nowhere else; ConfigError."""
    if choice is Choice.CHARGED and has_public:
        raise ConfigError(
            "a choice is either charged or made on public data",
            given="--choice charged --public",
            expected="one of the two",
        )
    if choice is Choice.PUBLIC and not has_public:
        raise ConfigError(
            "a choice that costs nothing needs data that are nobody's",
            given="--choice public",
            expected="--public FILE: a configuration whose [data] names public data",
            remedy="name some, or have the choice charged: --choice charged",
        )
