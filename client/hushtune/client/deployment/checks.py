"""``hushtune site check``: all that can be known of a site before it joins, line by line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hushtune.client.deployment.check_kinds import (
    Check,
    Verdict,
    cannot_tell,
    of_error,
    of_os_error,
    tried,
    warning,
)
from hushtune.client.deployment.check_local import (
    NAME_THE_RUN,
    check_data,
    check_disk,
    check_keys,
    check_memory,
    check_policy,
    check_size,
    check_versions,
    likely_task,
    own_data,
)
from hushtune.client.deployment.check_network import check_server
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.terms import Terms, load_terms
from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError, LabelError
from hushtune.common.tasks.data import LabelledRows, load_data

if TYPE_CHECKING:
    from hushtune.client.deployment.check_training import Foresee

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of a site, in the order in which they were made."""

    site: str
    checks: tuple[Check, ...]

    @property
    def good(self) -> bool:
        """Whether nothing failed; warnings are for people to judge."""
        return all(check.verdict is not Verdict.FAILED for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "site": self.site,
            "ok": self.good,
            "checks": [check.to_dict() for check in self.checks],
        }


def check_site(
    folder: Path,
    config: RunConfig | None = None,
    *,
    foresee: Foresee | None = None,
    hear: Callable[[str], None] = lambda _: None,
) -> Report:
    """Look at data, policy, keys, libraries, server, and, given ``foresee``, at a training step.

    Args:
        folder: a site's, or its ``site.toml``.
        config: a run's settings, as the coordinator has them; else the defaults are tried.
        foresee: which orders a site would get; see ``check_training.Foresee``.
        hear: is told what is looked at next.

    Raises DeploymentError and ConfigError where the folder is no site's; all else is in the report.
    """
    site = SiteFile.read(folder)
    found: list[Check] = []
    hear("policy, keys and libraries")
    terms = _kept(found, "policy", lambda: load_terms(site.table.policy))
    found += check_keys(site)
    found += tried("versions", check_versions)
    found += tried("disk", lambda: [check_disk(site.folder)])
    found += tried("memory", lambda: [check_memory()])
    hear("the coordinator's server")
    found += check_server(site)
    hear("the rows")
    run = None if config is None else _kept(found, "run", lambda: _of_this_site(config, site))
    read_by = config if config is not None and config.data.source == "sites" else None
    rows = _kept(found, "data", lambda: _rows(found, site, terms, read_by))
    units = None
    if rows is not None:
        units = len(rows.units(rows.sites[site.name].train))
        found += check_data(rows, site, of_run=read_by is not None)
    if terms is not None:
        found += check_policy(terms, units, site)
    if run is not None and rows is not None:
        found.append(check_size(run, rows, site))
    if foresee is not None:
        hear("the model, and one training step")
        found += _training(site, config, run, rows, terms, foresee)
    return Report(site=site.name, checks=tuple(_in_order(found)))


def _training(
    site: SiteFile,
    config: RunConfig | None,
    run: RunConfig | None,
    rows: LabelledRows | None,
    terms: Terms | None,
    foresee: Foresee,
) -> list[Check]:
    if rows is None or (config is not None and run is None):
        return [cannot_tell("training step", "no rows can be trained on yet")]
    if run is None and not rows.kind.has_head:
        told = "cannot tell: which language model is trained, a run says"
        return [warning("training step", told, do="name the run: --config RUN.toml")]
    from hushtune.client.deployment.check_training import check_training, default_run

    def look() -> Sequence[Check]:
        tried_run = default_run(site, terms, rows) if run is None else run
        return check_training(site, tried_run, terms, foresee, of_run=run is not None)

    return tried("training step", look)


def _kept(found: list[Check], what: str, look: Callable[[], _Value]) -> _Value | None:
    """What a look gives; None, and a failure among those found, where it raises an error."""
    try:
        return look()
    except HushtuneError as error:
        found.append(of_error(what, error))
    except OSError as error:
        found.append(of_os_error(what, error))
    return None


def _of_this_site(config: RunConfig, site: SiteFile) -> RunConfig:
    from hushtune.client.site import check_takes_part

    check_takes_part(config, site)
    return config


def _rows(
    found: list[Check], site: SiteFile, terms: Terms | None, run: RunConfig | None
) -> LabelledRows | None:
    """As the run reads them; without one as its kind is likely to be, where targets that make no
    classes are no fault yet: they may be numbers."""
    if run is not None:
        of_unit = {"records_per_group": run.privacy.records_per_group}
        return load_data(site.configured(run).data, run.task, seed=run.seed, **of_unit)
    try:
        return load_data(own_data(site, terms), likely_task(site), seed=0)
    except LabelError as error:
        told = of_error("data", error)
        do = "; ".join(part for part in (told.do, NAME_THE_RUN) if part)
        found.append(warning("data", told.given, expected=told.expected, do=do))
    return None


def _in_order(checks: Sequence[Check]) -> list[Check]:
    """What is the site's own before what needs others."""
    first = ("data", "rows left out", "labels", "declared size", "policy", "budget")
    place = {what: number for number, what in enumerate(first)}
    return sorted(checks, key=lambda check: place.get(check.what, len(first)))
