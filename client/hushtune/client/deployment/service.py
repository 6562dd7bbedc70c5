"""A site that joins by itself: a systemd unit, or a container, around ``hushtune site join``."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hushtune.client.deployment.site_file import SITE_FILE, SiteFile
from hushtune.common.errors import ConfigError, DeploymentError
from hushtune.common.files import write_text
from hushtune.common.tasks.assets import cache_folder

SERVICES = ("systemd", "container")
_FOLDER = "service"
_USER_IN_CONTAINER = 10001

_UNIT = """\
# hushtune site {name}, kept joined. Written by `hushtune site join --service systemd`.
[Unit]
Description=hushtune site {name} of {federation}
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
WorkingDirectory={folder}
ExecStart={command} site join {argument}
Environment={cache_variable}
Restart=always
RestartSec=10
KillMode=mixed
TimeoutStopSec=60
UMask=0077

# What it may do: read, write in the site's folder, beside its policy and in the models' cache, and
# connect.
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable} {cache}
PrivateTmp={private_tmp}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=
AmbientCapabilities=
# Of devices only a GPU's are of use; ProtectClock has closed all others.
DeviceAllow=char-nvidia* rw

[Install]
WantedBy=multi-user.target
"""

_CONTAINERFILE = """\
# hushtune site {name}. Written by `hushtune site join --service container`.
FROM python:{python}-slim

