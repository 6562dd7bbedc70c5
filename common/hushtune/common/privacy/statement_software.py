"""The software that a privacy statement names."""

from importlib.metadata import PackageNotFoundError, version

LIBRARIES = (
    "hushtune",
    "torch",
    "opacus",
    "dp-accounting",
    "cryptography",
    "peft",
    "transformers",
    "flwr",
)


def libraries() -> dict[str, str | None]:
    """The versions of what computes, trains and protects; None for what is not installed."""
    return {name: _version(name) for name in LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
