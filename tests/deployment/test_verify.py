"""`hushtune verify`: what fits is found sound, and each planted fault is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.deployment import Invitation
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.signed_files import Signed, write_manifest
from hushtune.common.signing import load_signing_key, make_signing_key, public_text

from ..conftest import Settings
from .finished import Place, institutions, run_there
from .test_handover import own_rows


@pytest.fixture(scope="module")
def kept(tiny_bert: Path, three_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run that was handed over, and the first charge of a later one."""
    root = tmp_path_factory.mktemp("deployment")
    institutions(root)
    place = run_there(root, own_rows(Settings(tiny_bert, three_sites)))
    shutil.copytree(place.site("north"), root / "north before")
    place.handed_over()
    event = DpSgdEvent(sampling_probability=0.1, noise_multiplier=3.0, steps=1)
    Ledger(place.site("north") / "policy.sqlite").charge(event, dataset="d", run="later", round=1)
    return place


@pytest.fixture
def place(kept: Place, tmp_path: Path) -> Place:
    return kept.copied(tmp_path / "all")


def found(hushtune: Any, *arguments: object) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the checks by what they are of."""
    answer = hushtune("verify", *arguments, "--json")
    told = json.loads(answer.out.splitlines()[-1])
    assert told["ok"] is (answer.status == 0)
    return answer.status, {check["what"]: check for check in told["checks"]}


def test_what_fits_is_found_sound(place: Place, hushtune: Any) -> None:
    status, checks = found(hushtune, place.results("north"))
    assert status == 0, checks
    assert all(check["ok"] for check in checks.values())
    assert "1 came later" in checks["ledger"]["told"]
    status, checks = found(hushtune, place.out)
    assert status == 0, checks
    assert all(check["ok"] for check in checks.values())
    assert {"receipt of north", "largest epsilon", "model", "settings"} <= checks.keys()
    assert "FAILED" not in hushtune("verify", place.out).out


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def north(place: Place) -> Path:
    return place.results("north")


def signed_anew(place: Place, **figures: Any) -> None:
    """A statement that tells other figures, and everything that north signs of it."""
    folder, key = north(place), load_signing_key(place.site("north") / "keys" / "site.key")
    told = json.loads((folder / "privacy.json").read_text())
    told["sites"]["north"] |= figures
    (folder / "privacy.json").write_text(json.dumps(told))
    from hushtune.common.signed_files import sha256_of

    receipt = dict(Signed.read(folder / "receipt.json").document)
    receipt |= {key: value for key, value in figures.items() if key in receipt}
    receipt["statement"] = sha256_of(folder / "privacy.json")
    Signed.by(key, receipt).write(folder / "receipt.json")
    write_manifest(folder, key, {"run": "r", "site": "north"}, None)


def rolled_back(place: Place) -> None:
    """The ledger, with its head, as it was before the hand-over, and other charges since."""
    ledger = place.site("north") / "policy.sqlite"
    ledger.unlink()
    ledger.with_name("policy.sqlite.head").unlink()
    event = DpSgdEvent(sampling_probability=0.1, noise_multiplier=3.0, steps=1)
    Ledger(ledger).charge(event, dataset="d", run="other", round=1)


SITE: dict[str, tuple[Callable[[Place], object], str, str]] = {
    "a byte of the adapter": (
        lambda p: flip(north(p) / "adapter" / "adapter_model.safetensors"),
        "files",
        "adapter_model.safetensors was changed",
    ),
    "the statement": (
        lambda p: edit(north(p) / "privacy.json", '"epsilon": ', '"epsilon": 0'),
        "files",
        "privacy.json was changed",
    ),
    "the page": (
        lambda p: edit(north(p) / "privacy.html", "<h1>", "<h1>Not a "),
        "files",
        "privacy.html was changed",
    ),
    "a file more": (lambda p: (north(p) / "x").write_text(""), "files", "x was added"),
    "a link more": (
        lambda p: (north(p) / "x").symlink_to(north(p) / "privacy.md"),
        "files",
        "x, which is no file, was added",
    ),
    "a file less": (lambda p: (north(p) / "privacy.md").unlink(), "files", "privacy.md is missing"),
    "the record": (
        lambda p: edit(north(p) / "record.json", '"rounds": 3', '"rounds": 2'),
        "record",
        "HT802",
    ),
    "another site's record": (
        lambda p: shutil.copy(p.results("south") / "record.json", north(p) / "record.json"),
        "keys",
        "the site's key is not known",
    ),
    "a receipt of another": (
        lambda p: shutil.copy(p.results("south") / "receipt.json", north(p) / "receipt.json"),
        "receipt",
        "HT802",
    ),
    "no manifest": (lambda p: (north(p) / "manifest.json").unlink(), "manifest", "HT802"),
    "a statement that was signed and is untrue": (
        lambda p: signed_anew(p, epsilon=0.5),
        "recomputed",
        "epsilon is 0.5 there",
    ),
    "a ledger that was rolled back": (rolled_back, "ledger", "rolled back or replaced"),
}


@pytest.mark.parametrize("fault", list(SITE))
def test_each_fault_of_a_site_s_folder_is_named(place: Place, hushtune: Any, fault: str) -> None:
    plant, what, words = SITE[fault]
    plant(place)
    status, checks = found(hushtune, north(place))
    assert status == 1
    assert checks[what]["ok"] is False
    assert words in checks[what]["told"]


def statement(place: Place, **changes: Any) -> None:
    """The coordinator's statement with other figures, all of it signed by the coordinator."""
    key = load_signing_key(place.home / "keys" / "signing.key")
    document = dict(Signed.read(place.out / "statement.json").document)
    Signed.by(key, {**document, **changes}).write(place.out / "statement.json")


