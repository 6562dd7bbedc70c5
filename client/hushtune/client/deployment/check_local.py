"""What can be checked of a site without its coordinator and without a model."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)

from hushtune.client.budget import budget
from hushtune.client.deployment.check_kinds import Check, failed, ok, tried, warning
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.terms import Terms
from hushtune.common.config import RunConfig
from hushtune.common.config_data import DataConfig
from hushtune.common.config_task import TaskConfig
from hushtune.common.deployment import SiteCard
from hushtune.common.errors import HushtuneError, KeyFileError
from hushtune.common.packages import CORE, installed
from hushtune.common.privacy.figures import upwards
from hushtune.common.privacy.ledger_files import head_path
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.signing import load_signing_key, public_text, read_private
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.formats import format_of
from hushtune.common.tasks.forms import layout_of
from hushtune.common.tasks.readers import open_records
from hushtune.common.tasks.rows import Columns

_FEW_OF_A_LABEL, _MOST_LABELS = 10, 8
_DISK_LEAST, _DISK_GOOD = 200, 2048
_MEMORY_GOOD = 2048
_SIZE_OFF = 0.2
NAME_THE_RUN = "--config RUN.toml reads them as that run does"


def own_data(site: SiteFile, terms: Terms | None) -> DataConfig:
    """The site's rows where no run says how they are read: by the defaults of a run's settings."""
    table = site.table.data
    group = None if terms is None else terms.group
    return DataConfig(
        files={site.name: table.file},
        text=table.text,
        second=table.second,
        columns=table.columns,
        label=table.label,
        group=group,
    )


def likely_task(site: SiteFile) -> TaskConfig:
    """What is learnt from a site's rows where no run says it: by what ``site.toml`` names, how the
    file is called, and its columns. Whether numbers are classes nothing here tells."""
    table = site.table.data
    if table.columns:
        return TaskConfig(kind="tabular-classification")
    if table.second is not None:
        return TaskConfig(kind="text-pair-classification")
    if format_of(table.file) == ".conll":
        return TaskConfig(kind="token-classification")
    answers = TaskConfig(kind="causal-lm")
    try:
        records = open_records(table.file)
        if not records.own_names:
            return answers
        layout = layout_of(records, Columns(table.text, table.label, kind=answers.kind))
    except HushtuneError:  # told where the rows are read
        return TaskConfig()
    return TaskConfig() if layout.form == "columns" else answers


def check_data(rows: LabelledRows, site: SiteFile, *, of_run: bool) -> list[Check]:
    """What was read: rows, units, labels, and what was left out. Counts stay here.

    ``of_run``: read as a run reads them, and not as its kind is likely to be.
    """
    split = rows.sites[site.name]
    parts = (split.train, split.validation, split.test)
    units = len(rows.units(split.train))
    used = sum(len(part) for part in parts)
    of = "" if rows.groups is None else f" of {units} groups in training"
    found = [
        ok(
            "data",
            f"{site.table.data.file.name}: {rows.report.read} rows read, {used} used{of} "
            f"({len(split.train)} to train on, {len(split.validation)} to judge by, "
            f"{len(split.test)} kept for a test)"
            + ("" if of_run else f", as {rows.kind.name} reads them; {NAME_THE_RUN}"),
        )
    ]
    if rows.report.dropped:
        left_out = sum(rows.report.dropped.values())
        told = "; ".join(rows.report.lines())
        much = left_out > rows.report.read / 10
        found.append(
            (warning if much else ok)("rows left out", f"{left_out} of {rows.report.read}: {told}")
        )
    counts = Counter(rows.strata[int(label)] for part in parts for label in rows.labels[part])
    told = ", ".join(f"{name} {counts[name]}" for name in rows.strata[:_MOST_LABELS])
    told += f" and {len(rows.strata) - _MOST_LABELS} more labels" * (
        len(rows.strata) > _MOST_LABELS
    )
    rare = [name for name in rows.strata if counts[name] < _FEW_OF_A_LABEL]
    if rare:
        found.append(
            warning(
                "labels",
                told,
                expected=f"{_FEW_OF_A_LABEL} rows or more of each",
                do=f"see whether {rare[0]!r} is a label, and whether it is spelt as the "
                "coordinator spells it",
            )
        )
    else:
        found.append(ok("labels", told))
    return found


def check_size(config: RunConfig, rows: LabelledRows, site: SiteFile) -> Check:
    """Whether the size that a run declares is about that of the rows."""
    declared = config.data.public_sizes[site.name]
    units = len(rows.units(rows.sites[site.name].train))
    given = f"{declared} declared by the run, {units} here"
    if abs(declared - units) <= _SIZE_OFF * units:
        return ok("declared size", given)
    return warning(
        "declared size",
        given,
        expected="about the same",
        do="tell the coordinator a number that may be known (data.public_sizes), and put it into "
        "policy.toml as public_size: batches and weights follow from it",
    )


def check_policy(terms: Terms, units: int | None, site: SiteFile) -> list[Check]:
    """Whether the policy promises something, and what of it is left."""
    given = f"epsilon {terms.max_epsilon:g} at delta {terms.max_delta:g}, in all runs together"
    found = [ok("policy", f"{given}; trust {', '.join(terms.trust)}; by {terms.charged_unit}")]
    if units and terms.unit != "client" and terms.max_delta * units >= 1:
        found = [
            failed(
                "policy",
                f"max_delta {terms.max_delta:g} promises nothing to {units} units",
                expected=f"below {1 / units:.3g}",
                do="lower max_delta in policy.toml",
            )
        ]
    return found + tried("budget", lambda: [_budget(terms, site.ledger)])


def _budget(terms: Terms, ledger: Path) -> Check:
    if not ledger.exists() and not head_path(ledger).exists():
        return ok("budget", f"epsilon 0 of {terms.max_epsilon:g} spent: no ledger is begun yet")
    spent = budget(read_ledger(ledger), terms)["epsilon"]
    if spent is None or spent >= terms.max_epsilon:
        return failed(
            "budget",
            f"epsilon {'without bound' if spent is None else upwards(spent)} is spent of "
            f"{terms.max_epsilon:g}",
            expected="something left to spend",
            do="no run can be taken part in with these rows; that is what the limit is for",
        )
    left = terms.max_epsilon - spent
    given = f"epsilon {upwards(spent)} of {terms.max_epsilon:g} spent, about {left:.3g} left"
    low = left < terms.max_epsilon / 10
    return warning("budget", given, expected="enough for a run") if low else ok("budget", given)


def check_keys(site: SiteFile) -> list[Check]:
    """Whether the private keys are there, are keys, and are the owner's alone."""
    return tried("site key", lambda: [_sign_key(site)]) + tried(
        "node key", lambda: [_node_key(site)]
    )


