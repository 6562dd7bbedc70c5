"""Starts a run of real sites at the running server, and follows it to its end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, config_hash, dump_toml, load_config, stored_config
from hushtune.common.deployment import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    RESUME,
    SIGNATURE,
    signed_run,
)
from hushtune.common.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    InterruptedRunError,
    OutputExistsError,
    RunError,
)
from hushtune.common.files import write_text
from hushtune.common.run_context import OUT, TOML
from hushtune.common.signing import load_signing_key, sign
from hushtune.server.deployment.bundle import build_bundle, write_app
from hushtune.server.deployment.control import control
from hushtune.server.deployment.follow import OnStatus, end_of, follow
from hushtune.server.deployment.handed_over import again_command, handed_over
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.lock import held
from hushtune.server.deployment.run_process import end_process
from hushtune.server.deployment.run_settings import check_config, sites_of_run
from hushtune.server.deployment.status import STATE, read_state, run_status, write_state

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

FLOWER_RUN = "flower.json"
"""In a run's folder: the number that Flower knows it by, and the bundle's sha256."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What is to be run.

    ``seconds``: how long sites have to answer a round, and to connect before one. ``fresh`` is
    False where a run goes on from its checkpoint.
    """

    config: RunConfig
    folder: Path
    fresh: bool
    answer_seconds: float
    connect_seconds: float

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name


def plan_launch(
    home: Home,
    config: RunConfig | None,
    *,
    name: str,
    resume: bool,
    answer_seconds: float = 3600.0,
    connect_seconds: float = 120.0,
) -> Launch:
    """What to run, checked; ``config`` may be left out where a run is resumed.

    Raises:
        OutputExistsError: there is a run of that name, and it is not to be resumed.
        CheckpointError: there is none to resume, or it has other settings.
        ConfigError: neither a configuration nor a run to resume; or the name is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "this is no name for a run",
            given=name,
            expected="letters, digits, dots, dashes and underscores; at most 63",
            remedy="--name another-name",
        )
    folder = home.runs / name
    there = folder.is_dir() and any(folder.iterdir())
    again = again_command(folder)
    if there and not resume:
        raise OutputExistsError(
            "a run of that name is there already",
            given=str(folder),
            expected="a new name",
            remedy=f"--name ANOTHER; or go on with it: {again}",
        )
    stored = stored_config(folder) if there else None
    if stored is not None and config is not None and config.model.precision == "auto":
        # What was measured when the run began: sites must be told, and signed, one precision.
        model = config.model.model_copy(update={"precision": stored.model.precision})
        config = config.model_copy(update={"model": model})
    if resume and stored is None:
        known = sorted(path.parent.name for path in home.runs.glob(f"*/{CONFIG}"))
        raise CheckpointError(
            "there is no run of that name to resume",
            given=name,
            expected=", ".join(known) or "there is no run yet",
            remedy="--name one of these, or leave --resume out",
        )
    if stored is not None and config is not None and config_hash(stored) != config_hash(config):
        raise CheckpointError(
            "the run was begun with other settings",
            given=config_hash(config)[:12],
            expected=f"{config_hash(stored)[:12]}, those in {folder / CONFIG}",
            remedy=f"leave the configuration out: {again}; or give a new run another --name",
        )
    settings = config or stored
    if settings is None:
        raise ConfigError(
            "there is nothing to run",
            expected="a configuration file, or --resume --name NAME",
            remedy=f"hushtune server run {home.folder} run.toml",
        )
    if settings.model.precision == "auto":
        from hushtune.common.tasks.workspace import resolve

        settings = resolve(settings)
    return Launch(
        config=settings,
        folder=folder,
        fresh=stored is None,
        answer_seconds=answer_seconds,
        connect_seconds=connect_seconds,
    )


def load_sites_config(path: Path, overrides: list[str]) -> RunConfig:
    """A configuration of a run of real sites; ConfigError for one that means something else."""
    config = load_config(path, overrides=overrides)
    check_config(config)
    return config


def launch(home: Home, plan: Launch, *, on_status: OnStatus | None = None) -> dict[str, Any]:
    """Start a run, or take up one that still goes on, and follow it; the status that it ended with.

    One that has ended is only handed over, to the sites of which there is no receipt, if any.

    Raises:
        BusyError: another run of this folder goes on.
        UnreachableError: the server does not run, or ended meanwhile.
        InterruptedRunError: Ctrl-C, after which the run is stopped and can be resumed.
        HushtuneError: what ended the run, of the class that the ServerApp told.
    """
    sites_of_run(plan.config, home)
    say = on_status or (lambda _: None)
    followed = _busy(home, "a `hushtune server run` that follows it")
    with held(home.flower / "run.lock", busy=followed), control(home) as client:
        _refuse_others(home, plan)
        found = run_status(plan.folder) if not plan.fresh else None
        if found is not None and found["status"] == "finished":
            if not handed_over(plan.folder, tuple(plan.config.data.public_sizes)).missing:
                say(found)
                return found
            _check_ended(plan)
        number = _still_running(client, plan, found)
        if number is None:
            number = _start(client, home, plan)
        try:
            return follow(client, plan.folder, number, say)
        except KeyboardInterrupt:
            _stop(client, number)
            raise InterruptedRunError(
                "interrupted, and the run is stopped",
                given=plan.name,
                remedy=again_command(plan.folder),
            ) from None


