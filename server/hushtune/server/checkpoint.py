"""A run between two rounds, on disk: one file that is there whole or not at all.

The file is safetensors (nothing is unpickled) with the rest as JSON in its metadata and a sha256
over both, so that a damaged file is noticed wherever the damage is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.errors import CheckpointError, HushtuneError
from hushtune.common.files import write_bytes
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.server.aggregation.averaging import shown
from hushtune.server.aggregation.central_dp import Memory
from hushtune.server.aggregation.optimizers import AggState

FILE = "latest.hushtune"
FORMAT = 1
_METADATA = "hushtune"
_STATE, _MOMENT, _NOISE, _BEST = "state", "agg", "noise", "best"

Row = dict[str, Any]
"""A JSON object."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a run needs to go on after ``round`` (0 = nothing done yet).

    ``state`` is what training goes on from, and ``shown`` what is evaluated and handed out.
    ``history`` has one row a round; ``charges`` the ledger entries (``LedgerEntry.to_dict``) that
    each site has shown, ``refusals`` the rounds that each site refused, with code and reason.
    ``begun``: the last round in which steps of a secure sum may have been asked for.
    Where the server adds the noise, ``central`` is what it remembers for that, and ``ledger`` its
    own charges, chained, each there before what it paid for is used. ``best``: what was shown after
    the best round, where that is to be kept.
    """

    run: str
    round: int
    config_hash: str
    state: AdapterState
    agg: AggState
    history: tuple[Row, ...]
    charges: Mapping[str, tuple[Row, ...]]
    refusals: Mapping[str, tuple[Row, ...]]
    begun: int = 0
    central: Memory | None = None
    ledger: tuple[Row, ...] = ()
    best: AdapterState | None = None

    @property
    def final(self) -> AdapterState:
        """What is handed out if no round follows: the best round's model where that is kept."""
        return self.shown if self.best is None else self.best

    @property
    def shown(self) -> AdapterState:
        """The average of the rounds' models, where one is kept, else the last one."""
        return shown(self.agg, self.state)


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Replace the folder's checkpoint atomically and durably; returns its path.

    Raises DiskFullError, which leaves the old one in place.
    """
    path = folder / FILE
    # With noise in it, whoever could read it could take that off what was released.
    secret = checkpoint.central is not None and bool(checkpoint.central.noises)
    write_bytes(path, _to_bytes(checkpoint), private=secret)
    return path


def exists(folder: Path) -> bool:
    """Whether the folder has a checkpoint, good or not."""
    return (folder / FILE).is_file()


def load(folder: Path, *, config_hash: str | None = None) -> Checkpoint:
    """Read and check the folder's checkpoint.

    Raises CheckpointError where there is none, where it is damaged or of another format, and where
    it belongs to another configuration than ``config_hash`` (if given).
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            "there is no checkpoint to read",
            given=str(path),
            remedy="start the run anew, without --resume",
        ) from error
    checkpoint = _from_bytes(data, path)
    if config_hash is not None and checkpoint.config_hash != config_hash:
        raise CheckpointError(
            f"the checkpoint {path} belongs to another configuration",
            given=f"configuration {checkpoint.config_hash}",
            expected=f"configuration {config_hash}",
            remedy="resume with the configuration it was made with, replace it with "
            "--overwrite, or take a new folder",
        )
    return checkpoint