def _sign_key(site: SiteFile) -> Check:
    found = public_text(load_signing_key(site.sign_key))
    return _as_card(site, "site key", found, of_node=False)


def _node_key(site: SiteFile) -> Check:
    try:
        key = load_ssh_private_key(read_private(site.node_key), None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(
            "the node's key is none",
            given=str(site.node_key),
            expected="an elliptic-curve key in OpenSSH's form, as `hushtune site init` makes it",
            remedy="put the file back from a backup, or begin anew with new keys",
        )
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return _as_card(site, "node key", public.decode("ascii"), of_node=True)


def _as_card(site: SiteFile, what: str, public: str, *, of_node: bool) -> Check:
    path = site.folder / f"{site.name}.pub"
    if not path.is_file():
        return ok(what, "mode 0600")
    card = SiteCard.read(path)
    if public != (card.node_key if of_node else card.sign_key) or card.name != site.name:
        return failed(
            what,
            f"{path.name} speaks of another key or name",
            expected="the card of these keys",
            do="put keys and card back from one backup, or begin anew with new keys",
        )
    return ok(what, f"mode 0600, as {path.name} says")


def check_versions() -> list[Check]:
    """Python and the libraries that a site needs."""
    python = platform.python_version()
    good = (3, 11) <= tuple(map(int, python.split(".")[:2])) <= (3, 13)
    found = [installed(name) for name in CORE]
    wrong = [package for package in found if not package.ok]
    if good and not wrong:
        told = ", ".join(f"{package.name} {package.found}" for package in found)
        return [ok("versions", f"Python {python}, {told}")]
    checks = [] if good else [failed("versions", f"Python {python}", expected="3.11, 3.12 or 3.13")]
    return checks + [
        failed(
            "versions",
            f"{package.name}: {package.words}",
            expected=package.allowed or "installed",
            do=f"pip install '{package.name}{package.allowed}'",
        )
        for package in wrong
    ]


def check_disk(folder: Path) -> Check:
    """Room for ledgers, logs and results."""
    free = shutil.disk_usage(folder).free / 2**20
    given = f"{free / 1024:.1f} GiB free in {folder}"
    if free < _DISK_LEAST:
        return failed("disk", given, expected=f"{_DISK_LEAST} MiB", do="free some space")
    if free < _DISK_GOOD:
        return warning("disk", given, expected=f"{_DISK_GOOD / 1024:g} GiB", do="free some space")
    return ok("disk", given)


def check_memory() -> Check:
    """Memory that is free now; what training needs is told by the dry step."""
    free = free_megabytes()
    if free is None:
        return warning("memory", "cannot tell on this system")
    given = f"{free / 1024:.1f} GiB free"
    if free < _MEMORY_GOOD:
        return warning("memory", given, expected=f"{_MEMORY_GOOD / 1024:g} GiB or more")
    return ok("memory", given)


def free_megabytes() -> float | None:
    """Memory that a new process can have, in MiB; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return free / 1024
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError, AttributeError):
        return None
