"""All that is looked at, in one report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.simulations.datacheck.findings import Finding, Level, in_order
from hushtune.simulations.datacheck.gathered import Gathered, gather, group_column, of_error
from hushtune.simulations.datacheck.labels import labels
from hushtune.simulations.datacheck.leakage import leakage
from hushtune.simulations.datacheck.lengths import lengths
from hushtune.simulations.datacheck.personal import personal
from hushtune.simulations.datacheck.repeats import repeats
from hushtune.simulations.datacheck.size import size


def check(
    config: RunConfig,
    *,
    model: str | None,
    group: str | None = None,
    shares: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """What is wrong with the data of a run, as a JSON-ready dict.

    Args:
        config: whose [data], [task], [privacy] and [train] are meant.
        model: whose tokenizer judges lengths; None for no judgement.
        group: a column of patients or users that a split might part; left out = by its name.
        shares: public shares of the classes, for weights.
    """
    gathered = gather(config)
    found = [*gathered.findings, *_findings(gathered, config, model, group, shares or {})]
    counts = {level: sum(f.level is level for f in found) for level in Level}
    return {
        "kind": config.task.kind,
        "sites": {
            site: {"rows": len(rows), "read": gathered.read[site]}
            for site, rows in sorted(gathered.rows.items())
        },
        "problems": counts[Level.PROBLEM],
        "warnings": counts[Level.WARNING],
        "findings": [
            asdict(finding) | {"places": list(finding.places)} for finding in in_order(found)
        ],
    }


def _findings(
    gathered: Gathered,
    config: RunConfig,
    model: str | None,
    group: str | None,
    shares: Mapping[str, float],
) -> Iterator[Finding]:
    rows = gathered.all
    if not rows:
        return
    kind, data = config.task.of, config.data
    yield from repeats(rows, kind, inconsistent=data.inconsistent)
    held = {site: found for site, found in gathered.rows.items() if found}
    yield from labels(held, config, shares=shares)
    yield from lengths(rows, config, model)
    yield from personal(rows, config)
    if any(f.level is Level.PROBLEM for f in gathered.findings):
        return  # the run would not begin, and would say so once more
    try:
        loaded = load_data(
            data, config.task, seed=config.seed, records_per_group=config.privacy.records_per_group
        )
    except HushtuneError as error:
        yield of_error("run", error)
        return
    yield from leakage(loaded, config, group_column(config, group))
    yield from size(_sizes(loaded, config), config)


def _sizes(data: LabelledRows, config: RunConfig) -> dict[str, int]:
    declared = config.data.public_sizes
    return {
        site: declared.get(site, len(data.units(split.train))) for site, split in data.sites.items()
    }
