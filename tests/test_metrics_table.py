"""The figures of each kind in docs/tasks.md and in the template are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from hushtune.common.config_template import template
from hushtune.common.kinds import KINDS, higher_is_better, kinds_by_metrics

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tasks.md"
BEGIN, END = "<!-- metrics:begin -->", "<!-- metrics:end -->"


def table() -> str:
    """The table as it has to stand in the page."""
    rows = ["| `task.kind` | figures, the main one first | better |", "|---|---|---|"]
    for metrics, kinds in kinds_by_metrics().items():
        way = {higher_is_better(metric): [] for metric in metrics}
        for metric in metrics:
            way[higher_is_better(metric)].append(f"`{metric}`")
        told = "; ".join(
            f"{'higher' if up else 'lower'}" + ("" if len(way) == 1 else f" of {', '.join(names)}")
            for up, names in way.items()
        )
        named = [f"**`{metrics[0]}`**", *(f"`{metric}`" for metric in metrics[1:])]
        kinds_named = ", ".join(f"`{kind}`" for kind in kinds)
        rows.append(f"| {kinds_named} | {', '.join(named)} | {told} |")
    return "\n".join(rows)


def test_the_page_has_the_table_of_the_code() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip() == table()


def test_every_kind_is_in_one_row() -> None:
    kinds = [kind for found in kinds_by_metrics().values() for kind in found]
    assert sorted(kinds) == sorted(KINDS)


def test_the_template_lists_the_figures_of_every_kind() -> None:
    text = " ".join(re.sub(r"^# ", "", line) for line in template().splitlines())
    for kind in KINDS.values():
        (found,) = re.findall(rf"[ ,]{kind.name}[^:;.]*: ([a-z0-9_, ]+)[;.]", text)
        assert tuple(found.split(", ")) == kind.metrics
    (lower,) = re.findall(r"Lower is better of ([a-z_, ]+), higher of all others", text)
    known = {metric for kind in KINDS.values() for metric in kind.metrics}
    assert set(lower.split(", ")) == {metric for metric in known if not higher_is_better(metric)}
