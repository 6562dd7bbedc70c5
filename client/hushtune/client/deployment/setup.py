"""``hushtune site init``: a site's folder, from a few answers; there whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import ValidationError

from hushtune.client.deployment.site_file import SITE_FILE, SiteTable
from hushtune.client.terms import Terms, terms_template
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.config_template import commented
from hushtune.common.deployment import Invitation, SiteCard
from hushtune.common.errors import OutputExistsError
from hushtune.common.files import write_bytes, write_errors, write_text
from hushtune.common.privacy.delta import LEAST_DELTA
from hushtune.common.signing import make_signing_key, public_text
from hushtune.common.tasks.readers import read_file
from hushtune.common.tasks.rows import Columns

DEFAULT_EPSILON = 3.0
_LISTING = "hushtune site init --help"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a site's folder is made from.

    ``data`` and ``model`` are the site's own; ``terms`` are keys of ``policy.toml`` whose value is
    not the default, ``max_epsilon`` and ``max_delta`` among them.
    """

    name: str
    invitation: Invitation
    data: Path
    text: str
    label: str
    group: str | None = None
    model: Path | None = None
    terms: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Made:
    """A folder that was made, and the two fingerprints to compare with the coordinator's."""

    folder: Path
    card: Path
    card_fingerprint: str
    invitation_fingerprint: str
    terms: Terms

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "folder": str(self.folder),
            "card": str(self.card),
            "card_fingerprint": self.card_fingerprint,
            "invitation_fingerprint": self.invitation_fingerprint,
            "policy": self.terms.model_dump(mode="json"),
        }


def count_units(data: Path, *, text: str, label: str, group: str | None) -> int:
    """How many rows have text and label, or how many groups they are of; raises DataErrors."""
    rows = read_file(data, Columns(text, label, group=group))
    whole = (row for row in rows if row.text is not None and row.label is not None)
    if group is None:
        return sum(1 for _ in whole)
    return len({row.group for row in whole if row.group is not None})


def default_delta(units: int) -> float:
    """A power of ten at most a tenth of ``1 / units``.

    A mechanism that publishes one unit at random keeps delta = 1 / units.

    >>> default_delta(5000), default_delta(100), default_delta(0)
    (1e-05, 0.001, 0.1)
    """
    power = math.floor(-math.log10(10 * max(units, 1)) + 1e-9)
    return max(float(f"1e{power}"), LEAST_DELTA)


def make_site(folder: Path, answers: Answers) -> Made:
    """Write settings, policy, keys, the server's certificate and the site's card.

    Raises:
        OutputExistsError: the folder is not empty.
        ConfigError: an answer cannot be used.
        RunError, DiskFullError: the folder cannot be written.
    """
    folder = folder.expanduser().absolute()
    refuse_full(folder)
    terms = checked_terms(answers)
    settings = _settings_text(folder, answers)
    with write_errors(folder):
        moved: list[Path] = []
        made: list[Path] = []
        try:
            for path in (*reversed(folder.parents), folder):
                if not path.exists():
                    path.mkdir(mode=0o700)
                    made.append(path)
            part = Path(tempfile.mkdtemp(prefix=".init-", dir=folder))
            moved.append(part)
            card = _write_parts(part, answers, settings)
            refuse_full(folder, but=part)
            # The settings come last: a folder without them is no site's.
            for path in sorted(part.iterdir(), key=lambda path: path.name == SITE_FILE):
                moved.append(folder / path.name)
                path.rename(folder / path.name)
            part.rmdir()
            folder.chmod(0o700)
        except BaseException:
            for path in moved:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            for path in reversed(made):
                path.rmdir()
            raise
    return Made(
        folder=folder,
        card=folder / f"{card.name}.pub",
        card_fingerprint=card.fingerprint,
        invitation_fingerprint=answers.invitation.fingerprint,
        terms=terms,
    )


def checked_terms(answers: Answers) -> Terms:
    """The policy that the answers amount to; ConfigError where there can be none."""
    try:
        return Terms.model_validate(_terms(answers))
    except ValidationError as error:
        origins = Origins({}, ["the policy"], model=Terms, listing=_LISTING)
        raise as_config_error(error, origins) from None


def _terms(answers: Answers) -> dict[str, Any]:
    """Whoever names a column of patients means that these are what is protected."""
    of_group = {} if answers.group is None else {"unit": "group", "group": answers.group}
    given = {key: value for key, value in answers.terms.items() if value is not None}
    return {"max_epsilon": DEFAULT_EPSILON, **of_group, **given}


def _settings_text(folder: Path, answers: Answers) -> str:
    """``site.toml``; ConfigError where an answer is none."""
    invitation = answers.invitation
    values: dict[str, Any] = {
        "name": answers.name,
        "model": None if answers.model is None else str(answers.model.expanduser().absolute()),
        "server": {
            "name": invitation.name,
            "address": invitation.address,
            "certificate": "ca.pem",
            "sign_key": invitation.sign_key,
        },
        "data": {
            "file": _seen_from(folder, answers.data.expanduser().absolute()),
            "text": answers.text,
            "label": answers.label,
            "group": answers.group,
        },
    }
    values = {key: value for key, value in values.items() if value is not None}
    try:
        SiteTable.model_validate(values)
    except ValidationError as error:
        origins = Origins({}, ["what was given"], model=SiteTable, listing=_LISTING)
        raise as_config_error(error, origins) from None
    return commented(
        SiteTable,
        "# A site of a federation, as its own people have set it up. Paths are relative to this",
        "# file. What the site agrees to is in policy.toml.",
        values=values,
    )


def _write_parts(part: Path, answers: Answers, settings: str) -> SiteCard:
    (part / "keys").mkdir(mode=0o700)
    sign_key = make_signing_key(part / "keys" / "site.key")
    card = SiteCard(
        name=answers.name,
        node_key=make_node_key(part / "keys" / "node.key"),
        sign_key=public_text(sign_key),
    )
    card.write(part / f"{answers.name}.pub")
    write_text(part / "ca.pem", answers.invitation.certificate)
    write_text(part / "policy.toml", terms_template(_terms(answers)))
    write_text(part / SITE_FILE, settings)
    return card


def make_node_key(path: Path) -> str:
    """Write a new key as Flower's SuperNode takes it (EC P-384, OpenSSH, 0600); the public one."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_bytes(path, private, private=True)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def refuse_full(folder: Path, *, but: Path | None = None) -> None:
    """Raise OutputExistsError unless a folder is new or, but for one name, empty."""
    if not os.path.lexists(folder):
        return
    found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    found = [path for path in found if path != but]
    if found:
        raise OutputExistsError(
            "the folder is not empty",
            given=f"{folder}, with {found[0].name}",
            expected="a new folder, or an empty one",
            remedy="name another one: keys that exist are never replaced",
        )


def _seen_from(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
