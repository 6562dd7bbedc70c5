"""What a finished run leaves in its folder; the keys of summary.json are a contract."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from hushtune.common.adapter_folder import DESCRIPTION, write_adapter_folder
from hushtune.common.config import RunConfig
from hushtune.common.config_io import config_hash
from hushtune.common.errors import CheckpointError
from hushtune.common.files import read_json, write_text
from hushtune.common.json_text import json_text
from hushtune.common.kinds import higher_is_better
from hushtune.common.lora_files import plain_adapter
from hushtune.common.names import METHODS, OF_TABLES, OURS, SEEN_BY
from hushtune.common.planning import POOLED, cohort_of
from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.report_files import write_statement
from hushtune.common.privacy.statement_secure import provided
from hushtune.common.run_context import RunContext
from hushtune.common.stopping import best_round, chosen_by, is_judged
from hushtune.common.tasks import partition
from hushtune.common.tasks.base import Metrics
from hushtune.common.tasks.workspace import Workspace
from hushtune.server.app import checkpoint_folder
from hushtune.server.checkpoint import Checkpoint, exists, load
from hushtune.server.strategy import FederationResult
from hushtune.simulations.attacks import attack_of
from hushtune.simulations.baselines import heads_by_layer
from hushtune.simulations.card import model_card
from hushtune.simulations.forgetting import forgetting
from hushtune.simulations.overfit import fit_of
from hushtune.simulations.privacy_report import privacy_of
from hushtune.simulations.samples import FILE, Sample, as_page, has_samples
from hushtune.simulations.written import written

Table = Mapping[str, Mapping[str, float]]
METRICS, SUMMARY = "metrics.jsonl", "summary.json"
ADAPTER = f"adapter/{DESCRIPTION}"
SUMMARY_KEYS = frozenset(
    (
        *("task", "metric", "higher_is_better", "value", "metrics", "macro_f1"),
        *("sites", "baselines", "head_by_layer", "table"),
        *("personal", "worst_site", "spread", "aggregation_bias", "largest_bias", "saved_rank"),
        *("rounds", "trust", "refusals", "rejected", "seconds", "seed", "config_hash"),
        *("adapter_digest", "out", "data_notes", "unit", "group", "seen_by", "attack"),
        *("rests_on", "fit", "stopped", "forgetting", "samples", "written"),
    )
)
"""What every summary has; ``missing`` comes with them where no picture could be drawn."""
_RESEARCHER_S = (
    *("value", "metrics", "macro_f1", "alone_private", "baselines", "head_by_layer", "table"),
    *("personal", "worst_site", "spread"),
    *("train_rows", "validation_rows", "test_rows", "data_notes", "fit", "samples", "written"),
)
_MOST_CHANGED = 8


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run that is over and not yet written down.

    ``table``: the main metric of each compared model on each site's test rows and on all;
    ``final``: all metrics of the federated model on each site's test rows and on all; ``seconds``:
    where the time went; ``samples``: answers of a language model before and after.
    """

    context: RunContext
    workspace: Workspace
    result: FederationResult
    table: Table
    final: Mapping[str, Metrics]
    seconds: Mapping[str, float]
    samples: Sequence[Sample] = ()


def write_all(run: FinishedRun) -> dict[str, Any]:
    """Write statement, adapter, plot and, last, the summary; return the summary."""
    context, workspace, result = run.context, run.workspace, run.result
    privacy = privacy_of(context, result)
    write_statement(context.out, privacy)
    summary = summarise(run, privacy)
    write_adapter_folder(
        workspace,
        result.state,
        context.out / "adapter",
        card=model_card(context.config, workspace, summary, privacy),
        model=context.config.model,
        adapter=context.config.adapter,
        task=context.config.task,
        data=context.config.data,
    )
    if find_spec("matplotlib") is not None:
        from hushtune.simulations.plots import plot_run

        plot_run(result.history, summary, context.out / "curve.png")
        partition.plot(workspace.data, context.out / "sites.png")
    else:
        summary["missing"] = "curve.png and sites.png: pip install 'hushtune[plots]'"
    if summary["samples"]:
        write_text(context.out / FILE, as_page(summary))
    write_text(context.out / SUMMARY, json_text(summary, indent=2) + "\n")
    return summary


