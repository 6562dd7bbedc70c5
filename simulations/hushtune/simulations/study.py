"""One simulated study: federate, compare, save, show."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from hushtune.client.app import app as client_app
from hushtune.client.site import close_sites
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, dump_toml, loads_config, replace, stored_config
from hushtune.common.errors import (
    CheckpointError,
    ConfigError,
    HushtuneError,
    OutputExistsError,
)
from hushtune.common.files import check_writable, read_json, read_text, write_errors, write_text
from hushtune.common.planning import least_sites, site_plans
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.tasks.workspace import Workspace, check_sizes, open_workspace, resolve
from hushtune.common.tuning import give_back_freed_memory
from hushtune.server.app import checkpoint_folder, federate
from hushtune.server.federation import check_sites
from hushtune.server.strategy import FederationResult
from hushtune.simulations import attacks, engine, outputs
from hushtune.simulations.agreement import check_quorum, check_sites_open, refusals
from hushtune.simulations.baselines import compare, trained_baselines
from hushtune.simulations.cautions import cautions
from hushtune.simulations.judge import Judge, check_judged
from hushtune.simulations.ledgers import own_charges
from hushtune.simulations.observer import Observer, Silent
from hushtune.simulations.outputs import METRICS
from hushtune.simulations.own_models import final_figures
from hushtune.simulations.privacy_report import tell_so_far
from hushtune.simulations.samples import samples

DATA = "data.json"
OWN = frozenset(
    f"{CONFIG} {METRICS} summary.json privacy.json privacy.md privacy.html curve.png sites.png "
    "adapter checkpoint ledger own samples.md".split()
)
"""All that a run writes into its folder; a folder with anything else is never replaced."""
_BEGIN_ANEW = "put the file back from a backup, or begin a new run in another folder"


def run(
    config: RunConfig,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run one study into the folder ``out`` and return its summary (``summary.json``).

    ``resume`` goes on from the folder's last checkpoint, bit for bit but for privacy noise;
    a run that is finished is left as it is, and one that ``flwr run`` finished gets its report.
    ``overwrite`` replaces a run that is there. Raises HushtuneErrors; whatever is wrong with data,
    model or plan is found before anything is written.
    """
    began = time.perf_counter()
    if resume and overwrite:
        raise ConfigError(
            "a run is either resumed or replaced", given="--resume --overwrite", expected="one"
        )
    observer = observer or Silent()
    close_sites()  # of an earlier run in this process, whose ledgers may be gone
    folder = Path(out).resolve()
    config, plans = checked(_as_before(config, folder) if resume else config)
    context = RunContext(config, folder)
    with write_errors(folder):
        _check_folder(context, resume=resume, overwrite=overwrite)
    for place in (folder, config.simulation.ledgers):
        if place is not None:
            check_writable(place)
    workspace = open_workspace(config, observer.preparing, layers=config.simulation.baselines)
    _check_data(context, workspace, resume=resume)
    shown = outputs.shown_charges(context) if resume else {}
    check_sites_open(context, workspace.initial_state, shown)
    if resume and (summary := outputs.finished(context)) is not None:
        observer.nothing_left()
        return summary
    for told in cautions(config):
        observer.warning(**told)
    if not resume:  # there a round that was charged already is answered at no charge
        asked = _asked(config, plans, workspace.initial_state)
        observer.refusing(asked)
        # A finished run is not given up for one that cannot finish.
        check_quorum(asked, until=None if overwrite else 1)
    if overwrite and (forgotten := own_charges(folder)):
        observer.forgetting(forgotten)
    _prepare_folder(context, overwrite=overwrite)
    _keep_data(context, workspace)
    workspace.warm(features=config.train.warmup_rounds > 0 or config.simulation.baselines)
    prepared = time.perf_counter()

    judge = Judge(context, workspace, observer)
    try:
        result = run_federation(context, workspace, judge=judge, resume=resume)
    except HushtuneError as error:  # such as a spent budget: what was released until then is told
        tell_so_far(context, error)
        raise
    federated = time.perf_counter()
    give_back_freed_memory()
    table = compare(
        config,
        workspace=workspace,
        federate=lambda other, place: run_federation(other, place).state,
        kept=checkpoint_folder(context.out) / "baselines.json",
        observer=observer,
    )
    final, ours = final_figures(context, workspace, result, judged=judge.test_figures(result.state))
    table |= ours
    answers, ended = samples(context, workspace, result), time.perf_counter()
    of_rounds = [row["seconds"]["training"] for row in result.history]
    before, training = sum(of_rounds[: judge.already]), sum(of_rounds[judge.already :])
    seconds = {
        "total": ended - began,
        "preparation": prepared - began,
        "training": training,
        "evaluation": judge.seconds,
        "orchestration": federated - prepared - training - judge.seconds,
        "baselines": ended - federated,
    }
    # What a finished run took is on record; of one that was stopped, its rounds' training is.
    earlier = outputs.earlier_seconds(context) or {"total": before, "training": before}
    return outputs.write_all(
        outputs.FinishedRun(
            context=context,
            workspace=workspace,
            result=result,
            table=table,
            final=final,
            seconds={key: spent + earlier.get(key, 0.0) for key, spent in seconds.items()},
            samples=answers,
        )
    )


