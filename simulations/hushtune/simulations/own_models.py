"""What each simulated site ends up with, where that is not the global model alone."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hushtune.client.own_model import has_own_part, of_sites, own_adapter
from hushtune.client.site import simulated_ledger, site_memory
from hushtune.common.adapter import AdapterState
from hushtune.common.adapter_folder import write_adapter_folder
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import ConfigError, MissingFileError
from hushtune.common.files import read_text
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED, site_rank
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import Trust
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.base import Metrics
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.app import checkpoint_folder
from hushtune.server.checkpoint import exists, load
from hushtune.server.strategy import FederationResult
from hushtune.simulations import saved
from hushtune.simulations.baselines import site_metrics


def has_own_models(config: RunConfig) -> bool:
    """Whether sites have models of their own beside the global one."""
    return config.personal.method != "none" or bool(config.adapter.ranks)


def site_states(context: RunContext, state: AdapterState, *, run: str) -> dict[str, AdapterState]:
    """The adapter of each site, by name: the global one at the site's rank, with what the site
    keeps for itself. ``run``: the run's name in messages."""
    config = context.config
    give = SERVER_RULES[config.aggregation.rule].give
    found: dict[str, AdapterState] = {}
    for site in sorted(config.data.public_sizes):
        given = give(state, site_rank(config, site))
        if has_own_part(config):
            ledger = Ledger(simulated_ledger(context, site)) if of_sites(config) else None
            entries = () if ledger is None else ledger.entries()
            given = own_adapter(given, site_memory(context, site), config, entries, run=run)
        found[site] = given
    return found


def global_metrics(
    context: RunContext, workspace: Workspace, state: AdapterState, part: str, *, run: str
) -> Mapping[str, Metrics]:
    """Figures of the global model on each site's rows and on all of them.

    Where a rule leaves a part of every model at its site, each site's rows are judged with it.
    """
    config = context.config
    if RULES[config.aggregation.rule].kept:
        return own_metrics(context, workspace, state, part, run=run)
    return site_metrics(workspace, config, state, part)


def own_metrics(
    context: RunContext, workspace: Workspace, state: AdapterState, part: str, *, run: str
) -> Mapping[str, Metrics]:
    """Figures of each site's own model on its own rows, and of all of them together."""
    states = site_states(context, state, run=run)
    rows = {site: workspace.rows(site, part) for site in states}
    models = {site: (states[site], found) for site, found in rows.items() if len(found)}
    return workspace.task.metrics_of_models(models, together=POOLED)


def final_figures(
    context: RunContext,
    workspace: Workspace,
    result: FederationResult,
    *,
    judged: Mapping[str, Metrics] | None = None,
) -> tuple[Mapping[str, Metrics], dict[str, Mapping[str, float]]]:
    """The final model's figures on test rows, and the run's own rows of the result table.

    ``judged``: those figures, where they were taken when the last round was over.
    """
    final = judged
    if final is None:
        final = global_metrics(context, workspace, result.state, "test", run=result.run)
    metric = context.config.task.main_metric
    table = {"federated": {name: row[metric] for name, row in final.items()}}
    if has_own_models(context.config):
        own = own_metrics(context, workspace, result.state, "test", run=result.run)
        table["personal"] = {name: row[metric] for name, row in own.items()}
    return final, dict[str, Mapping[str, float]](table)


def export_own(folder: Path, site: str, to: Path, *, merged: bool) -> Path:
    """Write a site's own model from a finished run's folder as ``saved.export`` would."""
    with own_folder(folder, site) as adapter:
        return saved.export(adapter, to, merged=merged)


@contextmanager
def own_folder(folder: Path, site: str) -> Generator[Path]:
    """A folder, for a while, with a site's own adapter from a finished run's folder.

    Raises ConfigError where there is none, or none that may be given away.
    """
    if not (folder / CONFIG).is_file() or not exists(checkpoint_folder(folder)):
        raise MissingFileError(
            "a site's own model is in the folder of a run",
            given=str(folder),
            expected="a folder that hushtune simulate --out made",
        )
    config = loads_config(read_text(folder / CONFIG, remedy="name the folder of a whole run"))
    context, names = RunContext(config, folder.resolve()), sorted(config.data.public_sizes)
    if not has_own_models(config) and not RULES[config.aggregation.rule].kept:
        raise ConfigError(
            "the sites of this run have no models of their own: there is one for all",
            given=f"--site {site}",
            expected="a run with adapter.ranks, personal.method or aggregation.rule = fedsa",
            remedy="leave --site out",
        )
    if site not in names:
        raise ConfigError(
            "the run has no site of this name",
            given=site,
            expected=", ".join(names),
            remedy="name one of these with --site",
        )
    if RULES[config.aggregation.rule].kept and config.privacy.trust not in (Trust.SITE, Trust.OFF):
        raise ConfigError(
            "the site's own part of the model was trained without noise, which only the sum over "
            "clients has: it is for the site alone",
            given=f"aggregation.rule = {config.aggregation.rule!r}, "
            f"privacy.trust = {config.privacy.trust!r}",
            expected='privacy.trust = "site", or "off"',
            remedy="export the part that all sites share, without --site",
        )
    last = load(checkpoint_folder(folder))
    workspace = open_workspace(config)
    state = site_states(context, last.final, run=last.run)[site]
    card = (saved.adapter_folder(folder) / "README.md").read_text(encoding="utf-8")
    note = (
        f"\n> The model of site {site} alone, as its run left it there. The figures below are of "
        "all sites' models.\n"
    )
    front, mark, rest = card.partition("\n---\n")
    with TemporaryDirectory(prefix="hushtune-") as place:
        write_adapter_folder(
            workspace,
            state,
            Path(place) / "adapter",
            card=f"{front}{mark}{note}{rest}" if mark else note + card,
            model=config.model,
            adapter=config.adapter,
            task=config.task,
            data=config.data,
        )
        yield Path(place) / "adapter"
