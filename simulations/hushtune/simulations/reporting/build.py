"""A study's report: pictures, tables, and one page with all of it that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from hushtune.common.errors import ConfigError
from hushtune.common.files import check_writable, write_bytes, write_text
from hushtune.simulations.reporting.combinations import against_chosen, check_named
from hushtune.simulations.reporting.points import Study
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.tables import (
    against_baselines,
    baseline_means,
    between_lines,
    comparison_rows,
    csv_text,
    mean_rows,
    run_rows,
    site_rows,
)
from hushtune.simulations.reporting.views import RULE, View, is_of_data, utility, view

PAGE, FOLDER = "report.html", "report"
_DPI = 170


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written: the page, each picture as PNG and SVG, each table as CSV.

    ``not_drawn``: what the study has too little for, in words. ``done``, ``failed``: how many runs.
    """

    page: Path
    pictures: tuple[Path, ...]
    tables: tuple[Path, ...]
    not_drawn: tuple[str, ...]
    done: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture as a page holds it: SVG, its file's name, and its caption in words."""

    name: str
    title: str
    caption: str
    svg: bytes

    @property
    def address(self) -> str:
        """The whole picture as a data address."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode('ascii')}"


def report(folder: Path | str, *, against: str | Sequence[str] = ()) -> Report:
    """Draw and tabulate the study in a folder: ``report.html`` and the folder ``report`` in it.

    The folder holds ``results.jsonl``, as a sweep writes it, or a folder for each run with
    ``summary.json`` and ``config.toml``. What is there is replaced. ``against``: a combination, by
    name, or several, that all others are tested against, in place of what the study's file names.

    Raises ConfigError without matplotlib, MissingFileError without results, CheckpointError for
    damaged ones, BadValueError for runs with different figures of merit or a name that none of them
    has, and RunError where nothing can be written.
    """
    folder = Path(folder)
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "a report needs matplotlib", given=str(folder), remedy="pip install 'hushtune[plots]'"
        )
    study = read_study(folder)
    against = (against,) if isinstance(against, str) else tuple(against)
    if against:
        study = replace(study, against=against)
    place = folder / FOLDER
    check_writable(place)
    shown = view(study)
    if against:
        check_named(shown)
    pictures, files = _draw(shown, place)
    tables = _write_tables(shown, place)
    from hushtune.simulations.reporting.page import render

    left_out = not_drawn(shown)
    write_text(folder / PAGE, render(shown, pictures, left_out))
    return Report(
        page=folder / PAGE,
        pictures=files,
        tables=tables,
        not_drawn=left_out,
        done=len(study.done),
        failed=len(study.failed),
    )


def _draw(shown: View, place: Path) -> tuple[list[Picture], tuple[Path, ...]]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from hushtune.common.pictures import fonts
    from hushtune.simulations.reporting.captions import PICTURES, caption_of

    found: list[Picture] = []
    files: list[Path] = []
    # Fixed, so that the same results give the same bytes; letters as shapes, so that no reader
    # needs the fonts.
    with fonts(), rc_context({"svg.hashsalt": "hushtune", "svg.fonttype": "path"}):
        for kind in PICTURES:
            if not kind.has(shown):
                continue
            figure: Figure = kind.draw(shown)
            svg = _bytes(figure, "svg", metadata={"Date": None, "Creator": None})
            png = _bytes(figure, "png", dpi=_DPI)
            for name, data in ((f"{kind.name}.png", png), (f"{kind.name}.svg", svg)):
                write_bytes(place / name, data)
                files.append(place / name)
            found.append(
                Picture(name=kind.name, title=kind.title, caption=caption_of(kind, shown), svg=svg)
            )
    return found, tuple(files)


def _bytes(figure: object, form: str, **how: object) -> bytes:
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    picture = BytesIO()
    figure.savefig(picture, format=form, **how)  # pyright: ignore[reportArgumentType]
    return picture.getvalue()


def _write_tables(shown: View, place: Path) -> tuple[Path, ...]:
    texts: Mapping[str, Callable[[], str]] = {
        "runs.csv": lambda: csv_text(run_rows(shown.study)),
        "sites.csv": lambda: csv_text(site_rows(shown.study)),
        "means.csv": lambda: csv_text(mean_rows(shown)),
        "baselines.csv": lambda: csv_text(baseline_means(shown)),
        "comparisons.csv": lambda: csv_text(
            [
                *comparison_rows("lines", between_lines(shown)),
                *comparison_rows("baselines", against_baselines(shown)),
                *comparison_rows("chosen", against_chosen(shown)),
            ]
        ),
    }
    for name, text in texts.items():
        write_text(place / name, text())
    return tuple(place / name for name in texts)


def not_drawn(shown: View) -> tuple[str, ...]:
    """What a report has when more was varied, and this study has too little for."""
    study: Study = shown.study
    private = [epsilon for epsilon in shown.epsilons if epsilon is not None]
    found: list[str] = []
    if len(private) < 2:
        found.append("No curve over epsilon: all private runs have one epsilon, or there are none.")
    if RULE not in study.keys:
        found.append("No comparison of rules: aggregation.rule was not varied.")
    lines = [line for panel in shown.panels for line in panel.lines]
    if all(each.n < 2 for line in lines for each in line.curve(utility).values()):
        found.append("No intervals: every combination of settings was run with one seed.")
    if shown.primary is not None and is_of_data(shown.primary):
        found.append(f"No Pareto fronts: by {shown.primary} the data differ, and nothing else.")
    if all(point.num_bytes is None for point in study.done):
        found.append("No bytes: the runs' traffic is not on record.")
    return tuple(found)
