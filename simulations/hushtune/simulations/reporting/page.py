"""The page of a report: escaped throughout, no script, and nothing is fetched."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hushtune.common.names import SEEN_BY, metric_words
from hushtune.common.pages import page_environment
from hushtune.common.privacy.figures import upwards
from hushtune.simulations.reporting.combinations import against_chosen
from hushtune.simulations.reporting.comparisons import NOT_TOLD_APART, Comparison, p_text
from hushtune.simulations.reporting.intervals import Estimate
from hushtune.simulations.reporting.points import BASE, RESULTS, STUDY_FILE, Point, Study
from hushtune.simulations.reporting.tables import (
    against_baselines,
    between_lines,
    compared,
    usual_seeds,
)
from hushtune.simulations.reporting.views import (
    View,
    condition_of,
    epsilon_words,
    own_models,
    spread,
    utility,
    worst,
)

if TYPE_CHECKING:
    from hushtune.simulations.reporting.build import Picture


def render(shown: View, pictures: Sequence[Picture], not_drawn: Sequence[str]) -> str:
    """The whole page as HTML."""
    study = shown.study
    environment = page_environment("hushtune.simulations.reporting")
    environment.filters |= {
        "figure": _figure,
        "estimate": _estimate,
        "p": p_text,
        "epsilon": epsilon_words,
    }
    told, groups = between_lines(shown), compared(shown)
    files = _study_files(study)
    return environment.get_template("page.html.j2").render(
        study=study,
        name=study.folder.resolve().name,
        metric=metric_words(study.metric),
        better="Higher is better" if study.higher_is_better else "Lower is better",
        seen_by=SEEN_BY,
        unprotected=sum(not point.is_private for point in study.done),
        seeded=sum(point.is_seeded for point in study.done),
        pictures=pictures,
        not_drawn=not_drawn,
        best=_best(shown, told),
        epsilons=shown.epsilons,
        groups=groups,
        seeds=usual_seeds(groups),
        has_brackets=any(row.note for group in groups for row in group.rows),
        between=told,
        against=against_baselines(shown),
        chosen=against_chosen(shown),
        not_told_apart=NOT_TOLD_APART,
        keys=list(dict.fromkeys(key for point in study.points for key in point.settings)),
        rows=[_row(point) for point in study.points],
        personal=any(own_models(point) is not None for point in study.done),
        errors=_errors(study),
        commits=_commits(study),
        unfinished=_unfinished(study),
        version=version("hushtune"),
        files=files,
        base=BASE,
        has_base=any(name == BASE for name, _ in files),
        command=f"hushtune report {shlex.quote(study.folder.resolve().name)}",
        results=RESULTS,
    )


def _best(shown: View, told: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Of each epsilon and panel the line with the best mean, and from which it is not told
    apart."""
    pick = max if shown.study.higher_is_better else min
    rows: list[dict[str, Any]] = []
    for panel in shown.panels:
        for epsilon in shown.epsilons:
            lines = [line for line in panel.lines if epsilon in line.by_epsilon]
            if not lines:
                continue
            first = pick(lines, key=lambda line: line.curve(utility)[epsilon].mean)
            condition = condition_of(panel.title, epsilon)
            beaten = {
                other
                for one in told
                if one.condition == condition and one.verdict.startswith(f"{first.label} is better")
                for other in (one.first, one.second)
                if other != first.label
            }
            alike = [ln.label for ln in lines if ln.label not in beaten and ln is not first]
            rows.append(
                {
                    "condition": condition,
                    "line": first.label,
                    "utility": first.curve(utility)[epsilon],
                    "worst": first.curve(worst)[epsilon],
                    "spread": first.curve(spread)[epsilon],
                    "alike": alike,
                    "of": len(lines),
                }
            )
    return rows


def _row(point: Point) -> dict[str, Any]:
    done = point.summary is not None
    return {
        "point": point,
        "done": done,
        "value": utility(point) if done else None,
        "worst": worst(point) if done else None,
        "site": point.worst_site if done else "",
        "spread": spread(point) if done else None,
        "own": own_models(point) if done else None,
        "spent": _spent(point) if done else "",
        "megabytes": None if point.num_bytes is None else point.num_bytes / 1e6,
    }


def _spent(point: Point) -> str:
    """Rounded up, as every promise is."""
    return "none" if point.spent is None else upwards(point.spent, places=3)


def _errors(study: Study) -> list[tuple[list[str], list[str]]]:
    """Every error there was, by lines, with the runs that failed of it."""
    found: dict[str, list[str]] = {}
    for point in study.failed:
        found.setdefault(" ".join(point.error or ()), []).append(point.name)
    return [(error.splitlines(), names) for error, names in found.items()]


def _unfinished(study: Study) -> int:
    """How many runs have no row of results: not finished, or no more in the study."""
    begun = study.folder / "points"
    runs = begun.iterdir() if begun.is_dir() else ()
    count = sum(path.is_dir() and not path.name.startswith(".") for path in runs)
    return max(0, count - len(study.points))


def _commits(study: Study) -> list[str]:
    return sorted({point.code_commit for point in study.points if point.code_commit})


def _study_files(study: Study) -> list[tuple[str, str]]:
    """Name and text of the file that says what was varied, and of the configuration that it began
    with, where the study has them."""
    paths = [study.folder / STUDY_FILE, study.folder / BASE]
    return [
        (path.name, path.read_text(encoding="utf-8", errors="replace"))
        for path in paths
        if path.is_file()
    ]


def _figure(value: float | None, places: int = 3) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _estimate(found: Estimate) -> str:
    half = "" if found.half is None else f" \N{PLUS-MINUS SIGN} {found.half:.3f}"
    return f"{found.mean:.3f}{half}"
