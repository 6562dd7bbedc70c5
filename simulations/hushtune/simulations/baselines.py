"""What a federated private model is compared with, on the same rows, recipe and budget."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import cast

from hushtune.common.adapter import AdapterState
from hushtune.common.config import PersonalConfig, RunConfig, SimulationConfig
from hushtune.common.config_columns import COLUMNS, columns_known
from hushtune.common.errors import CheckpointError
from hushtune.common.files import read_json, write_text
from hushtune.common.kinds import higher_is_better
from hushtune.common.names import OF_TABLES
from hushtune.common.planning import POOLED, alone, head_only, not_private, on_columns, pooled
from hushtune.common.privacy.plan import Unit
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.base import Metrics
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.simulations.observer import Observer

Figures = Mapping[str, float]
"""The run's main metric on each site's test rows, and on all of them under ``POOLED``."""
Federate = Callable[[RunContext, Workspace], AdapterState]


def trained_baselines(config: RunConfig) -> dict[str, RunConfig]:
    """The runs to compare with, by name; the privacy of each is the federated run's."""
    # The sites' real budgets and policies are about the run itself, and so is an attack on it.
    plain = SimulationConfig()
    left_out = ("policies", "ledgers", "attack", "attackers", "attack_scale")
    own = config.simulation.model_copy(update={key: getattr(plain, key) for key in left_out})
    # What a site trains for itself alone is no part of what is compared.
    # Nobody judges their rounds: each goes through all of them.
    train = config.train.model_copy(
        update={"patience": None, "keep": "last", "watch": "loss", "min_improvement": 0.0}
    )
    config = config.model_copy(
        update={"simulation": own, "personal": PersonalConfig(), "train": train}
    )
    sites = sorted(config.data.public_sizes)
    head = {"head_private": head_only(config)} if config.task.of.has_head else {}
    head, tables = ({}, {}) if config.model.name == COLUMNS else (head, _on_columns(config))
    if Unit(config.privacy.unit) is Unit.CLIENT:
        # Alone or pooled there is no client that could hide among others.
        if head_only(config) == config:
            head = {}
        return {**head, "pooled": not_private(pooled(config)), **tables}
    return {
        **head,
        **{f"alone_private/{site}": alone(config, site) for site in sites},
        "pooled_private": pooled(config),
        "pooled": not_private(pooled(config)),
        **tables,
    }


def _on_columns(config: RunConfig) -> dict[str, RunConfig]:
    """A small network on the columns themselves, where what is public of them is known."""
    if not columns_known(config.task, config.data):
        return {}
    return {
        "columns_private": on_columns(config),
        "columns": on_columns(not_private(pooled(config))),
    }


def compare(
    config: RunConfig,
    *,
    workspace: Workspace,
    federate: Federate,
    kept: Path,
    observer: Observer,
) -> dict[str, Figures]:
    """Figures of every baseline; those that ``kept`` (a JSON file) has are not run again.

    Without ``simulation.baselines``, only the constant answer, and the base itself where it answers
    without a head of its own that is new.
    """
    table: dict[str, Figures] = {"majority": constant(workspace, config)}
    if config.simulation.baselines or not config.task.of.has_head:
        table["untrained"] = main_figures(workspace, config, workspace.initial_state)
    if not config.simulation.baselines:
        return table
    done = _kept(kept, {*config.data.public_sizes, POOLED})
    runs = trained_baselines(config)
    layers = _head_layers(workspace, runs)
    total = len(runs) + len(layers)

    def trained(name: str, baseline: RunConfig, *, judge_layer: int | None = None) -> None:
        """A baseline is its own study of the same rows: its ledger is not the run's."""
        if name not in done:
            with tempfile.TemporaryDirectory(prefix="hushtune-") as folder:
                same = baseline.model.name == config.model.name
                place = workspace if same else open_workspace(baseline)
                state = federate(RunContext(baseline, Path(folder)), place)
            done[name] = dict(main_figures(place, config, state))
            if judge_layer is not None:
                found = main_figures(place, config, state, part="validation")
                done[_of_layer(judge_layer)] = done[name]
                done[f"{_of_layer(judge_layer)}/validation"] = dict(found)
            write_text(kept, json.dumps(done, indent=1))
        table[name] = done[name]

    # Those of another model come last, so that nothing of this one has to be loaded again.
    own = {name: run for name, run in runs.items() if name not in OF_TABLES}
    for number, (name, baseline) in enumerate(own.items()):
        observer.comparing(name, number, total)
        if name == "pooled" and baseline == runs.get("pooled_private"):  # where privacy is off
            table[name] = table["pooled_private"]
            continue
        last = len(workspace.task.model.blocks) if name == "head_private" and layers else None
        trained(name, baseline, judge_layer=last)
    for number, layer in enumerate(layers):
        observer.comparing("head_best", len(own) + number, total)
        with workspace.task.reading(layer):  # in this process, whatever the run's engine
            trained(_of_layer(layer), _in_process(runs["head_private"]), judge_layer=layer)
    if layers:
        table |= {name: row for name, row in done.items() if name.startswith(_of_layer(""))}
        heads = heads_by_layer(table)
        sign = 1 if higher_is_better(config.task.main_metric) else -1
        best = max(heads, key=lambda layer: (sign * heads[layer]["validation"], layer))
        table["head_best"] = table[_of_layer(best)]
    for name in sorted(runs.keys() - own.keys()):
        observer.comparing(name, total - 1, total)
        trained(name, runs[name])
    observer.comparing("", total, total)
    return table