# hushtune is installed from one wheel beside this file, or from --build-arg HUSHTUNE=...: never by
# its name alone, which on an index that anybody may write to can be anybody's.
COPY Containerfile hushtune-*.whl /tmp/hushtune/
ARG HUSHTUNE=
# An index with a torch that needs no GPU, for a small image: --build-arg TORCH_INDEX=...
ARG TORCH_INDEX=
RUN set -- /tmp/hushtune/*.whl; \\
    if [ -n "$HUSHTUNE" ]; then set -- "$HUSHTUNE"; \\
    elif [ ! -e "$1" ] || [ $# -ne 1 ]; then \\
        echo "Put one wheel of hushtune, hushtune-*.whl, beside the Containerfile (in its" \\
            "source: pip wheel --no-deps .), or say where it is: --build-arg HUSHTUNE=..." >&2; \\
        exit 1; \\
    fi; \\
    if [ -n "$TORCH_INDEX" ]; then \\
        pip install --no-cache-dir --index-url "$TORCH_INDEX" torch || exit 1; \\
    fi; \\
    pip install --no-cache-dir "$@"

RUN useradd --uid {uid} --no-create-home --shell /usr/sbin/nologin hushtune
USER {uid}
ENV HUSHTUNE_CACHE=/site/cache HOME=/tmp PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["hushtune"]
CMD ["site", "join", "/site"]
"""

_COMPOSE = """\
# hushtune site {name}. Written by `hushtune site join --service container`.
services:
  site:
    build:
      context: .
      dockerfile: Containerfile
    user: "{uid}:{gid}"
    read_only: true
    tmpfs: ["/tmp"]
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    init: true
    restart: always
    stop_grace_period: 60s
    volumes:
{volumes}
"""


@dataclass(frozen=True)
class Service:
    """The files that were written, and the commands that put them to use."""

    files: tuple[Path, ...]
    commands: tuple[str, ...]


def write_service(folder: Path, kind: str) -> Service:
    """Write what keeps a site joined into its folder ``service``; nothing is started.

    ``kind``: one of ``SERVICES``. Raises ConfigError for another, and DeploymentError where the
    folder is no site's, or its path cannot stand in such a file.
    """
    if kind not in SERVICES:
        raise ConfigError("there is no such service", given=kind, expected=", ".join(SERVICES))
    site = SiteFile.read(folder)
    paths = (site.folder, site.table.policy, site.table.data.file)
    for path in (*paths, *([site.table.model] if site.table.model else [])):
        if any(ord(letter) < 32 for letter in str(path)):
            raise DeploymentError(
                "a path has a letter that no service's file can have", given=repr(str(path))
            )
    return _systemd(site) if kind == "systemd" else _container(site)


def _systemd(site: SiteFile) -> Service:
    name = f"hushtune-site-{site.name}.service"
    path = site.folder / _FOLDER / name
    cache = cache_folder()
    text = _UNIT.format(
        name=site.name,
        federation=site.table.server.name.replace("%", "%%").replace("\n", " "),
        user=getpass.getuser(),
        folder=str(site.folder).replace("%", "%%"),  # of this key alone systemd takes no quotes
        writable=" ".join(_quoted(path) for path in _written(site)),
        private_tmp="no" if _in_tmp(site) else "yes",
        command=" ".join(_quoted(part, command=True) for part in own_command()),
        argument=_quoted(site.folder, command=True),
        cache=_quoted(f"-{cache}"),
        cache_variable=_quoted(f"HUSHTUNE_CACHE={cache}"),
    )
    write_text(path, text)
    return Service(
        (path,),
        (
            f"sudo cp {shlex.quote(str(path))} /etc/systemd/system/",
            "sudo systemctl daemon-reload",
            f"sudo systemctl enable --now {name}",
            f"systemctl status {name}",
        ),
    )


def _written(site: SiteFile) -> list[Path]:
    """The folders in which a site writes: its own, and that of its policy, which the ledger is
    beside."""
    beside = site.table.policy.parent
    return [site.folder, *([] if beside.is_relative_to(site.folder) else [beside])]


def _in_tmp(site: SiteFile) -> bool:
    """Whether a private /tmp would hide the site from its own service."""
    model = [site.table.model] if site.table.model is not None else []
    paths = (site.folder, site.table.policy, site.table.data.file, cache_folder(), *model)
    return any(p.is_relative_to(tmp) for p in paths for tmp in ("/tmp", "/var/tmp"))


def _quoted(value: Path | str, *, command: bool = False) -> str:
    """A word of a unit file (systemd.syntax(7)); in a command ``$`` would be a variable."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    text = text.replace("$", "$$") if command else text
    return f'"{text}"' if set(text) & set(" \"'\\;") else text


def own_command() -> Sequence[str]:
    """How this very hushtune is started, whatever the PATH of a service is."""
    beside = Path(sys.executable).parent / "hushtune"
    found = str(beside) if beside.is_file() else shutil.which("hushtune")
    if found is not None:
        return (found,)
    return (sys.executable, "-m", "hushtune.simulations.cli")


def _container(site: SiteFile) -> Service:
    folder = site.folder / _FOLDER
    uid, gid = os.getuid(), os.getgid()
    root = uid == 0
    uid, gid = (_USER_IN_CONTAINER, _USER_IN_CONTAINER) if root else (uid, gid)
    volumes = "\n".join(f"      - {_volume(*one)}" for one in _mounts(site))
    containerfile, compose = folder / "Containerfile", folder / "compose.yaml"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    write_text(
        containerfile,
        _CONTAINERFILE.format(name=site.name, python=python, uid=uid),
    )
    write_text(compose, _COMPOSE.format(name=site.name, uid=uid, gid=gid, volumes=volumes))
    where = shlex.quote(str(compose))
    wheel = f"pip wheel --no-deps --wheel-dir {shlex.quote(str(folder))} ."
    owner = f"sudo chown -R {uid}:{gid} {shlex.quote(str(site.folder))}"
    return Service(
        (containerfile, compose),
        (
            f"{wheel}  # in the source of hushtune{_version()}",
            *((owner,) if root else ()),
            f"docker compose -f {where} up --build --detach",
            f"docker compose -f {where} logs --follow",
        ),
    )


def _mounts(site: SiteFile) -> list[tuple[Path, str, bool]]:
    """What the container sees: host's path, its own, and whether it may write there.

    What ``site.toml`` names outside of its folder has the same path inside.
    """
    mounts = [(site.folder, "/site", True)]
    mounts += [(path, str(path), True) for path in _written(site)[1:]]
    model = [site.table.model] if site.table.model is not None else []
    for path in (site.table.data.file, *model):
        if path.is_relative_to(site.folder) and not _is_absolute_in_file(site, path):
            continue
        mounts.append((path, str(path), False))
    return mounts


def _is_absolute_in_file(site: SiteFile, path: Path) -> bool:
    """Whether ``site.toml`` writes the whole path, which is another one in the container."""
    return str(path) in (site.folder / SITE_FILE).read_text(encoding="utf-8")


def _volume(source: Path, target: str, writable: bool) -> str:
    text = f"{source}:{target}" + ("" if writable else ":ro")
    return json.dumps(text.replace("$", "$$"), ensure_ascii=False)


def _version() -> str:
    try:
        return " " + version("hushtune")
    except PackageNotFoundError:
        return ""
