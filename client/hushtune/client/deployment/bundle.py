"""Whether a run is the coordinator's: bundle and settings against the signature with them.

A bundle is looked at as bytes. It is never unpacked and nothing in it is ever imported: what an
order does at a site is what the site has installed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TypeVar

from hushtune.common.deployment import SIGNATURE, check_run
from hushtune.common.errors import SignatureError
from hushtune.common.run_context import TOML

_Value = TypeVar("_Value")

UNSIGNED_KEYS = ("preset", "config", "set")
"""Of a simulation's run configuration: they would say what is trained, and no signature is of
them."""


def check_bundle(
    sign_key: str, bundle: bytes, run_config: Mapping[str, object], *, named: str | None = None
) -> str:
    """The settings of a run, TOML text, whose signature fits; SignatureError for anything else.

    ``named``: the sha256 that Flower calls the bundle by, which must be its own.
    """
    toml, signature = (run_config.get(key) or "" for key in (TOML, SIGNATURE))
    if not isinstance(toml, str) or not toml or not isinstance(signature, str):
        raise SignatureError(
            "a run comes without settings that could be signed",
            expected="a run that `hushtune server run` has started",
        )
    if named is not None and named != hashlib.sha256(bundle).hexdigest():
        raise SignatureError("a run's bundle is another than the one that the run names")
    check_run(sign_key, bundle, toml, signature)
    return toml


def signed_config(run_config: Mapping[str, _Value]) -> dict[str, _Value]:
    """A run's configuration without what would change it unsigned."""
    return {key: value for key, value in run_config.items() if key not in UNSIGNED_KEYS}
