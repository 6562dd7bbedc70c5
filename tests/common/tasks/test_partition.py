"""Partitions deal every row to one site, the same way for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.config import DataConfig
from hushtune.common.errors import TooFewRowsError
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.partition import draw, partition, plot, table
from hushtune.common.tasks.units import Rows

HOWS = ("iid", "dirichlet", "quantity", "shards")


def dealt(
    labels: Rows, how: str, *, sites: int = 4, alpha: float = 5.0, seed: int = 0
) -> list[Rows]:
    return partition(labels, how=how, sites=sites, alpha=alpha, shards_per_site=2, seed=seed)


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 4), min_size=40, max_size=200),
    how=st.sampled_from(HOWS),
    sites=st.integers(1, 6),
    seed=st.integers(0, 2**62),
)
def test_every_row_is_at_exactly_one_site(
    labels: list[int], how: str, sites: int, seed: int
) -> None:
    rows = np.array(labels, dtype=np.int64)
    parts = dealt(rows, how, sites=sites, seed=seed)
    assert len(parts) == sites
    assert all(len(part) > 0 and part.dtype == np.int64 for part in parts)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(rows)))
    again = dealt(rows, how, sites=sites, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("how", HOWS)
def test_another_seed_deals_otherwise(how: str) -> None:
    labels = np.arange(400, dtype=np.int64) % 4
    assert not np.array_equal(dealt(labels, how)[0], dealt(labels, how, seed=1)[0])


def label_shares(labels: Rows, parts: list[Rows]) -> np.ndarray:
    """(sites, labels): each site's shares of labels."""
    counts = np.array([np.bincount(labels[part], minlength=4) for part in parts])
    return counts / counts.sum(axis=1, keepdims=True)


def test_iid_is_even_in_size_and_labels() -> None:
    labels = np.arange(4000, dtype=np.int64) % 4
    parts = dealt(labels, "iid")
    assert {len(part) for part in parts} == {1000}
    assert np.abs(label_shares(labels, parts) - 0.25).max() < 0.06  # five standard errors


def test_alpha_sets_the_skew() -> None:
    labels = np.arange(4000, dtype=np.int64) % 4

    def label_skew(alpha: float) -> float:
        return float(label_shares(labels, dealt(labels, "dirichlet", alpha=alpha)).std())

    def size_skew(alpha: float) -> float:
        sizes = [len(part) for part in dealt(labels, "quantity", alpha=alpha)]
        return float(np.std(sizes)) / 1000

    for skew in (label_skew, size_skew):
        assert skew(0.3) > 2 * skew(5.0) > 4 * skew(1000.0)
    # Quantity skews sizes, not labels.
    parts = dealt(labels, "quantity", alpha=1.0)
    biggest = max(parts, key=len)
    assert np.abs(label_shares(labels, [biggest]) - 0.25).max() < 0.1


def test_shards_leave_a_site_few_labels() -> None:
    labels = np.arange(4000, dtype=np.int64) % 10
    parts = partition(labels, how="shards", sites=5, alpha=1.0, shards_per_site=2, seed=0)
    assert max(len(np.unique(labels[part])) for part in parts) <= 4  # a shard spans two at most
    assert {len(part) for part in parts} == {800}


def test_too_many_sites_for_the_rows() -> None:
    with pytest.raises(TooFewRowsError, match=r"data\.sites"):
        dealt(np.zeros(5, dtype=np.int64), "iid", sites=6)
    with pytest.raises(TooFewRowsError, match=r"data\.alpha"):
        dealt(np.zeros(200, dtype=np.int64), "quantity", sites=20, alpha=1e-3)


def test_table_and_plot_show_who_has_what(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"text {i},{'yes' if i % 3 else 'no'}" for i in range(120)]
    path.write_text("text,label\n" + "\n".join(lines))
    data = load_data(DataConfig(file=path, partition="iid", sites=3), seed=0)
    rows = table(data)
    assert [row["site"] for row in rows] == list(data.sites)
    assert sum(row["labels"]["yes"] for row in rows) == 80
    assert sum(row["labels"]["no"] for row in rows) == 40
    for row in rows:
        assert row["train"] + row["validation"] + row["test"] == sum(row["labels"].values())
    pytest.importorskip("matplotlib")
    plot(data, tmp_path / "who.png")
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_may_be_called_as_a_column_is(tmp_path: Path) -> None:
    names = ("site", "train", "test", "labels")
    lines = [f"text {i},{names[i % 4]}" for i in range(160)]
    path = tmp_path / "all.csv"
    path.write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    data = load_data(DataConfig(file=path, partition="iid", sites=2), seed=0)
    rows = table(data)
    assert [row["site"] for row in rows] == list(data.sites)
    for row in rows:
        assert row["labels"].keys() == set(names)
        assert row["train"] == len(data.sites[row["site"]].train)
        assert row["train"] + row["validation"] + row["test"] == sum(row["labels"].values())
    draw(data)
