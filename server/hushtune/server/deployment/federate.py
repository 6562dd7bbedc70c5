"""A run of real sites: the ServerApp's part, from the enrolled sites to the hand-over.

It runs in a process that the SuperLink starts, which knows the coordinator's folder by an
environment variable. What happens is told in the run's folder, where `hushtune server run` and the
status page read it: ``state.json``, ``metrics.jsonl`` (a row a round) and, at the end, the adapter,
the sites' receipts and the federation's statement.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid

from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG
from hushtune.common.deployment import ANSWER_SECONDS, CONNECT_SECONDS, RESUME
from hushtune.common.errors import HushtuneError, InterruptedRunError, QuorumError
from hushtune.common.files import write_errors, write_text
from hushtune.common.json_text import json_text
from hushtune.common.lora_files import plain_adapter, save_adapter
from hushtune.common.model import AdaptedModel
from hushtune.common.planning import site_plans
from hushtune.common.run_context import TOML, RunContext, read_run_config
from hushtune.common.signing import load_signing_key
from hushtune.common.tasks.assets import public_name, resolve_model
from hushtune.common.tasks.base_model import adapted_model
from hushtune.common.tasks.kinds.registry import head_for, num_outputs
from hushtune.server.app import checkpoint_folder, federate
from hushtune.server.checkpoint import exists, load
from hushtune.server.deployment.enrol import Enrolled
from hushtune.server.deployment.grid import PollingGrid
from hushtune.server.deployment.handed_over import again_command
from hushtune.server.deployment.handover import hand_over
from hushtune.server.deployment.home import FOLDER_VARIABLE, open_home
from hushtune.server.deployment.logs import RunLog, tell
from hushtune.server.deployment.run_process import SERVER_PROCESS, process_start, server_alive
from hushtune.server.deployment.run_settings import sites_of_run
from hushtune.server.deployment.status import METRICS, error_fields, write_state
from hushtune.server.federation import check_sites
from hushtune.server.roll_call import RollCall
from hushtune.server.strategy import RoundResult

RUN_LOG = "run.jsonl"
"""In the folder flower/: what is told of each run, with the fields run, round and site."""
_POLL_SECONDS = 0.5
log = logging.getLogger(__name__)


def main(grid: Grid, context: Context) -> None:
    """Run a Flower run's configuration with the enrolled sites; raises what ends it."""
    run = read_run_config(context.run_config)
    told = _Told(run)
    try:
        _run(PollingGrid(grid), context, run, told)
    except BaseException as error:
        told.failed(error)
        raise
    finally:
        told.log.close()


def _run(grid: Grid, context: Context, run: RunContext, told: _Told) -> None:
    home = open_home(Path(os.environ[FOLDER_VARIABLE]))
    told.log.open(home.flower / RUN_LOG)
    raw = context.run_config
    answer, connect = float(raw[ANSWER_SECONDS]), float(raw[CONNECT_SECONDS])
    config, resume = run.config, str(raw[RESUME]) == "true"
    again = again_command(run.out)
    sites = sites_of_run(config, home)
    check_sites(config, site_plans(config), config.data.public_sizes)
    model = loaded_model(config)
    write_text(run.out / CONFIG, str(raw[TOML]))  # as it was signed
    told.began(resume=resume)
    result = federate(
        run,
        grid,
        initial=lora.initial_state(model, seed=config.seed),
        on_round=told.round,
        resume=resume,
        roll=_present(sites, config, patience=connect, told=told, again=again),
        timeout=answer,
        heads=home.folder / "heads",
    )
    save_adapter(
        model,
        plain_adapter(result.state),
        run.out / "adapter",
        base_name=public_name(config.model.name),
    )
    told.phase("hand-over")
    hand_over(
        grid,
        {name: site.node for name, site in sites.items()},
        run=run,
        toml=str(raw[TOML]),
        result=result,
        key=load_signing_key(home.signing_key),
        federation=home.settings.name,
        cards={name: site.card for name, site in sites.items()},
        timeout=answer,
        patience=connect,
        waiting=lambda away: told.phase(f"hand-over, waiting for {', '.join(away)}"),
    )
    told.finished()


def loaded_model(config: RunConfig) -> AdaptedModel:
    """The run's model, which needs no rows."""
    source = str(resolve_model(config.model.name))
    labels = config.data.labels or ()
    return adapted_model(
        config,
        source,
        labels,
        head=head_for(config.task, config.model),
        num_outputs=num_outputs(config.task, labels),
        pad_id=None,
    )