def of_north(place: Place, **changes: Any) -> None:
    sites = Signed.read(place.out / "statement.json").document["sites"]
    statement(place, sites={**sites, "north": {**sites["north"], **changes}})


COORDINATOR: dict[str, tuple[Callable[[Place], object], str, str]] = {
    "a byte of the model": (
        lambda p: flip(p.out / "model.safetensors"),
        "model",
        "in place of",
    ),
    "the settings": (
        lambda p: edit(p.out / "config.toml", "rounds = 3", "rounds = 4"),
        "settings",
        "in place of",
    ),
    "the statement": (
        lambda p: edit(p.out / "statement.json", '"delta"', '"delta "'),
        "statement",
        "HT802",
    ),
    "a receipt": (
        lambda p: edit(p.out / "receipts" / "north.json", "charges_of_run", "charges"),
        "receipt of north",
        "HT802",
    ),
    "a receipt of another site": (
        lambda p: shutil.copy(p.out / "receipts" / "south.json", p.out / "receipts" / "north.json"),
        "receipt of north",
        "HT802",
    ),
    "less than a site has signed": (
        lambda p: of_north(p, epsilon=0.1),
        "receipt of north",
        "another value of epsilon",
    ),
    "less than the largest": (lambda p: statement(p, epsilon=0.1), "largest epsilon", "in place"),
    "a page": (
        lambda p: edit(p.out / "statement.html", "signed by the site", "best of all"),
        "files",
        "statement.html was changed",
    ),
    "an unknown site": (
        lambda p: (p.home / "sites" / "north.json").unlink(),
        "receipt of north",
        "not known",
    ),
}


@pytest.mark.parametrize("fault", list(COORDINATOR))
def test_each_fault_of_a_coordinator_s_folder_is_named(
    place: Place, hushtune: Any, fault: str
) -> None:
    plant, what, words = COORDINATOR[fault]
    plant(place)
    status, checks = found(hushtune, place.out)
    assert status == 1
    assert checks[what]["ok"] is False
    assert words in checks[what]["told"]


def test_a_folder_that_was_carried_away_is_checked_by_keys_that_are_given(
    place: Place, hushtune: Any, tmp_path: Path
) -> None:
    alone = tmp_path / "elsewhere" / "a" / "run"
    shutil.copytree(north(place), alone)
    assert hushtune("verify", alone).status == 1
    keys = ("--key", place.home / "federation.toml", "--key", place.site("north") / "north.pub")
    status, checks = found(hushtune, alone, *keys)
    assert status == 0
    assert checks["ledger"]["ok"] is None  # it is not at hand, and that is said
    ledger = place.site("north") / "policy.sqlite"
    assert found(hushtune, alone, *keys, "--ledger", ledger)[1]["recomputed"]["ok"]
    other = Invitation.read(place.home / "federation.toml").model_copy(
        update={"sign_key": public_text(make_signing_key(tmp_path / "other.key"))}
    )
    other.write(tmp_path / "federation.toml")
    status, checks = found(hushtune, alone, *keys, "--key", tmp_path / "federation.toml")
    assert status == 1
    assert "HT802" in checks["record"]["told"]


def test_a_folder_without_results_is_refused(hushtune: Any, tmp_path: Path) -> None:
    answer = hushtune("verify", tmp_path)
    assert answer.status == 2
    assert "HT201" in answer.err