def finished(context: RunContext) -> dict[str, Any] | None:
    """The summary of a run of which everything is written; None if anything is missing or damaged.

    Raises CheckpointError for a checkpoint that is damaged.
    """
    pictures = ("curve.png", "sites.png") if find_spec("matplotlib") is not None else ()
    pages = (FILE,) if has_samples(context.config) else ()
    wanted = ("privacy.json", "privacy.md", "privacy.html", ADAPTER, *pictures, *pages)
    wanted = (SUMMARY, METRICS, *wanted)
    checkpoint = _checkpoint(context)
    if checkpoint is None or not all((context.out / name).exists() for name in wanted):
        return None
    summary = _summary(context)
    lines = (context.out / METRICS).read_bytes()
    if lines != "".join(map(metrics_line, checkpoint.history)).encode():
        return None
    if summary is None or checkpoint.final.digest() != summary["adapter_digest"]:
        return None
    return {**summary, "out": str(context.out)}  # the folder may have been moved


def earlier_seconds(context: RunContext) -> Mapping[str, float]:
    """Where the time of a finished run went; nothing of one that is not."""
    summary = _summary(context)
    return {} if summary is None else summary["seconds"]


def _summary(context: RunContext) -> dict[str, Any] | None:
    """The summary that a run has; None where there is no whole one, as it can be written anew."""
    try:
        summary = read_json(context.out / SUMMARY, remedy="--resume writes it anew")
    except CheckpointError:
        return None
    return summary if summary.keys() >= SUMMARY_KEYS else None


