"""What came of the ready studies: their tables and pictures into docs/studies.md.

    hushtune sweep simulations/studies/NAME.toml --out runs/NAME      # each of them first
    python benchmarks/studies.py [--runs runs] [--page docs/studies.md]

Of each study that is in ``--runs`` the table replaces what stands between its two markers on the
page, and the picture of every combination, as its report has it, is put beside the page.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from markers import put_between, table_of
from PIL import Image

from hushtune.common.files import write_bytes
from hushtune.common.pictures import fonts
from hushtune.simulations.reporting.combinations import against_chosen, combinations_of
from hushtune.simulations.reporting.comparisons import p_text
from hushtune.simulations.reporting.draw_points import draw_points
from hushtune.simulations.reporting.intervals import estimate
from hushtune.simulations.reporting.points import Point, Study
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.references import all_data, references
from hushtune.simulations.reporting.views import View, by_seed, epsilon_words, label_of, view, worst
from hushtune.simulations.reporting.views import words as data_words


def main() -> None:
    """Write what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--page", type=Path, default=Path("docs/studies.md"))
    options = parser.parse_args()
    for file in sorted(Path("simulations/studies").glob("*.toml")):
        folder = options.runs / file.stem
        if not (folder / "results.jsonl").is_file():
            print(f"{file.stem}: not run")
            continue
        study = read_study(folder)
        picture = options.page.parent / "studies" / f"{file.stem}.png"
        write_bytes(picture, drawn(view(study)))
        put_between(
            options.page,
            f"<!-- {file.stem}:begin -->",
            f"<!-- {file.stem}:end -->",
            as_markdown(view(study)),
        )
        print(f"{file.stem}: {len(study.done)} runs")


def drawn(shown: View) -> bytes:
    """The report's picture of every combination, in few colours, as a page needs it."""
    whole, found = BytesIO(), BytesIO()
    with fonts():
        draw_points(shown).savefig(whole, format="png", dpi=150)
    with Image.open(whole) as picture:
        picture.convert("RGB").quantize(48).save(found, format="PNG", optimize=True)
    return found.getvalue()


def as_markdown(shown: View) -> str:
    """Means over seeds of each combination, then what they are compared with, and whence it is."""
    study = shown.study
    groups = combinations_of(shown)
    forgets = any(_forgotten(point) is not None for point in study.done)
    names = ["combination", "epsilon", "seeds", study.metric.replace("_", " "), "worst site"]
    rows = [[*names, *(["forgotten"] if forgets else [])]]
    for name, points in groups.items():
        row = [
            name,
            _epsilon(points),
            str(len(by_seed(points))),
            _mean(by_seed(points)),
            _mean(by_seed(points, worst)),
        ]
        if forgets:
            lost = by_seed(points, _forgotten)
            row.append(_mean(lost) if lost else "")
        rows.append(row)
    return "\n\n".join([table_of(rows), _beside(shown), *_tests(shown), _whence(study)])


def _tests(shown: View) -> list[str]:
    """The paired tests that the study asks for."""
    found = against_chosen(shown)
    if not found:
        return []
    head = ["first", "second", "epsilon", "seeds", "first less second"]
    rows = [[*head, "p, paired t", "Holm", "p, ranks", "Holm of ranks"]]
    for one in found:
        low_high = "" if one.difference.half is None else f" ± {one.difference.half:.3f}"
        rows.append(
            [
                one.first,
                one.second,
                one.condition.removeprefix("epsilon "),
                str(one.difference.n),
                f"{one.difference.mean:+.3f}{low_high}",
                *map(p_text, (one.p_t, one.held_t, one.p_ranks, one.held_ranks)),
            ]
        )
    return [table_of(rows)]


def _epsilon(points: Sequence[Point]) -> str:
    told = points[0].epsilon
    return "none" if told is None else f"{told:g}"


def _forgotten(point: Point) -> float | None:
    """How much accuracy on public texts of another kind was lost; None where it was not looked at,
    or where nothing but a head was trained."""
    found: Any = point.found.get("forgetting")
    if not isinstance(found, dict) or not found["drift"]:
        return None
    return float(found["accuracy_before"]) - float(found["accuracy_after"])


def _mean(by_seed_: Mapping[int, float]) -> str:
    """Mean and half width of its 95 % interval, where there are seeds for one."""
    found = estimate(list(by_seed_.values()))
    return f"{found.mean:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def _beside(shown: View) -> str:
    """A table of the baselines of each data set that has trained ones."""
    parts: list[str] = []
    for data in all_data(shown):
        found = references(shown, data)
        if not found.keys() - {"majority", "untrained"}:
            continue
        epsilons = list(dict.fromkeys(epsilon for of in found.values() for epsilon in of))
        whose = f"beside them on {data_words(data)}" if data else "beside them"
        rows = [[whose, *map(epsilon_words, epsilons)]]
        for name, of in found.items():
            cells = [
                f"{of[epsilon].estimate.mean:.3f} ({of[epsilon].estimate.n})"
                if epsilon in of
                else ""
                for epsilon in epsilons
            ]
            rows.append([label_of(shown.study, name), *cells])
        parts.append(table_of(rows))
    return "\n\n".join([*parts, "In brackets: seeds."]) if parts else "No baselines."


def _whence(study: Study) -> str:
    seconds = [point.cpu_seconds for point in study.done if point.cpu_seconds]
    commits = sorted({point.code_commit or "unknown" for point in study.done})
    return (
        f"{len(study.done)} runs, {len(study.failed)} failed, a median of "
        f"{statistics.median(seconds):.0f} CPU seconds each, baselines included where they were "
        f"trained. Source commit of these runs: {', '.join(commits)}."
    )


if __name__ == "__main__":
    main()
