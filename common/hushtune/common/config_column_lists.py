"""The public ranges and lists of a table's columns, each by itself."""

from __future__ import annotations

from collections.abc import Mapping

from hushtune.common.config_base import refuse


def check_column_lists(
    ranges: Mapping[str, tuple[float, float]], values: Mapping[str, tuple[str, ...]]
) -> None:
    """Refuse a range that is none, a list with a value twice, and a column that has both."""
    for name, (low, high) in ranges.items():
        if not low < high:
            refuse(
                f"the range of column {name!r} begins with the smaller number",
                key="column_ranges",
                given=[low, high],
                expected="least, then largest possible value",
                remedy="swap the two numbers",
            )
    for name, listed in values.items():
        if not listed or len(set(listed)) < len(listed):
            refuse(
                f"the values of column {name!r} are one at least, each named once",
                key="column_values",
                given=", ".join(listed),
                expected='such as column_values = {job = ["nurse", "clerk"]}',
                remedy="list every value of the column once",
            )
    both = sorted(set(ranges) & set(values))
    if both:
        refuse(
            f"column {both[0]!r} is either of numbers or of categories",
            key="column_values",
            given="a range and a list",
            expected="one of the two",
            remedy="leave it out of one of the two",
        )
