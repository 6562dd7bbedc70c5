"""Cross-validation: each fold is a run of its own, in a folder of its own, and all are summed up.

Folds are parts of each site's rows (K of them), or whole sites, of which one at a time takes no
part and is tested on. Each fold trains on nearly the same rows anew, so that what it costs in
privacy is paid again: all folds together cost what their ledgers add up to.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hushtune.client.site import simulated_ledger
from hushtune.common.config import RunConfig
from hushtune.common.config_io import dump_toml, loads_config, stored_config
from hushtune.common.errors import CheckpointError, ConfigError, OutputExistsError
from hushtune.common.files import read_json, read_text, write_text
from hushtune.common.json_text import json_text
from hushtune.common.kinds import higher_is_better
from hushtune.common.lora_rules import RULES
from hushtune.common.names import SEEN_BY
from hushtune.common.planning import cohort_of, site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent, Trust
from hushtune.common.privacy.report_site import of_run
from hushtune.common.privacy.statement_choice import not_run
from hushtune.common.privacy.statement_secure import of_whole_numbers
from hushtune.common.run_context import RunContext
from hushtune.common.site_files import site_stem
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server.app import checkpoint_folder
from hushtune.server.checkpoint import Checkpoint, load
from hushtune.simulations.observer import Observer
from hushtune.simulations.study import run

FOLDS, SETTINGS = "folds.json", "folds.toml"
"""In the folder of a cross-validation: which folds there are and, at the end, what came of them;
and the settings that all folds share."""
BY_SITES = "sites"


def run_folds(
    config: RunConfig,
    out: Path | str,
    how: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Run every fold into a folder of its own below ``out``; returns what ``folds.json`` holds.

    ``how``: the number of folds, or "sites" to leave out one site at a time. ``resume`` leaves
    finished folds as they are and goes on with the others. Raises HushtuneErrors; settings of all
    folds are checked before the first one trains.
    """
    folder = Path(out).resolve()
    folds = fold_configs(config, how)
    for other in folds.values():
        site_plans(resolve(other))
    _prepare(folder, config, how, folds, resume=resume, overwrite=overwrite)
    found: dict[str, dict[str, Any]] = {}
    spent: dict[str, _Spent] = {}
    for name, fold in folds.items():
        place = folder / name
        begun = stored_config(place) is not None
        summary = run(fold, place, resume=begun, observer=observer)
        context = RunContext(resolve(fold), place)
        last = load(checkpoint_folder(place))
        found[name] = _figures(context, summary, last)
        for site in sorted(context.config.data.public_sizes):
            spent.setdefault(site, _Spent()).add(context, last, site)
    told = _summed_up(config, how, found, {site: one.told() for site, one in sorted(spent.items())})
    told["out"] = str(folder)
    write_text(folder / FOLDS, json_text(told, indent=2) + "\n")
    return told


def fold_configs(config: RunConfig, how: str) -> dict[str, RunConfig]:
    """The settings of each fold, by the name of its folder; ConfigError where there are none."""
    data = config.data
    if data.folds is not None or data.left_out is not None:
        raise ConfigError(
            "the settings are those of one fold already",
            given=f"data.folds = {data.folds}, data.left_out = {data.left_out}",
            remedy="leave data.folds, data.fold and data.left_out out, or --folds",
        )
    if how != BY_SITES:
        if not how.isdecimal() or int(how) < 2:
            raise ConfigError(
                "--folds takes a number of folds, or the word sites",
                given=how,
                expected="2 or more, such as 5, or sites",
            )
        count, width = int(how), len(how)
        return {
            f"fold-{k:0{width}d}": _with_data(config, folds=count, fold=k)
            for k in range(1, count + 1)
        }
    if RULES[config.aggregation.rule].kept:
        raise ConfigError(
            "a site that takes no part has no part of the model of its own, which this rule needs",
            given=f"--folds sites, aggregation.rule = {config.aggregation.rule!r}",
            remedy="take --folds K, or another rule",
        )
    per_group = config.privacy.records_per_group
    names = sorted(
        load_data(data, config.task, seed=config.seed, records_per_group=per_group).sites
    )
    return {f"site-{site_stem(site)}": _without(config, site) for site in names}


def _without(config: RunConfig, site: str) -> RunConfig:
    """The run in which a site takes no part."""
    sizes = {name: n for name, n in config.data.public_sizes.items() if name != site}
    ranks = {name: rank for name, rank in config.adapter.ranks.items() if name != site}
    adapter = config.adapter.model_copy(update={"ranks": ranks})
    other = config.model_copy(update={"adapter": adapter})
    return _with_data(other, left_out=site, public_sizes=sizes)


def _with_data(config: RunConfig, **changes: Any) -> RunConfig:
    """With other settings of [data], checked anew as a whole."""
    data = config.data.model_copy(update=changes)
    return loads_config(dump_toml(config.model_copy(update={"data": data})))