def _present(
    sites: Mapping[str, Enrolled], config: RunConfig, *, patience: float, told: _Told, again: str
) -> Callable[[Grid], RollCall]:
    """Who is connected when a round begins: all, or as many as have come when patience ends.

    A site that has left is waited for in its first round without it only, and taken in again
    whenever it is back. A node is a site by the key that it was enrolled with, never by what it
    says. QuorumError where too few are there.
    """
    gone: set[str] = set()
    quorum = config.simulation.quorum

    def roll(grid: Grid) -> RollCall:
        deadline = time.monotonic() + patience
        while True:
            online = set(grid.get_node_ids())
            nodes = {name: site.node for name, site in sites.items() if site.node in online}
            told.connected(sorted(nodes))
            missing = sorted(set(sites) - set(nodes))
            if len(nodes) >= quorum and set(missing) <= gone:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        gone.clear()
        gone.update(missing)
        if len(nodes) < quorum:
            raise QuorumError(
                "fewer sites are connected than the quorum",
                given=f"{len(nodes)} of {len(sites)}; missing: {', '.join(missing)}",
                expected=f"at least {quorum} (simulation.quorum)",
                remedy=f"ask the sites that are missing, then {again}",
            )
        for name in missing:
            log.warning("going on without %s: not connected", name, extra={"site": name})
        return RollCall(nodes, dict.fromkeys(missing, "not connected"))

    return roll


class _Told:
    """What a run tells of itself in its folder, and in the log."""

    def __init__(self, run: RunContext) -> None:
        self._run, self.log = run, RunLog(run.out.name)
        self._state: dict[str, Any] = {
            "status": "running",
            "phase": "preparation",
            "pid": os.getpid(),
            "process": process_start(os.getpid()),
            "server": os.environ.get(SERVER_PROCESS),
            "round": 0,
            "rounds": run.config.train.rounds,
            "sites": sorted(run.config.data.public_sizes),
            "connected": [],
            "began": time.time(),
            "error": None,
        }
        self._write()

    def began(self, *, resume: bool) -> None:
        """Before the first round; the rows of rounds that a checkpoint has are kept."""
        folder = checkpoint_folder(self._run.out)
        rows = load(folder).history if resume and exists(folder) else ()
        write_text(self._run.out / METRICS, "".join(json_text(row) + "\n" for row in rows))
        self._state["round"] = len(rows)
        self._next(len(rows))
        tell(log, "began", resumed=resume, rounds=self._state["rounds"])
        self.phase("rounds")

    def phase(self, name: str) -> None:
        """What is being done now."""
        self._state["phase"] = name
        self._write()

    def connected(self, sites: list[str]) -> None:
        """Which sites are connected, where that has changed."""
        if sites != self._state["connected"]:
            self._state["connected"] = sites
            self._write()

    def round(self, outcome: RoundResult) -> Mapping[str, Any]:
        """After each round, before its checkpoint."""
        path = self._run.out / METRICS
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(json_text(outcome.row) + "\n")
        self._state["round"], self._state["run"] = outcome.round, outcome.run
        self._write()
        row = outcome.row
        tell(log, "round", accepted=row.get("accepted"), rejected=row.get("rejected"))
        self._next(outcome.round)
        return {}

    def finished(self) -> None:
        """The run is over, and handed over."""
        self._state["status"] = "finished"
        self.phase("finished")
        tell(log, "finished")

    def failed(self, error: BaseException) -> None:
        """The run has ended without a result."""
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            error = self._interrupted()
        elif not isinstance(error, HushtuneError):
            error = HushtuneError(f"{type(error).__name__}: {error}")
        interrupted = isinstance(error, InterruptedRunError)
        self._state["status"] = "interrupted" if interrupted else "failed"
        self._state["error"] = error_fields(error)
        self._write()
        told: dict[str, Any] = self._state["error"]
        log.error("failed", extra={"fields": told})

    def _interrupted(self) -> InterruptedRunError:
        """Flower ends a ServerApp by a signal: where the run or the server is stopped."""
        state = self._state
        return InterruptedRunError(
            "the run was stopped before its end",
            given=f"after round {state['round']} of {state['rounds']}",
            expected="a run and a server that are left to work until the end",
            remedy=again_command(self._run.out),
        )

    def _next(self, done: int) -> None:
        """Lines are of the round after this one from now on, or of none after the last."""
        self.log.round = done + 1 if done < self._state["rounds"] else None

    def _write(self) -> None:
        if not server_alive(self._state["server"]):
            return  # The run may be taken up again, and its folder another process's.
        write_state(self._run.out, self._state)
