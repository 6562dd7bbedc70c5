"""Whether a library is installed, in a version that this hushtune is made for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

CORE = ("torch", "flwr", "transformers", "peft", "opacus", "dp-accounting", "numpy", "safetensors")


@dataclass(frozen=True, slots=True)
class Package:
    """``found`` is None where it is not installed; ``allowed`` is "" for any version."""

    name: str
    found: str | None
    allowed: str

    @property
    def ok(self) -> bool:
        """Whether what is there is what is needed."""
        if self.found is None:
            return False
        wanted = Requirement(f"{self.name}{self.allowed}").specifier
        return wanted.contains(self.found, prereleases=True)

    @property
    def words(self) -> str:
        """The version, and what is wrong with it."""
        if self.found is None:
            return "not installed"
        return self.found if self.ok else f"{self.found}, where {self.allowed} is needed"


def installed(name: str) -> Package:
    """What is installed of a package, and which versions hushtune takes."""
    wanted = [Requirement(line) for line in requires("hushtune") or ()]
    allowed = next((str(one.specifier) for one in wanted if one.name == name), "")
    try:
        found = version(name)
    except PackageNotFoundError:
        found = None
    return Package(name, found, allowed)
