"""What the options of ``hushtune data`` amount to: columns of a file, or a run over files."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from hushtune.common.config import DataConfig, RunConfig
from hushtune.common.config_problems import Origins, as_config_error
from hushtune.common.errors import ConfigError
from hushtune.common.kinds import KINDS
from hushtune.common.tasks.formats import format_of
from hushtune.common.tasks.rows import Columns


def columns(
    text: str,
    label: str,
    site: str | None,
    *,
    kind: str,
    form: str,
    second: str | None,
    columns: str | None,
) -> Columns:
    """The columns that a preview reads; ConfigError for a kind or form that there is not."""
    forms = get_args(DataConfig.model_fields["form"].annotation)
    for option, given, known in (("--kind", kind, tuple(KINDS)), ("--form", form, forms)):
        if given not in known:
            near = difflib.get_close_matches(given, known, n=1)
            raise ConfigError(
                f"{option} has a value that there is not",
                given=given,
                expected=", ".join(known),
                remedy=f"did you mean {near[0]}?" if near else None,
            )
    return Columns(text, label, site, second=second, columns=names(columns), kind=kind, form=form)


def names(given: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(part.strip() for part in (given or "").split(",") if part.strip())


def bounds(given: str | None) -> tuple[float, float] | None:
    """Least and largest number of ``--range``; ConfigError where it is none."""
    if given is None:
        return None
    try:
        low, high = (float(part) for part in given.split(","))
        if low < high:
            return low, high
    except ValueError:
        pass
    raise ConfigError(
        "--range is no range",
        given=given,
        expected="least and largest number: --range 0,100",
        remedy="give two numbers, the smaller first",
    )


def run_over(paths: Sequence[Path], settings: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """A run over files, one a site, or over one file with a column of sites.

    ``settings``: tables of settings; those that are None are left out. Raises ConfigError.
    """
    tree = {
        table: {key: value for key, value in given.items() if value not in (None, (), {})}
        for table, given in settings.items()
    }
    data = tree.setdefault("data", {})
    if len(paths) == 1 and "site" in data:
        data["file"] = paths[0]
    elif "site" in data:
        raise ConfigError(
            "several files are one site each, so no column names the site",
            given=f"{len(paths)} files and --site {data['site']}",
            expected="one file with --site, or several without",
            remedy="leave --site out, or give one file",
        )
    else:
        data["files"] = dict(zip(site_names(paths), paths, strict=True))
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise as_config_error(error, Origins({}, ["the options"])) from None


def site_names(paths: Sequence[Path]) -> list[str]:
    """What sites are called by their files; with the folder where two files are called alike.

    >>> site_names([Path("north.csv"), Path("south.jsonl.gz")])
    ['north', 'south']
    """
    stems = [
        path.name.removesuffix(".gz").removesuffix(format_of(path)) or path.name for path in paths
    ]
    often = Counter(stems)
    named = [
        stem if often[stem] == 1 else f"{path.absolute().parent.name}/{path.name}"
        for stem, path in zip(stems, paths, strict=True)
    ]
    often = Counter(named)
    return [n if often[n] == 1 else f"{n} ({i})" for i, n in enumerate(named, start=1)]


def shares(given: Sequence[str]) -> dict[str, float]:
    """Public shares of classes; ConfigError for what is none.

    >>> shares(["bad=0.1", "good=0.9"])
    {'bad': 0.1, 'good': 0.9}
    """
    found: dict[str, float] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < math.inf:
            raise ConfigError(
                "--public-share is no share of a class",
                given=text,
                expected="LABEL=SHARE with a number above 0, such as bad=0.1",
                remedy="give a label of the rows and a number",
            )
        found[name] = value
    return found