def summarise(run: FinishedRun, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run. Under ``sites`` they are on the site's own test rows, elsewhere on
    all sites' test rows together."""
    context, workspace, result, table = run.context, run.workspace, run.result, run.table
    names = sorted(context.config.data.public_sizes)
    own = {name: table.get(f"alone_private/{name}") for name in names}
    alone = [row[POOLED] for row in own.values() if row is not None]
    # Every key is there, whatever was run: others read them.
    baselines = {
        name: table[name][POOLED] if name in table else None
        for name in (*METHODS, *OF_TABLES)
        if name not in OURS
    }
    if alone:
        baselines["alone_private"] = sum(alone) / len(alone)
    test = {name: len(workspace.rows(name, "test")) for name in names}
    personal = table.get("personal", {})
    at_sites = {name: (personal or table["federated"])[name] for name in names}
    metric = context.config.task.main_metric
    sign = 1 if higher_is_better(metric) else -1
    worst = min(at_sites, key=lambda name: (sign * at_sites[name], name))
    return {
        "task": context.config.task.kind,
        "metric": metric,
        "higher_is_better": higher_is_better(metric),
        "value": table["federated"][POOLED],
        "metrics": dict(run.final[POOLED]),
        "macro_f1": run.final[POOLED].get("macro_f1"),
        "personal": personal.get(POOLED),
        "worst_site": {"site": worst, "value": at_sites[worst]},
        "spread": max(at_sites.values()) - min(at_sites.values()),
        "aggregation_bias": _bias(result),
        "largest_bias": _largest_bias(result, context.config.aggregation.rule),
        "sites": {
            name: {
                "value": table["federated"][name],
                "personal": personal.get(name),
                "metrics": dict(run.final[name]),
                "macro_f1": run.final[name].get("macro_f1"),
                "alone_private": None if row is None else row[name],
                "epsilon": privacy["sites"][name]["epsilon"],
                "delta": privacy["sites"][name]["delta"],
                "public_size": privacy["sites"][name]["public_size"],
                "train_rows": len(workspace.rows(name, "train")),
                "validation_rows": len(workspace.rows(name, "validation")),
                "test_rows": test[name],
            }
            for name, row in own.items()
        },
        "baselines": baselines,
        "head_by_layer": {str(n): row for n, row in sorted(heads_by_layer(table).items())},
        "table": {name: dict(row) for name, row in table.items() if "head_layer/" not in name},
        "rounds": len(result.history),
        "trust": privacy["trust"],
        "rests_on": _rests_on(context),
        "unit": privacy["unit"],
        "group": privacy["group"],
        "seen_by": dict.fromkeys(_RESEARCHER_S, SEEN_BY),
        "refusals": {site: [dict(r) for r in rows] for site, rows in result.refusals.items()},
        "rejected": _rejected(result),
        "attack": attack_of(context.config),
        "fit": fit_of(result.history),
        "forgetting": forgetting(workspace, result.state)
        if context.config.simulation.forgetting
        else None,
        "stopped": _stopped(context.config, result),
        "seconds": dict(run.seconds),
        "seed": context.config.seed,
        "config_hash": config_hash(context.config),
        "adapter_digest": result.state.digest(),
        "saved_rank": plain_adapter(result.state).spec.rank,
        "out": str(context.out),
        "data_notes": workspace.data_notes(),
        "samples": [dict(sample) for sample in run.samples],
        "written": written(run.samples),
    }


def _rests_on(context: RunContext) -> str | None:
    """On whom the promise rests beyond the site itself, in one line; None where on nobody."""
    privacy = context.config.privacy
    if privacy.trust == Trust.DISTRIBUTED:
        return provided(cohort_of(context.config)).strip()
    if privacy.trust == Trust.SERVER:
        return (
            "This holds if the server keeps to the protocol. It sees whole updates and keeps the "
            f"ledger, in {checkpoint_folder(context.out)}: hushtune ledger show "
            f"{shlex.quote(str(context.out))}"
        )
    return None


def _stopped(config: RunConfig, result: FederationResult) -> dict[str, Any] | None:
    """After which round a run stopped, and whose model it is; None where nothing was judged."""
    if not is_judged(config):
        return None
    done, best = len(result.history), best_round(result.history, config)
    return {
        "after": done,
        "planned": config.train.rounds,
        "best_round": best,
        "kept_round": best if config.train.keep == "best" and best is not None else done,
        "by": chosen_by(config),
        "watch": config.train.watch,
    }


def _bias(result: FederationResult) -> float | None:
    """The last round's mean aggregation bias over the modules; None where none was measured."""
    found = _last_bias(result)
    return sum(found.values()) / len(found) if found else None


def _largest_bias(result: FederationResult, rule: str) -> dict[str, Any] | None:
    """Of which module it was the largest, and what makes it: the rule, and the rank it cuts to."""
    found = _last_bias(result)
    if not found:
        return None
    module = min(found, key=lambda name: (-found[name], name))
    rank = result.state.spec.rank
    return {"module": module, "value": found[module], "rule": rule, "rank": rank}


def _last_bias(result: FederationResult) -> Mapping[str, float]:
    found = [row["aggregation_bias"] for row in result.history if "aggregation_bias" in row]
    return found[-1] if found else {}


def _rejected(result: FederationResult) -> dict[str, list[dict[str, Any]]]:
    """For each site the rounds that it did not count in, whatever the reason."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result.history:
        for site, reason in row["rejected"].items():
            found.setdefault(site, []).append({"round": row["round"], "reason": reason})
    return dict(sorted(found.items()))


def metrics_line(row: Mapping[str, Any]) -> str:
    """A round's line in metrics.jsonl."""
    return json_text(row) + "\n"


def checkpointed_rows(context: RunContext) -> Sequence[Mapping[str, Any]]:
    """The rows of metrics.jsonl that the checkpoint has; none without one."""
    found = _checkpoint(context)
    return () if found is None else found.history


def shown_charges(context: RunContext) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The charges that each site has shown by the run's checkpoint; none without one."""
    found = _checkpoint(context)
    return {} if found is None else found.charges


def _checkpoint(context: RunContext) -> Checkpoint | None:
    folder = checkpoint_folder(context.out)
    return load(folder) if exists(folder) else None


def _toml(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def difference(stored: RunConfig, asked: RunConfig) -> str:
    """The settings in which two configurations differ, with both values."""
    left, right = stored.model_dump(mode="json"), asked.model_dump(mode="json")
    changed = [
        f"{section}.{key}: {_toml(value)} there, {_toml(right[section][key])} asked"
        for section in left
        if isinstance(left[section], dict)
        for key, value in left[section].items()
        if value != right[section][key]
    ]
    if stored.seed != asked.seed:
        changed.insert(0, f"seed: {stored.seed} there, {asked.seed} asked")
    more = f"; and {len(changed) - _MOST_CHANGED} more" if len(changed) > _MOST_CHANGED else ""
    return "; ".join(changed[:_MOST_CHANGED]) + more
