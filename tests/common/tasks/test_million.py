"""A million rows: readers hold a piece at a time, and a table not much more than its texts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 1_000_000

CODE = """
import json, sys, time
from pathlib import Path
from hushtune.common.config import DataConfig
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.readers import read_file
from hushtune.common.tasks.rows import Columns

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(what))

# What imports needed at their peak must not hide what reading needs.
Path("/proc/self/clear_refs").write_text("5")
path, before, began = Path(sys.argv[2]), memory("VmRSS"), time.perf_counter()
if sys.argv[1] == "read":
    count = sum(1 for _ in read_file(path, Columns("text", "label")))
else:
    count = load_data(DataConfig(files={"north": path}), seed=0).report.read
print(json.dumps([count, memory("VmHWM") - before, time.perf_counter() - began]))
"""


def measured(what: str, path: Path) -> tuple[int, int]:
    """Rows, and MiB by which the peak of memory grew."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, what, str(path)], check=True, capture_output=True, text=True
    )
    count, grown, seconds = json.loads(done.stdout)
    print(what, path.name, f"{grown} MiB, {seconds:.1f} s")
    return count, grown


def written(folder: Path, name: str, rows: int = ROWS) -> Path:
    path = folder / name
    with path.open("w", encoding="utf-8") as file:
        if name.endswith(".csv"):
            file.write("text,label\n")
            file.writelines(f"some words and {i},{'no' if i % 3 else 'yes'}\n" for i in range(rows))
            return path
        listed = name.endswith(".json")
        file.write("[" if listed else "")
        for i in range(rows):
            row = json.dumps({"text": f"some words and {i}", "label": i % 3})
            file.write(row + ("\n" if not listed else ", " if i + 1 < rows else "]"))
    return path


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="as Linux tells memory"),
]


@pytest.mark.parametrize("name", ["data.csv", "data.json"])
def test_readers_hold_a_piece_at_a_time(tmp_path: Path, name: str) -> None:
    count, grown = measured("read", written(tmp_path, name))
    assert count == ROWS
    assert grown < 100  # the rows themselves take 500


def test_a_table_holds_little_more_than_its_texts(tmp_path: Path) -> None:
    """A row takes its text (about 70 bytes here), its place and some numbers."""
    count, grown = measured("load", written(tmp_path, "data.csv"))
    assert count == ROWS
    assert grown < 700