def checked(config: RunConfig) -> tuple[RunConfig, dict[str, PrivacyPlan]]:
    """The resolved configuration and each site's plan; raises what is found without the model."""
    config = resolve(config)
    check_sizes(config)
    plans = site_plans(config)
    check_sites(config, plans, config.data.public_sizes)
    if config.simulation.baselines:
        for baseline in trained_baselines(config).values():
            site_plans(baseline)  # one that cannot be had is found now, and not after the training
    return config, plans


def _asked(
    config: RunConfig, plans: Mapping[str, PrivacyPlan], state: AdapterState
) -> dict[str, Any]:
    """What the sites would refuse, and how many are needed."""
    quorum, quorum_setting = least_sites(config)
    return {
        "sites": config.data.public_sizes,
        "refusals": refusals(config, plans, state),
        "quorum": quorum,
        "quorum_setting": quorum_setting,
    }


def run_federation(
    context: RunContext,
    workspace: Workspace,
    *,
    judge: Judge | None = None,
    resume: bool = False,
) -> FederationResult:
    """The federation of a run, on the engine that its configuration names."""
    results: list[FederationResult] = []

    def serve(grid: Grid) -> None:
        results.append(
            federate(context, grid, initial=workspace.initial_state, on_round=judge, resume=resume)
        )

    if judge is not None:
        judge.begin(resume)
    config = context.config
    start = (
        engine.run_on_flower
        if config.simulation.engine == "flower"
        else partial(
            engine.run_in_process,
            together=config.speed.together,
            most_rows=config.train.microbatch,
        )
    )
    attack = context.config.simulation.attack
    start(
        serve,
        client_app if attack == attacks.NONE else attacks.attacking(client_app),
        num_sites=len(context.config.data.public_sizes),
        run_config=run_config(context.config, context.out),
    )
    return results[0]


def _as_before(config: RunConfig, folder: Path) -> RunConfig:
    """What the machine chose when the run began stays chosen, should it measure otherwise now."""
    path = folder / CONFIG
    if config.model.precision != "auto" or not path.is_file():
        return config
    stored = loads_config(read_text(path, remedy=_BEGIN_ANEW))
    return replace(config, {"model.precision": stored.model.precision})


def _check_folder(context: RunContext, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else, before anything long or anything written."""
    out = context.out
    file = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if file is not None:
        raise OutputExistsError(
            "the output cannot be a folder: there is a file of that name",
            given=str(file),
            remedy="name another folder",
        )
    ours = stored_config(out) is not None
    foreign = sorted({path.name for path in out.iterdir()} - OWN) if out.is_dir() else []
    if resume:
        if not ours:
            raise CheckpointError(
                "there is no run to resume", given=str(out), remedy="leave --resume out"
            )
        # The checkpoint's own copy, as config.toml may have been edited since the run began.
        kept = next(p for p in (checkpoint_folder(out) / CONFIG, out / CONFIG) if p.is_file())
        stored = loads_config(read_text(kept, remedy=_BEGIN_ANEW))
        if stored != context.config:
            raise CheckpointError(
                "the folder's run has other settings, so it cannot go on with these",
                given=outputs.difference(stored, context.config),
                expected="the settings that the run began with",
                remedy="to change settings, begin anew: --overwrite in place of --resume, or "
                f"another --out; to go on unchanged: hushtune simulate --config "
                f"{shlex.quote(str(kept))} --out {shlex.quote(str(out))} --resume",
            )
        return
    if out.is_dir() and any(out.iterdir()):
        if overwrite and ours and not foreign:
            return
        raise OutputExistsError(
            "the output folder is not empty",
            given=str(out),
            expected="a new folder",
            remedy="--resume goes on with the run in it, --overwrite replaces it"
            if ours and not foreign
            else f"name another folder: this one holds what is no run's, such as {foreign[0]}"
            if foreign
            else "name another folder, or remove this one: its run never began",
        )


def _check_data(context: RunContext, workspace: Workspace, *, resume: bool) -> None:
    """A run goes on with the rows that it began with, or not at all; some need validation rows."""
    check_judged(context.config, workspace)
    path = checkpoint_folder(context.out) / DATA
    if not resume or not path.is_file():
        return
    before = read_json(path, remedy=_BEGIN_ANEW)
    for site in sorted(context.config.data.public_sizes):
        if before.get(site) != workspace.data.used(site):
            raise CheckpointError(
                f"the rows of site {site} changed since the run began, so it cannot go on",
                remedy="put the rows back, or begin a new run in another folder",
            )


def _keep_data(context: RunContext, workspace: Workspace) -> None:
    sites = sorted(context.config.data.public_sizes)
    found = {site: workspace.data.used(site) for site in sites}
    write_text(checkpoint_folder(context.out) / DATA, json.dumps(found, indent=1) + "\n")
    write_text(checkpoint_folder(context.out) / CONFIG, dump_toml(context.config))


def _prepare_folder(context: RunContext, *, overwrite: bool) -> None:
    out = context.out
    if overwrite and out.is_dir():
        for path in out.iterdir():  # a run's own files alone, as _check_folder has seen to
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / CONFIG).is_file():
        write_text(out / CONFIG, dump_toml(context.config))
