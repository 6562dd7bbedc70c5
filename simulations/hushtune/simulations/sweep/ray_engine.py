"""Points as tasks of Ray, on this machine or a cluster.

Each node has hushtune installed, and the sweep's folder at the same path (a shared file system).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hushtune.common.errors import RunError
from hushtune.common.tasks.shared_states import share_states
from hushtune.simulations.sweep.execute import SHARED_MEGABYTES, Outcome, Task, execute, task_from
from hushtune.simulations.sweep.points import Point
from hushtune.simulations.sweep.workers import SPARE, Event

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def run_point(text: str) -> str:
    """What a Ray worker does: the outcome of a task, both as JSON.

    Ray keeps its processes, so that points which one of them has in turn share what is equal.
    """
    share_states(SHARED_MEGABYTES)
    return json.dumps(execute(task_from(text), lambda event: None))


def run_on_ray(
    points: Sequence[Point], tasks: Sequence[Task], *, jobs: int | None, address: str | None
) -> Generator[Event]:
    """Run all points on the cluster at ``address``, or on one that is started here; yields each
    outcome as it comes. ``jobs``: how many at once; None for one a core of the cluster, as far as
    the memory of its nodes goes round by what the first point took."""
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError:
        raise RunError(
            "--engine ray needs Ray",
            given="ray is not installed",
            remedy="pip install 'hushtune[ray]'",
        ) from None
    ours = not ray.is_initialized()
    if ours:
        try:
            # Modules that were put on this process's path are found by the workers as well.
            paths = {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": paths})
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RunError(
                "Ray cannot be reached",
                given=f"{address or 'this machine'}: {str(error)[:200]}",
                remedy="`ray status` at that address says whether it runs",
            ) from None
    remote: Any = ray.remote(num_cpus=1, max_retries=0)(run_point)
    waiting = list(zip(points, tasks, strict=True))
    running: dict[Any, tuple[Point, Task]] = {}
    peak = 0.0
    try:
        while waiting or running:
            allowed = jobs or (len(points) if peak else 1)
            needs = 0 if jobs else needed(peak, ray.nodes())
            while waiting and len(running) < allowed:
                point, task = waiting.pop(0)
                running[remote.options(memory=needs).remote(task.as_json())] = (point, task)
            ready, _ = ray.wait(list(running), num_returns=1)
            point, task = running.pop(ready[0])
            try:
                outcome: Outcome = json.loads(ray.get(ready[0]))
            except RayError as error:
                outcome = _failed(
                    RunError(
                        "Ray lost this point",
                        given=_COLOURS.sub("", str(error))[-400:],
                        remedy="--retry goes on with it",
                    )
                )
            if outcome["status"] == "done" and not Path(task.folder, "summary.json").is_file():
                outcome = _failed(_not_shared(task))
            if outcome["status"] == "done":
                peak = max(peak, outcome["peak_megabytes"])
            yield point, outcome, True
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()


def needed(peak: float, nodes: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that Ray keeps for a point of ``peak`` megabytes; no more than its largest node has,
    as it would wait for ever.

    >>> needed(800, [{"Alive": True, "Resources": {"memory": 2.0**31}}]) >> 20
    1000
    >>> needed(1e9, [{"Alive": True, "Resources": {"memory": 2.0**31}}]) >> 20
    2048
    """
    has = [node["Resources"].get("memory", 0.0) for node in nodes if node["Alive"]]
    return int(min(max(has, default=0.0), peak * 2**20 / SPARE))


def _not_shared(task: Task) -> RunError:
    return RunError(
        "a node of the cluster wrote the run where this machine does not see it",
        given=task.folder,
        expected="a folder that all nodes share",
        remedy="name such a folder in --out",
    )


def _failed(error: RunError) -> Outcome:
    return {"status": "failed", "error": {"code": error.code, "text": str(error)}}
