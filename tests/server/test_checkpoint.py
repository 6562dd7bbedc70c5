"""Checkpoints: whole or not at all, and never taken for another run's."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.errors import CheckpointError, DiskFullError
from hushtune.common.privacy.ledger_entry import GENESIS, RECORD, LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.server.aggregation.optimizers import AggState
from hushtune.server.checkpoint import FILE, Checkpoint, _from_bytes, _to_bytes, exists, load, save

from .fake_grid import state


def checkpoint(seed: int = 0) -> Checkpoint:
    event = DpSgdEvent(sampling_probability=0.1, noise_multiplier=2.0, steps=3)
    entry = LedgerEntry.after(0, GENESIS, dataset="d", run="r", round=1, unit=RECORD, event=event)
    shared = state(seed)
    return Checkpoint(
        run="r",
        round=2,
        config_hash="c" * 64,
        state=shared,
        agg=AggState(
            2, {"first": state(1, ["head.bias"]), "second": shared, "third": state(3, [])}
        ),
        history=({"round": 1, "loss": 0.1}, {"round": 2, "loss": 1 / 3, "epsilon": {"a": None}}),
        charges={"a": (entry.to_dict(),), "b": ()},
        refusals={"b": ({"round": 2, "code": "HT401", "reason": "spent"},)},
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return _to_bytes(one) == _to_bytes(other)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint"
    assert not exists(folder)
    path = save(folder, checkpoint())
    assert exists(folder)
    back = load(folder, config_hash="c" * 64)
    assert same(back, checkpoint())
    assert back.state.digest() == checkpoint().state.digest()
    assert (back.history, back.charges, back.refusals) == (
        checkpoint().history,
        checkpoint().charges,
        checkpoint().refusals,
    )
    assert back.agg.moments["first"].keys == ("head.bias",)
    assert [p.name for p in folder.iterdir()] == [path.name] == [FILE]


def test_a_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path)


def test_another_configuration_is_named_beside_ours(tmp_path: Path) -> None:
    save(tmp_path, checkpoint())
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, config_hash="d" * 64)
    assert "c" * 64 in str(caught.value)
    assert "d" * 64 in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_always_noticed(data: st.DataObject) -> None:
    good = _to_bytes(checkpoint())
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        bad = good[:place]
    else:
        flip = data.draw(st.integers(1, 255))
        bad = good[:place] + bytes([good[place] ^ flip]) + good[place + 1 :]
    with pytest.raises(CheckpointError, match="damaged"):
        _from_bytes(bad, Path("x"))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_no_checkpoint(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        _from_bytes(data, Path("x"))


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    save(tmp_path, checkpoint(0))
    monkeypatch.setattr(os, call, no_space)
    with pytest.raises(DiskFullError, match="full"):
        save(tmp_path, checkpoint(1))
    assert same(load(tmp_path), checkpoint(0))
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_kill_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, checkpoint(0))
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, checkpoint(1))
    monkeypatch.undo()
    assert same(load(tmp_path), checkpoint(0))
    save(tmp_path, checkpoint(1))
    assert same(load(tmp_path), checkpoint(1))


def test_it_is_renamed_only_after_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def spied(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*args: object) -> object:
            calls.append(name)
            return real(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spied(name))
    save(tmp_path, checkpoint())
    assert calls == ["fsync", "replace", "fsync"]
