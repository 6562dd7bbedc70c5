"""The tables of a report: one row for each run, each site, each mean, each test; as CSV as well."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hushtune.simulations.reporting.comparisons import Comparison, compare_pair, judged
from hushtune.simulations.reporting.intervals import Estimate
from hushtune.simulations.reporting.points import Point, Study
from hushtune.simulations.reporting.references import (
    BASELINES,
    WITHOUT_EPSILON,
    all_data,
    full_label,
    lines_on,
    references,
)
from hushtune.simulations.reporting.views import (
    Choice,
    Line,
    Panel,
    View,
    by_seed,
    condition_of,
    label_of,
    own_models,
    spread,
    utility,
    words,
    worst,
)

Row = dict[str, Any]
_AGAINST = ("alone_private", "head_private", "head_best", "pooled_private")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with one set of keys as CSV, numbers in full.

    A text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def run_rows(study: Study) -> list[Row]:
    """Every run, failed ones too, with what was varied and what came of it."""
    keys = list(dict.fromkeys(key for point in study.points for key in point.settings))
    return [
        {
            "name": point.name,
            **{key: point.settings.get(key) for key in keys},
            "seed": point.seed,
            "status": "failed" if point.summary is None else "done",
            **_results(study, point),
            "bytes_up": point.bytes_up,
            "bytes_down": point.bytes_down,
            "seconds": point.seconds,
            "cpu_seconds": point.cpu_seconds,
            "error": None if point.error is None else " ".join(point.error),
            "config_hash": point.config_hash,
            "code_commit": point.code_commit,
        }
        for point in study.points
    ]


def _results(study: Study, point: Point) -> Row:
    names = ("value", "epsilon_spent", "worst_site", "worst_site_value", "spread", "own_models")
    baselines = dict.fromkeys(f"baseline_{name}" for name in BASELINES)
    if point.summary is None:
        return {"metric": study.metric, **dict.fromkeys(names), **baselines}
    told = (utility(point), point.spent, point.worst_site, worst(point))
    found = point.found["baselines"]
    return {
        "metric": study.metric,
        **dict(zip(names, (*told, spread(point), own_models(point)), strict=True)),
        **{f"baseline_{name}": found.get(name) for name in BASELINES},
    }


def site_rows(study: Study) -> list[Row]:
    """Every site of every run that is done."""
    return [
        {
            "name": point.name,
            "seed": point.seed,
            "site": site,
            "metric": study.metric,
            "value": row["value"],
            "own_model": row.get("personal"),
            "alone_private": row.get("alone_private"),
            "epsilon_spent": row["epsilon"],
            "delta": row.get("delta"),
            "train_rows": row.get("train_rows"),
            "test_rows": row.get("test_rows"),
        }
        for point in study.done
        for site, row in point.found["sites"].items()
    ]


def mean_rows(view: View) -> list[Row]:
    """The mean of each combination of settings over its seeds, with its interval."""
    return [
        {
            "line": line.label,
            "panel": panel.title,
            "epsilon": epsilon,
            **_estimated("utility", line.curve(utility)[epsilon]),
            **_estimated("worst_site", line.curve(worst)[epsilon]),
            **_estimated("spread", line.curve(spread)[epsilon]),
        }
        for panel in view.panels
        for line in panel.lines
        for epsilon in line.by_epsilon
    ]


def _estimated(name: str, found: Estimate) -> Row:
    return {
        f"{name}_seeds": found.n,
        f"{name}_mean": found.mean,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
    }


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A model's figures at each epsilon. ``note``: as which line a baseline was trained, in words;
    ``is_baseline``: what the lines are compared with."""

    name: str
    note: str
    is_baseline: bool
    cells: Mapping[float | None, Estimate]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The lines on the same data, each for itself, and then what they are compared with."""

    title: str
    rows: tuple[Compared, ...]


def compared(view: View) -> list[Group]:
    """Every line and every baseline on record, by the data that they learned from."""
    return [
        Group(title=words(data), rows=(*_line_rows(view, data), *_baseline_rows(view, data)))
        for data in all_data(view)
    ]


def _line_rows(view: View, data: Choice) -> Iterable[Compared]:
    for panel, line in lines_on(view, data):
        yield Compared(
            name=full_label(view, panel, line),
            note="",
            is_baseline=False,
            cells=line.curve(utility),
        )
        if own := line.curve(own_models):
            yield Compared(
                name=f"{full_label(view, panel, line)}, each site's own model",
                note="",
                is_baseline=False,
                cells=own,
            )


def _baseline_rows(view: View, data: Choice) -> Iterable[Compared]:
    several = len(lines_on(view, data)) > 1
    for name, found in references(view, data).items():
        one = next(iter(found.values())).estimate
        as_lines = list(dict.fromkeys(each.line for each in found.values() if each.line))
        yield Compared(
            name=label_of(view.study, name),
            note=f"as {'; '.join(as_lines)}" if several and as_lines else "",
            is_baseline=True,
            cells={
                **dict.fromkeys(view.epsilons if name in WITHOUT_EPSILON else (), one),
                **{epsilon: each.estimate for epsilon, each in found.items()},
            },
        )


def usual_seeds(groups: Iterable[Group]) -> int:
    """Over how many seeds most of the means are."""
    told = [cell.n for group in groups for row in group.rows for cell in row.cells.values()]
    return Counter(told).most_common(1)[0][0]


def baseline_means(view: View) -> list[Row]:
    """The mean of each baseline that pictures and page show."""
    return [
        {
            "data": words(data),
            "baseline": name,
            "epsilon": epsilon,
            "as_line": each.line,
            "seeds": each.estimate.n,
            "mean": each.estimate.mean,
            "low": each.estimate.low,
            "high": each.estimate.high,
        }
        for data in all_data(view)
        for name, found in references(view, data).items()
        for epsilon, each in found.items()
    ]


def between_lines(view: View) -> list[Comparison]:
    """Each two lines at each epsilon and panel where they have seeds in common."""
    found = [
        compare_pair(
            by_seed(one.by_epsilon[epsilon]),
            by_seed(other.by_epsilon[epsilon]),
            condition=condition_of(panel.title, epsilon),
            names=(one.label, other.label),
        )
        for panel in view.panels
        for one, other in combinations(panel.lines, 2)
        for epsilon in one.by_epsilon
        if epsilon in other.by_epsilon
    ]
    return _family(view, found)


def against_baselines(view: View) -> list[Comparison]:
    """Each line and epsilon beside what the same runs were compared with."""
    found = [
        _against(view, panel, line, epsilon, name)
        for panel in view.panels
        for line in panel.lines
        for epsilon in line.by_epsilon
        if epsilon is not None
        for name in _AGAINST
    ]
    return _family(view, found)


def _against(view: View, panel: Panel, line: Line, epsilon: float, name: str) -> Comparison | None:
    points = line.by_epsilon[epsilon]
    return compare_pair(
        by_seed(points),
        by_seed(points, lambda point: point.found["baselines"].get(name)),
        condition=condition_of(panel.title, epsilon),
        names=(line.label, label_of(view.study, name)),
    )


def _family(view: View, found: Iterable[Comparison | None]) -> list[Comparison]:
    told = [one for one in found if one is not None]
    return judged(told, higher_is_better=view.study.higher_is_better)


def comparison_rows(family: str, found: Iterable[Comparison]) -> list[Row]:
    """Comparisons as CSV has them; ``family``: those that p values were corrected with."""
    return [
        {
            "family": family,
            "condition": one.condition,
            "first": one.first,
            "second": one.second,
            "seeds": one.difference.n,
            "difference": one.difference.mean,
            "low": one.difference.low,
            "high": one.difference.high,
            "p_t": one.p_t,
            "p_t_holm": one.held_t,
            "p_wilcoxon": one.p_ranks,
            "p_wilcoxon_holm": one.held_ranks,
            "verdict": one.verdict,
        }
        for one in found
    ]