def _to_bytes(checkpoint: Checkpoint) -> bytes:
    tensors = {f"{_STATE}/{key}": tensor for key, tensor in checkpoint.state.tensors.items()}
    for name, moment in checkpoint.agg.moments.items():
        tensors |= {f"{_MOMENT}/{name}/{key}": tensor for key, tensor in moment.tensors.items()}
    best = checkpoint.best
    if best is not None:
        tensors |= {f"{_BEST}/{key}": tensor for key, tensor in best.tensors.items()}
    central = checkpoint.central
    for place, noise in enumerate(() if central is None else central.noises):
        tensors |= {f"{_NOISE}/{place}/{key}": tensor for key, tensor in noise.tensors.items()}
    body = json.dumps(
        {
            "format": FORMAT,
            "run": checkpoint.run,
            "round": checkpoint.round,
            "config_hash": checkpoint.config_hash,
            "spec": checkpoint.state.spec.to_dict(),
            "step": checkpoint.agg.step,
            "moments": sorted(checkpoint.agg.moments),
            "averaged": checkpoint.agg.averaged,
            "begun": checkpoint.begun,
            "history": list(checkpoint.history),
            "charges": {site: list(rows) for site, rows in checkpoint.charges.items()},
            "refusals": {site: list(rows) for site, rows in checkpoint.refusals.items()},
            "central": None
            if central is None
            else {"clip_norm": central.clip_norm, "noises": len(central.noises)},
            "ledger": list(checkpoint.ledger),
        },
        sort_keys=True,
    )
    # Copied, because safetensors refuses tensors that share memory, as a state and a moment may.
    copies = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    # One entry, because safetensors writes several in no fixed order: equal in, equal out.
    return safetensors.torch.save(copies, {_METADATA: f"{_digest(body, copies)} {body}"})


def _digest(body: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(body.encode())
    total.update(safetensors.torch.save(dict(tensors)))
    return total.hexdigest()


def _from_bytes(data: bytes, path: Path) -> Checkpoint:
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = str(json.loads(data[8 : 8 + size])["__metadata__"][_METADATA])
        digest, text = metadata.split(" ", 1)
        if digest != _digest(text, tensors):
            raise CheckpointError("the checkpoint's sha256 does not fit its content")
        body: dict[str, Any] = json.loads(text)
        if body["format"] != FORMAT:
            raise CheckpointError("the checkpoint has another format", given=body["format"])
        return _from_parts(body, tensors)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        safetensors.SafetensorError,
        HushtuneError,
    ) as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged",
            given=(error.message if isinstance(error, HushtuneError) else str(error))[:300],
            remedy="start the run anew in a new folder",
        ) from error


def _from_parts(body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    spec = AdapterSpec.from_dict(body["spec"])

    def part(prefix: str) -> AdapterState:
        start = prefix + "/"
        chosen = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
        return AdapterState(spec, chosen)

    state = part(_STATE)
    if not state.is_whole() or not state.is_finite():
        raise CheckpointError("the adapter in it is not whole")
    charges = _rows_by_site(body["charges"])
    for rows in charges.values():
        for row in rows:
            LedgerEntry.from_dict(row)
    history = tuple(cast("list[Row]", body["history"]))
    if [row["round"] for row in history] != list(range(1, int(body["round"]) + 1)):
        raise CheckpointError("its history does not fit its round")
    return Checkpoint(
        run=str(body["run"]),
        round=int(body["round"]),
        config_hash=str(body["config_hash"]),
        state=state,
        agg=AggState(
            int(body["step"]),
            {n: part(f"{_MOMENT}/{n}") for n in body["moments"]},
            int(body.get("averaged", 0)),
        ),
        history=history,
        charges=charges,
        refusals=_rows_by_site(body["refusals"]),
        begun=int(body.get("begun", 0)),
        central=None
        if (central := body.get("central")) is None
        else Memory(
            clip_norm=float(central["clip_norm"]),
            noises=tuple(part(f"{_NOISE}/{place}") for place in range(int(central["noises"]))),
        ),
        ledger=_chain(body.get("ledger", [])),
        best=part(_BEST) if any(key.startswith(f"{_BEST}/") for key in tensors) else None,
    )


def _chain(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The server's charges; CheckpointError where one does not follow the one before."""
    last = GENESIS
    for number, row in enumerate(rows, start=1):
        entry = LedgerEntry.from_dict(row)
        if (entry.sequence, entry.previous) != (number, last):
            raise CheckpointError("a charge of the server's was altered or removed", given=number)
        last = entry.hash
    return tuple(rows)


def _rows_by_site(raw: Mapping[str, list[Row]]) -> dict[str, tuple[Row, ...]]:
    return {str(site): tuple(rows) for site, rows in sorted(raw.items())}
