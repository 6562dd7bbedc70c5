"""A coordinator's folder: what is where, ``server.toml``, and how it is made."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import Field, ValidationError

from hushtune.common.config_base import FilePath, Name, Section
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.deployment import Address, Invitation
from hushtune.common.errors import ConfigError, DeploymentError, OutputExistsError
from hushtune.common.files import check_writable, write_text
from hushtune.common.signing import load_signing_key, make_signing_key, public_text
from hushtune.server.deployment.certificates import (
    Certificates,
    check_certificates,
    hosts_of,
    make_authority,
    make_certificate,
)

SETTINGS = "server.toml"
FOLDER_VARIABLE = "HUSHTUNE_SERVER"
"""Of the environment of a run's ServerApp: the coordinator's folder."""

Port = Annotated[int, Field(ge=1, lt=2**16)]

_HEAD = """\
# A coordinator's server. Paths are relative to this file. Keys that may be added:
#   listen = "0.0.0.0:9092"    where to listen, if that is not the address's port on all interfaces
#   max_request_mib = 64       the largest request that a site may send
#   max_message_mib = 256      the largest answer of a site, which comes in several requests
"""


class ServerSettings(Section):
    """``server.toml``."""

    name: Name = Field(description="of the federation")
    address: Address = Field(description="where sites reach the server: host:port")
    listen: Address | None = Field(
        default=None,
        description="where the server listens: an IP address and a port. Left out, on all "
        "interfaces (of a loopback address, on that) at the address's port",
    )
    local_port: Port = Field(
        description="the port on 127.0.0.1 for this machine's own commands; nobody else's"
    )
    max_request_mib: Annotated[int, Field(ge=1, le=2048)] = Field(
        default=64, description="the largest request that a site may send, in MiB"
    )
    max_message_mib: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=256,
        description="the largest answer of a site, which comes in several requests, in MiB",
    )
    authority: FilePath = Field(
        default=Path("tls/ca.pem"), description="certificate that sites trust"
    )
    certificate: FilePath = Field(
        default=Path("tls/server.pem"), description="the server's certificate, with its chain"
    )
    key: FilePath = Field(default=Path("tls/server.key"), description="of that certificate")


@dataclass(frozen=True)
class Home:
    """A coordinator's folder and its settings; all paths are absolute."""

    folder: Path
    settings: ServerSettings

    @property
    def host(self) -> str:
        """Of the address, without brackets."""
        return self.settings.address.rpartition(":")[0].strip("[]")

    @property
    def listen(self) -> tuple[str, int]:
        """Host and port of the public listener."""
        host, _, port = (self.settings.listen or self.settings.address).rpartition(":")
        if self.settings.listen is None:
            host = {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "[::1]": "::1"}.get(
                host, "::" if host.startswith("[") else "0.0.0.0"
            )
        return host.strip("[]"), int(port)

    @property
    def local(self) -> str:
        """host:port of what this machine's own commands use."""
        return f"127.0.0.1:{self.settings.local_port}"

    @property
    def certificates(self) -> Certificates:
        """See ``Certificates``."""
        given = self.settings
        return Certificates(
            self.folder / given.authority, self.folder / given.certificate, self.folder / given.key
        )

    @property
    def authority_key(self) -> Path:
        """There only where the authority was made here."""
        return self.folder / "tls" / "ca.key"

    @property
    def signing_key(self) -> Path:
        """What runs are signed with."""
        return self.folder / "keys" / "signing.key"

    @property
    def invitation(self) -> Path:
        """What sites are given."""
        return self.folder / "federation.toml"

    @property
    def sites(self) -> Path:
        """A file for each enrolled site."""
        return self.folder / "sites"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.folder / "runs"

    @property
    def app(self) -> Path:
        """The small Flower app, of which bundles are built."""
        return self.folder / "app"

    @property
    def flower(self) -> Path:
        """Flower's own files, its database and the logs."""
        return self.folder / "flower"

    @property
    def local_token(self) -> Path:
        """What this machine's own commands show the server."""
        return self.flower / "local.token"


