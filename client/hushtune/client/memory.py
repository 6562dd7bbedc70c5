"""What a site keeps of a model for itself: parts that are trained there and never leave it.

One file for each purpose, readable by its owner alone, with what was kept in the last two rounds:
a round that is asked for again, as after a crash, begins where it began the first time. The file is
safetensors with the rest as JSON in its metadata, and a sha256 over both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.errors import HushtuneError, SiteError
from hushtune.common.files import write_bytes, write_errors
from hushtune.common.site_files import site_stem

_METADATA = "hushtune"


class Purpose(StrEnum):
    """What is kept: factors of the site's own (FedSA), a whole adapter of its own, or SCAFFOLD's
    control variate."""

    FACTORS = "factors"
    ADAPTER = "adapter"
    CONTROL = "control"


@dataclass(frozen=True)
class SiteMemory:
    """The files of one site in one folder.

    What a round made that was not ``paid`` for, as its charge failed, is as if it had not been
    kept: what is sent later must follow from nothing else than what was charged. None: no round is
    charged.
    """

    folder: Path
    site: str

    def file(self, purpose: Purpose) -> Path:
        """Where what is kept for a purpose lies."""
        return self.folder / f"{site_stem(self.site)}.{purpose}.safetensors"

    def before(
        self, purpose: Purpose, *, run: str, round: int, paid: Collection[int] | None = None
    ) -> AdapterState | None:
        """What the site had kept when a round of a run began; None where there was nothing.

        Raises SiteError for a damaged file.
        """
        kept = {n: s for n, s in self._paid(purpose, run, paid).items() if n < round}
        return kept[max(kept)] if kept else None

    def newest(
        self, purpose: Purpose, *, run: str, paid: Collection[int] | None = None
    ) -> AdapterState | None:
        """What the site has kept of a run."""
        kept = self._paid(purpose, run, paid)
        return kept[max(kept)] if kept else None

    def keep(
        self,
        purpose: Purpose,
        state: AdapterState,
        *,
        run: str,
        round: int,
        paid: Collection[int] | None = None,
    ) -> None:
        """Keep what a round made, durably, and what was there before that round."""
        earlier = {n: s for n, s in self._paid(purpose, run, paid).items() if n < round}
        last = [(number, earlier[number]) for number in sorted(earlier)[-1:]]
        path = self.file(purpose)
        with write_errors(path):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_bytes(path, _to_bytes(run, [*last, (round, state)]), private=True)

    def _paid(
        self, purpose: Purpose, run: str, paid: Collection[int] | None
    ) -> dict[int, AdapterState]:
        kept = self._read(purpose, run)
        return {n: state for n, state in kept.items() if paid is None or n in paid}

    def _read(self, purpose: Purpose, run: str) -> dict[int, AdapterState]:
        path = self.file(purpose)
        if not path.is_file():
            return {}
        try:
            return _from_bytes(path.read_bytes(), run)
        except (
            KeyError,
            TypeError,
            ValueError,
            RecursionError,
            OSError,
            safetensors.SafetensorError,
            HushtuneError,
        ) as error:
            raise SiteError(
                "what the site keeps of the model for itself cannot be read",
                given=f"{path}: {error}"[:300],
                remedy="put it back from a backup, or begin a new run",
            ) from error


def _to_bytes(run: str, kept: Sequence[tuple[int, AdapterState]]) -> bytes:
    tensors = {
        f"{number}/{key}": tensor.contiguous().clone()
        for number, state in kept
        for key, tensor in state.tensors.items()
    }
    body = {
        "run": run,
        "rounds": [number for number, _ in kept],
        "spec": kept[-1][1].spec.to_dict(),
    }
    text = json.dumps(body, sort_keys=True)
    return safetensors.torch.save(tensors, {_METADATA: f"{_digest(text, tensors)} {text}"})


def _digest(body: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(body.encode())
    total.update(safetensors.torch.save(dict(tensors)))
    return total.hexdigest()


def _from_bytes(data: bytes, run: str) -> dict[int, AdapterState]:
    tensors = safetensors.torch.load(data)
    size = int.from_bytes(data[:8], "little")
    metadata = str(json.loads(data[8 : 8 + size])["__metadata__"][_METADATA])
    digest, text = metadata.split(" ", 1)
    if digest != _digest(text, tensors):
        raise ValueError("its sha256 does not fit its content")
    body = json.loads(text)
    if body["run"] != run:
        return {}
    spec = AdapterSpec.from_dict(body["spec"])

    def part(number: int) -> dict[str, Tensor]:
        start = f"{number}/"
        return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}

    found = {int(number): AdapterState(spec, part(number)) for number in body["rounds"]}
    if not all(state.is_finite() for state in found.values()):
        raise ValueError("a value is not finite")
    return found
