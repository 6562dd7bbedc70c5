"""What a coordinator and its sites hand to each other as files, and what a run is signed by."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509 import load_pem_x509_certificate
from pydantic import AfterValidator, Field, ValidationError

from hushtune.common.config_base import Name, Section, refuse
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.errors import ConfigError, EnrolmentError, MissingFileError, SignatureError
from hushtune.common.files import write_text
from hushtune.common.signing import canonical, check, read_public

SITE_KEY = "site"
"""Of a Flower node's configuration: where the site's ``site.toml`` is."""
SIGNATURE, RESUME, ANSWER_SECONDS, CONNECT_SECONDS = (
    "signature",
    "resume",
    "answer_seconds",
    "connect_seconds",
)
"""Of Flower's run configuration, beside those of ``run_context``."""


def _sign_key(text: str) -> str:
    try:
        read_public(text)
    except SignatureError as error:
        refuse(error.message, key="", given=error.given or "", expected=error.expected or "")
    return text


def _node_key(text: str) -> str:
    try:
        key = load_ssh_public_key(text.encode("utf-8"))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        refuse(
            "this is no public key of a node",
            key="",
            given=text[:80],
            expected="an elliptic-curve key in OpenSSH's form: ecdsa-sha2-nistp384 ...",
        )
    return " ".join(text.split()[:2])


def _certificate(text: str) -> str:
    try:
        load_pem_x509_certificate(text.encode("utf-8"))
    except ValueError:
        refuse("this is no certificate", key="", given=text[:40], expected="a PEM certificate")
    return text


def _address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        refuse(
            "this is no address",
            key="",
            given=text[:80],
            expected="host:port, such as fl.example.org:9092",
        )
    return text


SignKey = Annotated[str, AfterValidator(_sign_key)]
Address = Annotated[str, AfterValidator(_address)]
Certificate = Annotated[str, AfterValidator(_certificate)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class SiteCard(Section):
    """What a site gives to its coordinator: its name and public keys; nothing in it is secret."""

    hushtune: Literal["site"] = "site"
    name: SiteName
    node_key: Annotated[str, AfterValidator(_node_key)]
    sign_key: SignKey

    @classmethod
    def read(cls, path: Path) -> SiteCard:
        """Raises MissingFileError, and EnrolmentError for a file that is no card."""
        try:
            raw: Any = json.loads(path.read_text(encoding="utf-8"))
            return cls.model_validate(raw)
        except OSError as error:
            raise MissingFileError(
                "a site's card is not there", file=path, remedy="ask the site for its .pub file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise EnrolmentError(
                "this file is no site's card",
                given=f"{path}: {_first(error)}",
                expected="the .pub file that `hushtune site init` has written",
                remedy="ask the site for that file",
            ) from error

    @property
    def fingerprint(self) -> str:
        """Of all that the card says, however its file is laid out."""
        return fingerprint(self.model_dump())

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")


class Invitation(Section):
    """``federation.toml``: what a coordinator gives to its sites; nothing in it is secret."""

    name: Name = Field(description="of the federation")
    address: Address = Field(description="where the coordinator's server listens: host:port")
    sign_key: SignKey = Field(description="that runs and results are signed by")
    certificate: Certificate = Field(description="of the authority that signs the server's, PEM")

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Raises MissingFileError and ConfigError."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise MissingFileError(
                "the invitation is not there",
                file=path,
                remedy="ask the coordinator for federation.toml",
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{path.name} is not TOML", given=str(error), remedy="ask the coordinator for it"
            ) from error
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            origins = Origins({}, [str(path)], listing="hushtune site init")
            raise as_config_error(error, origins) from None

    @property
    def fingerprint(self) -> str:
        """Of all that the invitation says, however its file is laid out."""
        return fingerprint(self.model_dump())

    def write(self, path: Path) -> None:
        write_text(path, tomli_w.dumps(self.model_dump(), multiline_strings=True))


def fingerprint(document: Mapping[str, Any]) -> str:
    """sha256 of a JSON document, in groups that can be read out over the telephone.

    >>> fingerprint({"name": "north"})[:24], len(fingerprint({}).split())
    ('919a c55e e5a7 f3cc b304', 16)
    """
    digest = hashlib.sha256(canonical(document)).hexdigest()
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def signed_run(bundle: bytes | str, toml: str) -> dict[str, str]:
    """What a coordinator signs of a run: sha256 of its bundle (or that itself) and settings."""
    digest = bundle if isinstance(bundle, str) else hashlib.sha256(bundle).hexdigest()
    return {"bundle": digest, "config": hashlib.sha256(toml.encode("utf-8")).hexdigest()}


def check_run(sign_key: str, bundle: bytes, toml: str, signature: str) -> None:
    """Raise SignatureError unless a run's bundle and settings are signed by the coordinator."""
    check(sign_key, signed_run(bundle, toml), signature, what="the run's bundle")


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors()[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:200]
    return str(error).splitlines()[0][:200]