def open_home(folder: Path) -> Home:
    """The coordinator's folder; DeploymentError where it is none, ConfigError for its settings."""
    folder = folder.expanduser().absolute()
    path = folder / SETTINGS
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeploymentError(
            "this folder is no coordinator's",
            given=str(folder),
            expected=f"{SETTINGS}, as `hushtune server init` writes it",
            remedy=f"hushtune server init {folder} --name NAME --address HOST:PORT",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML", given=str(error)[:200], remedy="mend it") from None
    return Home(folder, _checked(raw, str(path)))


def init_home(
    folder: Path,
    *,
    name: str,
    address: str,
    now: datetime,
    listen: str | None = None,
    local_port: int | None = None,
    given: Certificates | None = None,
) -> Home:
    """Make a coordinator's folder: settings, keys, certificates, invitation and Flower app.

    Args:
        local_port: left out, the port after the address's (or before it).
        given: certificates to use where they are; left out, an authority and a certificate are
            made here.

    Raises:
        OutputExistsError: the folder is not empty.
        ConfigError, CertificateError, KeyFileError: what was given cannot be used; nothing is left.
    """
    from hushtune.server.deployment.bundle import write_app

    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            "the folder is not empty",
            given=str(folder),
            expected="a new folder, or an empty one",
            remedy="name another one: keys that exist are never replaced",
        )
    raw: dict[str, object] = {"name": name, "address": address}
    port = address.rpartition(":")[2]
    if local_port is None and port.isdigit():
        local_port = int(port) + (1 if int(port) < 2**16 - 1 else -1)
    raw["local_port"] = local_port or 1
    if listen is not None:
        raw["listen"] = listen
    if given is not None:
        raw["authority"] = str(given.authority.expanduser().absolute())
        raw["certificate"] = str(given.server.expanduser().absolute())
        raw["key"] = str(given.key.expanduser().absolute())
    home = Home(folder, _checked(raw, "what was given"))
    if home.listen[1] == home.settings.local_port:
        raise ConfigError(
            "sites and this machine's own commands cannot have the same port",
            given=str(home.settings.local_port),
            remedy="--local-port ANOTHER",
        )
    if given is not None:
        check_certificates(home.certificates, host=home.host, now=now)
    check_writable(folder)
    for below in (folder, folder / "keys", folder / "tls", home.sites, home.runs, home.flower):
        below.mkdir(parents=True, exist_ok=True, mode=0o700)
        below.chmod(0o700)
    make_signing_key(home.signing_key)
    if given is None:
        make_authority(home.certificates, home.authority_key, name=name, now=now)
        renew(home, now=now)
    write_app(home.app)
    write_invitation(home)
    write_text(folder / SETTINGS, _HEAD + tomli_w.dumps(raw))
    return home


def renew(home: Home, *, now: datetime) -> datetime:
    """Make a new certificate of the server; the authority, which sites know, stays.

    Returns the moment until which it is valid. Raises KeyFileError where the authority is not ours.
    """
    hosts = hosts_of(home.host)
    make_certificate(home.certificates, home.authority_key, hosts=hosts, now=now)
    return check_certificates(home.certificates, host=home.host, now=now)


def write_invitation(home: Home) -> Invitation:
    """Write ``federation.toml``; nothing in it is secret."""
    invitation = Invitation(
        name=home.settings.name,
        address=home.settings.address,
        sign_key=public_text(load_signing_key(home.signing_key)),
        certificate=home.certificates.authority.read_text(encoding="ascii"),
    )
    invitation.write(home.invitation)
    return invitation


def _checked(raw: Mapping[str, object], place: str) -> ServerSettings:
    try:
        return ServerSettings.model_validate(raw)
    except ValidationError as error:
        origins = Origins({}, [place], ServerSettings, "hushtune server init --help")
        raise as_config_error(error, origins) from None