def _in_process(config: RunConfig) -> RunConfig:
    simulation = config.simulation.model_copy(update={"engine": "inprocess"})
    return config.model_copy(update={"simulation": simulation})


def _of_layer(layer: int | str) -> str:
    return f"head_layer/{layer}"


def _head_layers(workspace: Workspace, runs: Mapping[str, RunConfig]) -> Sequence[int]:
    """After how many blocks, but for all, a head is tried on frozen features.

    Each is trained with the run's own privacy. The choice among them is the researcher's, by
    validation rows: where rows may not be seen it would have to be paid for.
    """
    compared = "head_private" in runs and len(workspace.rows(POOLED, "validation"))
    return workspace.task.readable_layers if compared else ()


def heads_by_layer(table: Mapping[str, Figures]) -> dict[int, dict[str, float]]:
    """Of a head on each frozen layer the main metric on all sites' ``validation`` and ``test``
    rows, by the number of blocks below it; none where they were not compared."""
    start, end = _of_layer(""), "/validation"
    return {
        int(name.removeprefix(start).removesuffix(end)): {
            "validation": row[POOLED],
            "test": table[name.removesuffix(end)][POOLED],
        }
        for name, row in table.items()
        if name.startswith(start) and name.endswith(end)
    }


def _kept(path: Path, names: Set[str]) -> dict[str, dict[str, float]]:
    """The comparisons that are done already, each with a figure for every name."""
    if not path.is_file():
        return {}
    remedy = "remove it and go on with --resume: what is compared is then trained again"
    done = read_json(path, remedy=remedy)
    for name, row in done.items():
        keys = cast("dict[str, object]", row).keys() if isinstance(row, dict) else set[str]()
        whole = keys == names or (name.endswith("/validation") and POOLED in keys <= names)
        if not whole or not all(isinstance(value, float) for value in row.values()):
            raise CheckpointError(
                f"the file {path} is damaged",
                given=f"{name}: {row}"[:200],
                expected="a figure for each site and for all",
                remedy=remedy,
            )
    return done


def main_figures(
    workspace: Workspace, config: RunConfig, state: AdapterState, *, part: str = "test"
) -> Figures:
    """The main metric of one adapter on every site's rows and on all of them together."""
    figures = site_metrics(workspace, config, state, part)
    return {name: row[config.task.main_metric] for name, row in figures.items()}


def site_metrics(
    workspace: Workspace, config: RunConfig, state: AdapterState, part: str
) -> dict[str, Metrics]:
    """Metrics on one part of every site's rows and of all of them, from one pass over the rows."""
    names = [*sorted(config.data.public_sizes), POOLED]
    rows = {name: workspace.rows(name, part) for name in names}
    return workspace.task.metrics_by_group(state, {n: r for n, r in rows.items() if len(r)})


def constant(workspace: Workspace, config: RunConfig) -> Figures:
    """The best answer that looks at no input: the most frequent label, or the mean."""
    names = [*sorted(config.data.public_sizes), POOLED]
    found = workspace.task.constant_metrics(
        workspace.rows(POOLED, "train"), {name: workspace.rows(name, "test") for name in names}
    )
    return {name: row[config.task.main_metric] for name, row in found.items()}
