"""The Flower ServerApp: configuration -> strategy -> run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig, SimulationConfig, SpeedConfig, TrainConfig
from hushtune.common.config_io import config_hash, dump_toml
from hushtune.common.errors import ConfigError, OutputExistsError
from hushtune.common.files import write_text
from hushtune.common.lora_files import plain_adapter, save_adapter
from hushtune.common.planning import site_plans
from hushtune.common.run_context import RunContext, read_run_config
from hushtune.common.tasks.workspace import check_sizes, open_workspace
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.checkpoint import exists, load
from hushtune.server.federation import check_sites
from hushtune.server.roll_call import RollCall
from hushtune.server.strategy import FederatedStrategy, FederationResult, RoundResult

_app = ServerApp()
app = _app

OnRound = Callable[[RoundResult], Mapping[str, Any]]


def federate(
    run: RunContext,
    grid: Grid,
    *,
    initial: AdapterState,
    on_round: OnRound | None = None,
    resume: bool = False,
    roll: Callable[[Grid], RollCall] | None = None,
    timeout: float = 3600.0,
    heads: Path | None = None,
) -> FederationResult:
    """Run a federation over a grid, from its last checkpoint if asked to resume.

    The run's name follows from its configuration, but for the engine and what it shows: without
    privacy the sites' batches are drawn from the seed and this name, so that a run can be repeated,
    on either engine. Where ledgers outlive the run it is a name that no other run has.
    ``roll``: who is there, asked before each round; ``timeout``: seconds that sites have to answer;
    ``heads``: where the last charge that each site has shown is kept for later runs.
    """
    config = run.config
    folder = checkpoint_folder(run.out)
    identity = config_hash(config)
    # A run that was stopped while it prepared has no checkpoint yet, and begins.
    checkpoint = load(folder, config_hash=identity) if resume and exists(folder) else None
    strategy = FederatedStrategy(
        run=new_run_name(config) if checkpoint is None else checkpoint.run,
        config=config,
        config_hash=identity,
        plans=site_plans(config),
        sizes=config.data.public_sizes,
        aggregator=make_aggregator(config.aggregation, seed=config.seed),
        checkpoint_dir=folder,
        on_round=on_round,
        timeout=timeout,
        roll=roll,
        heads=heads,
    )
    return strategy.run(grid, initial, resume=checkpoint)


def run_name(config: RunConfig) -> str:
    """What a run is called in its messages and ledgers.

    Nothing that only saves time is in it: batches drawn from the name stay those they are.
    """
    cache = TrainConfig.model_fields["cache_megabytes"].default
    plain = config.model_copy(
        update={
            "simulation": SimulationConfig(),
            "speed": SpeedConfig(),
            "train": config.train.model_copy(update={"cache_megabytes": cache}),
        }
    )
    return config_hash(plain)[:16]


def new_run_name(config: RunConfig) -> str:
    """The name of a run that begins: where ledgers outlive it, one that no other run has."""
    name = run_name(config)
    simulation, of_sites = config.simulation, config.data.source == "sites"
    outlive = of_sites or simulation.ledgers is not None or simulation.policies is not None
    return f"{name}-{uuid4().hex[:12]}" if outlive else name


def checkpoint_folder(out: Path) -> Path:
    """Where a run keeps its checkpoint."""
    return out / "checkpoint"


@_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of a Flower run configuration and save its adapter.

    This is what ``flwr run .`` does with the same apps. Evaluation, baselines and the privacy
    statement need what lies at the sites, which a server does not see: of simulated sites
    ``hushtune simulate --out DIR --resume`` adds them to the folder of the finished run.
    """
    run = read_run_config(context.run_config)
    if run.config.data.source == "sites":
        from hushtune.server.deployment.federate import main as of_institutions

        of_institutions(grid, context)
        return
    if run.config.simulation.attack != "none":
        raise ConfigError(
            "attackers are simulated by hushtune's own command alone: here no site would attack",
            given=f"simulation.attack = {run.config.simulation.attack!r}",
            expected="'none'",
            remedy="run the configuration with hushtune simulate",
        )
    if run.out.exists() and (not run.out.is_dir() or any(run.out.iterdir())):
        raise OutputExistsError(
            "the output folder is not empty",
            given=str(run.out),
            remedy="--run-config 'out=\"/another/folder\"'",
        )
    check_sizes(run.config)
    check_sites(run.config, site_plans(run.config), run.config.data.public_sizes)
    workspace = open_workspace(run.config)
    write_text(run.out / "config.toml", dump_toml(run.config))
    result = federate(run, grid, initial=workspace.initial_state)
    save_adapter(
        workspace.task.model,
        plain_adapter(result.state),
        run.out / "adapter",
        base_name=workspace.base_name,
    )
