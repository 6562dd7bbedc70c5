"""A coordinator's folder of a finished run, checked by whoever has the public keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hushtune.common.config_io import CONFIG
from hushtune.common.errors import HushtuneError
from hushtune.common.handover_messages import RECEIPT, Receipt
from hushtune.common.privacy.statement_federation import FEDERATION_STATEMENT
from hushtune.common.signed_files import Signed, sha256_of
from hushtune.common.site_files import RECEIPTS, STATEMENT_FILE, receipt_file
from hushtune.common.verification import Check, check_folder, checked, equal

MODEL_FILE = "model.safetensors"
COVERED = (
    *(CONFIG, MODEL_FILE, "adapter", RECEIPTS),
    *(STATEMENT_FILE, "statement.md", "statement.html"),
    *("privacy.json", "privacy.md", "privacy.html"),
)
"""What the manifest of such a folder is about; checkpoint, log and state are not results."""
_SLACK = 1e-6
"""Relative, of two bounds that were computed from the same charges in another order."""


def receipt_problem(
    receipt: Mapping[str, Any],
    *,
    epsilon: float | None,
    delta: float,
    num_charges: int,
    last: tuple[int, str] | None,
) -> str | None:
    """Why a site's receipt cannot be right, by what the site has shown before; None where it can.

    ``epsilon``: of the charges shown; ``num_charges``: how many there are in the run; ``last``: the
    number and hash of the last one.
    """
    told, head = receipt["epsilon"], receipt["ledger_head"]
    if receipt["delta"] != delta:
        return f"it is at delta {receipt['delta']:g}, and the plan at {delta:g}"
    if last is not None and receipt["num_charges"] < last[0]:
        return f"its ledger holds {receipt['num_charges']} charges, and charge {last[0]} was shown"
    if last is not None and receipt["num_charges"] == last[0] and head != last[1]:
        return "the last charge of its ledger is not the one that was shown"
    if receipt["charges_of_run"] < num_charges:
        return f"it speaks of {receipt['charges_of_run']} charges, and {num_charges} were shown"
    if told is not None and epsilon is not None and told < epsilon * (1 - _SLACK):
        return f"it tells an epsilon of {told:g}, and the charges shown come to {epsilon:g}"
    return None


def verify_federation(
    folder: Path, *, sign_key: str | None, site_keys: Mapping[str, str]
) -> list[Check]:
    """Everything that can be checked of a coordinator's folder of a run.

    ``sign_key``: the coordinator's; ``site_keys``: of the sites, by name. Where one is not known,
    what it has signed fails, since nothing vouches for it.
    """
    if sign_key is None:
        return [
            Check("keys", False, "the coordinator's key is not known: give --key federation.toml")
        ]
    checks = check_folder(folder, sign_key, COVERED)
    statement = checked(
        "statement",
        lambda: f"signed by {_document(folder, sign_key) and sign_key}",
    )
    checks.append(statement)
    if not statement.ok:
        return checks
    told = _document(folder, sign_key)
    try:
        checks += _hashes(folder, told)
        for name, site in told["sites"].items():
            checks.append(_receipt(folder, told, name, site, site_keys.get(name)))
        checks.append(_largest(told))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        checks.append(Check("statement", False, f"it is damaged: {error}"))
    return checks


def _document(folder: Path, sign_key: str) -> Mapping[str, Any]:
    return Signed.read(folder / STATEMENT_FILE).checked(sign_key, kind=FEDERATION_STATEMENT)


def _hashes(folder: Path, told: Mapping[str, Any]) -> list[Check]:
    """Model and settings are the ones that the statement names."""
    found: list[Check] = []
    for what, name, expected in (
        ("model", MODEL_FILE, told["model"]),
        ("settings", CONFIG, told["config"]),
    ):
        path = folder / name
        given = sha256_of(path) if path.is_file() else f"no {name}"
        found.append(equal(what, given, expected, told=f"sha256 {expected}"))
    return found


def _receipt(
    folder: Path, told: Mapping[str, Any], name: str, site: Mapping[str, Any], key: str | None
) -> Check:
    """That a site has signed just what the statement says of it."""
    what, shown = f"receipt of {name}", site["shown"]
    if site["receipt"] is None:
        return Check(what, None, f"none: {site['missing']}; by {site['source']}")
    if key is None:
        return Check(what, False, f"the site's key is not known: give --key {name}.pub")
    try:
        signed = Signed.read(receipt_file(folder, name))
        receipt = Receipt.from_dict(signed.checked(key, kind=RECEIPT))
    except HushtuneError as error:
        return Check(what, False, f"{error.code} {error.message}")
    given = receipt.to_dict()
    same = {
        "the receipt": (given, site["receipt"]),
        "run": (receipt.run, told["run"]),
        "federation": (receipt.federation, told["federation"]),
        "epsilon": (receipt.epsilon, site["epsilon"]),
        "delta": (receipt.delta, site["delta"]),
    }
    for which, (one, other) in same.items():
        if one != other:
            return Check(what, False, f"the statement has another value of {which} than the site")
    problem = receipt_problem(
        given,
        epsilon=shown["epsilon"] if told["server"] is None else None,
        delta=receipt.delta,
        num_charges=shown["num_charges"],
        last=None,
    )
    if problem is not None:
        return Check(what, False, problem)
    return Check(
        what, True, f"epsilon {receipt.epsilon} at delta {receipt.delta:g}, signed by {key}"
    )


def _largest(told: Mapping[str, Any]) -> Check:
    """The federation's figures are the largest of its sites'."""
    sites = told["sites"].values()
    promised = bool(sites) and all(site["guarantee"] for site in sites)
    most = max(site["epsilon"] for site in sites) if promised else None
    given = (told["guarantee"], told["epsilon"], told["delta"])
    expected = (promised, most, max(site["delta"] for site in sites))
    return equal("largest epsilon", given, expected, told=f"{most} at delta {told['delta']:g}")
