"""What ``hushtune site init`` asks where a flag does not say it, with a default if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune.client.deployment.setup import (
    DEFAULT_EPSILON,
    Answers,
    checked_terms,
    count_units,
    default_delta,
)
from hushtune.common.deployment import Invitation
from hushtune.common.errors import ConfigError, MissingColumnError
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.guess import Proposal, propose_columns
from hushtune.common.tasks.rows import nearest_column

Ask = Callable[[str, str | None], str]
"""``ask(question, default)``: the answer; "" only where the default is ""."""
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What was given on the command line; None for what was not."""

    name: str | None = None
    server: Path | None = None
    data: Path | None = None
    text: str | None = None
    label: str | None = None
    group: str | None = None
    model: Path | None = None
    max_epsilon: float | None = None
    max_delta: float | None = None
    max_rounds: int | None = None
    public_size: int | None = None
    trust: tuple[str, ...] = ()


def answers(flags: Flags, ask: Ask | None, tell: Tell) -> Answers:
    """All that a site's folder is made from.

    ``ask`` is None where nobody can be asked; then what has a default gets it, and what has none
    must have been given. ``tell`` hears what was found in the data file. Raises ConfigError,
    MissingFileError and other DataErrors.
    """
    name = flags.name or _needed("What is this site called?", "--name", "north", ask)
    invitation = Invitation.read(
        flags.server
        or Path(_needed("Where is the coordinator's invitation?", "--server", None, ask))
    )
    data = flags.data or Path(_needed("Which file has the rows?", "--data", None, ask))
    data = data.expanduser()
    found = propose_columns(data)
    tell(f"{data.name} has the columns {', '.join(found.columns)}")
    text = _column(found, "text", flags.text, found.text, data, ask)
    label = _column(found, "label", flags.label, found.label, data, ask)
    group = _group(found, flags.group, data, ask)
    units = count_units(data, text=text, label=label, group=group)
    what = "rows with text and label" if group is None else f"different values of {group}"
    tell(f"{units} {what}")
    model = flags.model
    if model is not None:
        resolve_model(str(model.expanduser().absolute()))
    terms: dict[str, Any] = {
        "max_epsilon": _number(
            "The most epsilon that may ever be spent on these rows?",
            "--max-epsilon",
            flags.max_epsilon,
            DEFAULT_EPSILON,
            ask,
        ),
        "max_delta": _number(
            f"At which delta? It must be below {1 / max(units, 1):.2g}, which is 1 / {units}",
            "--max-delta",
            flags.max_delta,
            default_delta(units),
            ask,
        ),
        "max_rounds": flags.max_rounds,
        "public_size": flags.public_size,
        "trust": list(flags.trust) or None,
    }
    made = Answers(
        name=name,
        invitation=invitation,
        data=data,
        text=text,
        label=label,
        group=group,
        model=model,
        terms=terms,
    )
    policy = checked_terms(made)
    if policy.max_delta * max(units, 1) >= 1 and policy.unit != "client":
        raise ConfigError(
            "this delta promises nothing to a site of this size",
            given=f"--max-delta {policy.max_delta:g} for {units} {what}",
            expected=f"below {1 / max(units, 1):.3g}",
            remedy=f"--max-delta {default_delta(units):g}",
        )
    return made


def _needed(question: str, flag: str, example: str | None, ask: Ask | None) -> str:
    answer = "" if ask is None else ask(question, None).strip()
    if not answer:
        raise ConfigError(
            f"{flag} is missing",
            expected=f"{flag} {example or 'FILE'}",
            remedy="give it, or run the command in a terminal, where it asks",
        )
    return answer


def _column(
    found: Proposal, role: str, given: str | None, guess: str | None, data: Path, ask: Ask | None
) -> str:
    """The column of a role: as given, as asked for, or, with nobody to ask, as it is called."""
    if given is None and ask is not None:
        given = ask(f"Which column has the {role}?", guess).strip()
    if given is None and guess is not None and guess.casefold() == role:
        given = guess
    if not given:
        raise ConfigError(
            f"which column has the {role} is not clear",
            given=f"the columns {', '.join(found.columns)}",
            expected=f"--{role} COLUMN",
            remedy=f"--{role} {guess or found.columns[0]}" if found.columns else None,
        )
    return _known(found, role, given, data)


def _group(found: Proposal, given: str | None, data: Path, ask: Ask | None) -> str | None:
    if given is None and ask is not None and found.group is not None:
        question = (
            "Which column names the patient or user that is to be protected as a whole? "
            "none = each row by itself"
        )
        given = ask(question, found.group).strip()
    return None if given in (None, "", "none") else _known(found, "group", given, data)


def _known(found: Proposal, role: str, name: str, data: Path) -> str:
    if name in found.columns:
        return name
    near = nearest_column(name, found.columns)
    raise MissingColumnError(
        f"there is no column {name!r}" + ("" if near is None else f"; did you mean {near!r}?"),
        file=data,
        column=name,
        given=", ".join(found.columns) or "no columns",
        remedy=f"--{role} {near or 'COLUMN'}",
    )


def _number(
    question: str, flag: str, given: float | None, default: float, ask: Ask | None
) -> float:
    if given is not None or ask is None:
        return default if given is None else given
    answer = ask(question, f"{default:g}").strip()
    try:
        return float(answer)
    except ValueError:
        raise ConfigError(
            "this is no number", given=answer[:80], expected=f"such as {flag} {default:g}"
        ) from None