def _prepare(
    folder: Path,
    config: RunConfig,
    how: str,
    folds: Mapping[str, RunConfig],
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Begin the folder, or refuse one that holds something else; the plan of the folds is kept."""
    known = folder / FOLDS
    if resume:
        before = read_json(known, remedy="leave --resume out: there is nothing to go on with")
        stored = loads_config(read_text(folder / SETTINGS, remedy="name another folder"))
        if before.get("how") != how or stored != config:
            raise CheckpointError(
                "the folder's cross-validation has other folds or settings",
                given=f"--folds {how}",
                expected=f"--folds {before.get('how')}, and the settings that it began with",
                remedy="go on with those, or begin anew: --overwrite, or another --out",
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        ours = known.is_file() and (folder / SETTINGS).is_file()
        old = [*read_json(known, remedy="name another folder")["folds"]] if ours else []
        foreign = (
            {path.name for path in folder.iterdir()} - {FOLDS, SETTINGS, *old} if ours else {""}
        )
        if not (overwrite and ours and not foreign):
            raise OutputExistsError(
                "the output folder is not empty",
                given=str(folder),
                expected="a new folder",
                remedy="--resume goes on with the folds in it, --overwrite replaces them"
                if ours and not foreign
                else "name another folder",
            )
        for name in old:
            shutil.rmtree(folder / name, ignore_errors=True)
    write_text(folder / SETTINGS, dump_toml(config))
    begun = {"how": how, "folds": dict.fromkeys(folds)}
    write_text(known, json.dumps(begun, indent=2) + "\n")


def _figures(context: RunContext, summary: Mapping[str, Any], last: Checkpoint) -> dict[str, Any]:
    """Of one fold: the federated model's figures on what the fold tests on, and its epsilons."""
    config = context.config
    value, macro, rows = summary["value"], summary["macro_f1"], 0
    if config.data.left_out is not None:
        workspace = open_workspace(config)
        tested = workspace.data.left_out
        figures = workspace.task.metrics_by_group(last.final, {"tested": tested})["tested"]
        value, macro, rows = figures[config.task.main_metric], figures.get("macro_f1"), len(tested)
    else:
        rows = sum(row["test_rows"] for row in summary["sites"].values())
    baselines = {name: found for name, found in summary["baselines"].items() if found is not None}
    return {
        "value": value,
        "macro_f1": macro,
        "test_rows": rows,
        # On other rows than those of the site that is left out, they would be compared with.
        "baselines": {} if config.data.left_out is not None else baselines,
        "epsilon": {site: row["epsilon"] for site, row in summary["sites"].items()},
        "rounds": summary["rounds"],
    }


class _Spent:
    """What one site spent over all folds, by its ledgers."""

    def __init__(self) -> None:
        self._events: list[DpSgdEvent] = []
        self._extra = 0.0
        self._known = True
        self._folds = 0
        self._delta, self._relation = 0.0, None

    def add(self, context: RunContext, last: Checkpoint, site: str) -> None:
        """One more fold."""
        config = context.config
        plan = site_plans(config)[site]
        self._folds += 1
        self._delta, self._relation = max(self._delta, plan.delta), plan.relation
        if not plan.is_private or config.privacy.insecure_seeded_noise:
            self._known = False
            return
        if plan.trust is Trust.SERVER:
            entries: Sequence[LedgerEntry] = [LedgerEntry.from_dict(row) for row in last.ledger]
        else:
            entries = of_run(Ledger(simulated_ledger(context, site)).entries(), last.run)
        left = not_run(config, plan, done=last.round)
        events = [*(entry.release for entry in entries), *left.training, *left.figures]
        self._events += events
        if plan.trust is Trust.DISTRIBUTED:
            values = last.state.num_values()
            self._extra += of_whole_numbers(cohort_of(config), events, num_values=values)

    def told(self) -> dict[str, Any]:
        """JSON-ready; no epsilon where nothing was promised."""
        together = None
        if self._known and self._relation is not None:
            together = epsilon(self._events, delta=self._delta, relation=self._relation)
            together += self._extra
        return {"epsilon": together, "delta": self._delta, "folds": self._folds}


def _summed_up(
    config: RunConfig,
    how: str,
    found: Mapping[str, Mapping[str, Any]],
    spent: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """All folds: mean and spread of each compared model, and what they cost together."""
    methods = sorted({name for row in found.values() for name in row["baselines"]})
    columns = {"federated": [row["value"] for row in found.values()]}
    for name in methods:
        columns[name] = [row["baselines"].get(name) for row in found.values()]
    metric = config.task.main_metric
    return {
        "how": how,
        "task": config.task.kind,
        "metric": metric,
        "higher_is_better": higher_is_better(metric),
        "folds": {name: dict(row) for name, row in found.items()},
        "table": {
            name: spread([value for value in values if value is not None])
            for name, values in columns.items()
        },
        "sites": dict(spent),
        "seen_by": SEEN_BY,
        "privacy": words(how, spent),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, sample standard deviation (0 of one value), least and largest."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        "least": min(values),
        "largest": max(values),
    }


def words(how: str, spent: Mapping[str, Mapping[str, Any]]) -> str:
    """What the folds cost together, in plain words."""
    told = [row["epsilon"] for row in spent.values()]
    if not told or any(value is None for value in told):
        return "NO PRIVACY: at least one fold released what nothing protects."
    part = "each fold has rows of its own that it does not train on"
    if how == BY_SITES:
        part = "each site takes part in all folds but its own"
    return (
        "Each fold is a study of its own, with the epsilon of its own statement. Whoever publishes "
        "the models of all folds, or chooses settings by them, spends them all: at most epsilon "
        f"{max(told):.3f} at a site, all folds together ({part}; all of its folds are counted). "
        "Accuracies are the researcher's, computed without noise, and no promise covers them."
    )
