"""The small Flower app of a federation, and the bundle that is built and signed for its runs.

It names the entry points of what is installed at both ends and holds no code besides: a site
compares its bytes with the signature and never unpacks it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import tomli_w

from hushtune.common.deployment import ANSWER_SECONDS, CONNECT_SECONDS, RESUME, SIGNATURE
from hushtune.common.errors import DeploymentError
from hushtune.common.files import write_text
from hushtune.common.run_context import OUT, TOML

DEFAULTS: Mapping[str, str | float] = {
    TOML: "",
    OUT: "",
    SIGNATURE: "",
    RESUME: "",
    ANSWER_SECONDS: 3600.0,
    CONNECT_SECONDS: 120.0,
}
"""Flower takes no other keys in a run's configuration, and no other types."""

_CLIENT, _SERVER = "hushtune_clientapp", "hushtune_serverapp"
_MODULE = """\
\"\"\"What Flower loads {where}.\"\"\"

from hushtune.{package}.app import app as _app

app = _app
"""


def app_files() -> dict[str, str]:
    """The files of the Flower app by name."""
    project = {
        "project": {
            "name": "hushtune-federation",
            "version": version("hushtune"),
            "description": "Entry points of hushtune, which is installed at both ends",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "hushtune",
                    "fab-include": [f"/{_CLIENT}.py", f"/{_SERVER}.py"],
                    "components": {"serverapp": f"{_SERVER}:app", "clientapp": f"{_CLIENT}:app"},
                    "config": dict(DEFAULTS),
                }
            }
        },
    }
    return {
        "pyproject.toml": tomli_w.dumps(project),
        f"{_CLIENT}.py": _MODULE.format(where="at a site", package="client"),
        f"{_SERVER}.py": _MODULE.format(where="at the coordinator", package="server"),
    }


def write_app(folder: Path) -> None:
    """Write the Flower app, in place of one of another version."""
    for name, text in app_files().items():
        write_text(folder / name, text)


def build_bundle(folder: Path) -> bytes:
    """The bundle of the app in a folder: the same bytes for the same files."""
    from flwr.cli.build import build_fab_from_files

    try:
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        with warnings.catch_warnings():  # of a library that Flower uses by an old name
            warnings.simplefilter("ignore", DeprecationWarning)
            return build_fab_from_files(files)[0]
    except (OSError, ValueError) as error:
        raise DeploymentError(
            "the Flower app of this folder cannot be bundled",
            given=f"{folder}: {error}",
            expected=", ".join(app_files()),
            remedy="remove the folder app/; the next run writes it anew",
        ) from error