def run_settings(home: Home, plan: Launch, bundle: bytes) -> dict[str, str | float]:
    """Flower's run configuration: the settings, the signature over them and the bundle, the rest.

    Sites get all of it; what is not signed is of no meaning to them.
    """
    toml = dump_toml(plan.config)
    key = load_signing_key(home.signing_key)
    return {
        TOML: toml,
        OUT: str(plan.folder),
        SIGNATURE: sign(key, signed_run(bundle, toml)),
        RESUME: "" if plan.fresh else "true",
        ANSWER_SECONDS: plan.answer_seconds,
        CONNECT_SECONDS: plan.connect_seconds,
    }


def _start(client: ControlHttpClient, home: Home, plan: Launch) -> int:
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest  # pylint: disable=no-name-in-module
    from flwr.supercore.fab import Fab

    write_app(home.app)
    bundle = build_bundle(home.app)
    settings = run_settings(home, plan, bundle)
    write_text(plan.folder / CONFIG, str(settings[TOML]))  # as it is signed
    begun = {**read_state(plan.folder), "status": "starting", "error": None}
    begun |= {"pid": None, "process": None, "server": None}
    rounds, sites = plan.config.train.rounds, sorted(plan.config.data.public_sizes)
    begun |= {"rounds": rounds, "sites": sites, "connected": []}
    write_state(plan.folder, {"round": 0, **begun})
    digest = str(signed_run(bundle, "")["bundle"])
    asked = StartRunRequest(
        fab=fab_to_proto(Fab(digest, bundle, {})), override_config=user_config_to_proto(settings)
    )
    answer = client.StartRun(asked)
    if not answer.HasField("run_id"):
        raise RunError("Flower did not start the run", given=answer.note or "without a reason")
    told = {"run_id": str(answer.run_id), "bundle": digest}
    write_text(plan.folder / FLOWER_RUN, json.dumps(told) + "\n")
    return answer.run_id


def _still_running(
    client: ControlHttpClient, plan: Launch, found: Mapping[str, Any] | None
) -> int | None:
    """Flower's number of a run whose ServerApp still works; one that is left over is ended.

    Its process, too: it would write into the folder of the run that is begun after this.
    """
    if found is None:
        return None
    number = _number(plan.folder)
    over = number is None or end_of(client, number) is not None
    if found["status"] == "running" and not over:
        return number
    if number is not None and not over:
        _stop(client, number)
    end_process(read_state(plan.folder))
    return None


def _number(folder: Path) -> int | None:
    """Of the run that a folder is of; None where Flower does not know it yet."""
    try:
        told: Any = json.loads((folder / FLOWER_RUN).read_text(encoding="utf-8"))
        return int(told["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_ended(plan: Launch) -> None:
    """A run that has ended would begin anew without its checkpoint, and charge its sites again."""
    from hushtune.server.app import checkpoint_folder
    from hushtune.server.checkpoint import exists

    if not exists(checkpoint_folder(plan.folder)):
        raise CheckpointError(
            "the run has ended, and without its checkpoint it cannot be handed over again",
            given=f"no checkpoint in {plan.folder}",
            expected="the folder checkpoint, as the run has left it",
            remedy="put it back from a backup; or send the sites the folder adapter by hand",
        )


def _stop(client: ControlHttpClient, number: int) -> None:
    import httpx
    from flwr.proto.control_pb2 import StopRunRequest  # pylint: disable=no-name-in-module

    try:
        client.StopRun(StopRunRequest(run_id=number))
    except httpx.HTTPError:  # it is over, or so is the server
        return


def _refuse_others(home: Home, plan: Launch) -> None:
    for path in home.runs.glob(f"*/{STATE}"):
        other = path.parent
        status = run_status(other)["status"] if other != plan.folder else None
        if status == "running":
            raise _busy(home, f"{other.name}, whose ServerApp still works")
        if status == "interrupted":
            end_process(read_state(other))


def _busy(home: Home, given: str) -> BusyError:
    return BusyError(
        "a run of this folder goes on",
        given=given,
        expected="one at a time: sites train for one run at once",
        remedy=f"wait for it, or see hushtune server status {home.folder}",
    )
