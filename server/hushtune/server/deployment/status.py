"""How a federation is doing: one value, which the command, the page and the metrics all show."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates

from hushtune.common.errors import HushtuneError, InterruptedRunError
from hushtune.common.files import write_text
from hushtune.common.json_text import json_text
from hushtune.server.deployment.enrol import enrolled_sites
from hushtune.server.deployment.handed_over import again_command
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.run_process import works

STATE, METRICS = "state.json", "metrics.jsonl"


def federation_status(home: Home, link: Mapping[str, Any] | None) -> dict[str, Any]:
    """All of it, as JSON.

    Args:
        link: what the running server counts (``Watch.snapshot``); None where it does not run.

    The sites' losses are those that they told, with noise or without, as the run's settings say.
    """
    now = time.time()
    enrolled = enrolled_sites(home)
    run = newest_run(home)
    counted: Mapping[str, Any] = {} if link is None else link["sites"]
    part: Sequence[str] = () if run is None else run["sites"]
    until = _valid_until(home)
    return {
        "federation": home.settings.name,
        "address": home.settings.address,
        "folder": str(home.folder),
        "time": now,
        "server": {
            "running": link is not None,
            "started": None if link is None else link["started"],
            "certificate_until": None if until is None else until.isoformat(),
            "certificate_days": None if until is None else int((until.timestamp() - now) // 86400),
        },
        "sites": [
            {
                "name": name,
                "enrolled": name in enrolled,
                "since": enrolled[name].since if name in enrolled else None,
                "connected": bool(counted.get(name, {}).get("connected")),
                "last_seen": counted.get(name, {}).get("last_seen"),
                "bytes_in": counted.get(name, {}).get("bytes_in", 0),
                "bytes_out": counted.get(name, {}).get("bytes_out", 0),
                "in_run": name in part,
                **_of_run(run, name),
            }
            for name in sorted({*enrolled, *part})
        ],
        "run": run,
        "rejected": [] if link is None else link["rejected"],
        "rejections": {} if link is None else link["rejections"],
    }


def newest_run(home: Home) -> dict[str, Any] | None:
    """The run that told of itself last; None before the first."""
    told = [path for path in home.runs.glob(f"*/{STATE}") if path.is_file()]
    if not told:
        return None
    return run_status(max(told, key=lambda path: path.stat().st_mtime_ns).parent)


def run_status(folder: Path) -> dict[str, Any]:
    """A run as its folder tells it; "interrupted" where its process or the server is gone."""
    state = read_state(folder)
    rows = read_rows(folder)
    seconds = [sum(v for v in row.get("seconds", {}).values() if v is not None) for row in rows]
    status = state.get("status", "starting")
    error = state.get("error")
    if status == "running" and not works(state):
        status, error = "interrupted", error or error_fields(_gone(folder))
    losses = [(row["round"], _released(row).get("loss")) for row in rows]
    refused = _refusals(rows)
    began, updated = state.get("began"), state.get("updated")
    return {
        "name": folder.name,
        "status": status,
        "phase": state.get("phase"),
        "round": state.get("round", len(rows)),
        "rounds": state.get("rounds"),
        "began": began,
        "updated": updated,
        "error": error,
        "sites": state.get("sites", []),
        "connected": state.get("connected", []),
        "losses": [[number, loss] for number, loss in losses if loss is not None],
        "loss": next((loss for _, loss in reversed(losses) if loss is not None), None),
        "noised": bool(rows and _released(rows[-1]).get("noised")),
        "site_losses": dict(_released(rows[-1]).get("sites", {})) if rows else {},
        "epsilon": dict(rows[-1].get("epsilon", {})) if rows else {},
        "accepted": list(rows[-1].get("accepted", [])) if rows else [],
        "rejected": dict(rows[-1].get("rejected", {})) if rows else {},
        "refusals": refused,
        "bytes_up": sum(row.get("bytes_up") or 0 for row in rows),
        "bytes_down": sum(row.get("bytes_down") or 0 for row in rows),
        "seconds_per_round": sum(seconds[-5:]) / len(seconds[-5:]) if seconds else None,
    }


def error_fields(error: HushtuneError) -> dict[str, Any]:
    """An error as ``state.json`` has it."""
    return {
        "code": error.code,
        "message": error.message,
        "given": error.given,
        "expected": error.expected,
        "do": error.remedy,
    }


def doing(run: Mapping[str, Any]) -> str:
    """What a run does, where that says more than its status and its round do; else empty.

    >>> doing({"status": "running", "phase": "rounds"})
    ''
    >>> doing({"status": "running", "phase": "hand-over"})
    'hand-over'
    """
    phase = str(run["phase"] or "")
    return "" if phase in ("rounds", run["status"]) else phase


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a run; empty where it is not there yet."""
    try:
        found: Any = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Have a run tell ``state`` of itself, as of now."""
    write_text(folder / STATE, json_text({**state, "updated": time.time()}) + "\n")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` of a run; a last line that is being written is left out."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    rows: list[dict[str, Any]] = []
    for line in text.splitlines(keepends=True):
        try:
            row: Any = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def bytes_text(size: float) -> str:
    """
    >>> bytes_text(512), bytes_text(5_400_000)
    ('512 B', '5.4 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def ago_text(moment: float | None, *, now: float) -> str:
    """
    >>> ago_text(1000.0, now=1075.0), ago_text(None, now=0.0)
    ('1 min ago', 'never')
    """
    if moment is None:
        return "never"
    seconds = max(0.0, now - moment)
    for size, word in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {word} ago"
    return f"{int(seconds)} s ago"


def _of_run(run: Mapping[str, Any] | None, site: str) -> dict[str, Any]:
    if run is None:
        return {"epsilon": None, "last": None, "loss": None, "refusals": 0}
    last = "accepted" if site in run["accepted"] else run["rejected"].get(site)
    return {
        "epsilon": run["epsilon"].get(site),
        "last": last,
        "loss": run["site_losses"].get(site, {}).get("loss"),
        "refusals": len(run["refusals"].get(site, ())),
    }


def _gone(folder: Path) -> InterruptedRunError:
    return InterruptedRunError(
        "the run's process is gone",
        given=folder.name,
        expected="a process that works until the run ends",
        remedy=again_command(folder),
    )


def _released(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("released") or {}


def _refusals(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each site the rounds in which its answer did not count, with the reason."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for site, reason in sorted((row.get("rejected") or {}).items()):
            found.setdefault(site, []).append({"round": row["round"], "reason": reason})
    return found


def _valid_until(home: Home) -> datetime | None:
    paths = home.certificates
    try:
        return min(
            load_pem_x509_certificates(path.read_bytes())[0].not_valid_after_utc
            for path in (paths.server, paths.authority)
        ).astimezone(UTC)
    except (OSError, ValueError):
        return None
