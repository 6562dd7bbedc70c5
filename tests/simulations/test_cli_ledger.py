"""`hushtune ledger`: figures, refusals by name, and an export that others can check."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from hushtune.client.site import ledger_path
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import GENESIS, Ledger
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.simulations import study

LOUD = DpSgdEvent(sampling_probability=0.1, noise_multiplier=4.0, steps=5)
QUIET = DpSgdEvent(sampling_probability=0.2, noise_multiplier=8.0, steps=2)
SECRET = b"the noised sum itself"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run's folder: two runs on the data of one site, one on that of another."""
    out = tmp_path / "out"
    for site, charges in {
        "north/1": [("d", "first", 1, LOUD), ("d", "second", 1, QUIET), ("d", "first", 2, LOUD)],
        "south": [("e", "first", 1, QUIET), ("f", "first", 1, QUIET)],
    }.items():
        ledger = Ledger(ledger_path(out, site))
        for dataset, run, round, event in charges:
            ledger.charge_with_reply(event, dataset=dataset, run=run, round=round, reply=SECRET)
        ledger.resend("first", 1, dataset=charges[0][0])
    return out


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
        for path in files
    }


def last_json(answer: Any) -> dict[str, Any]:
    return json.loads(answer.out.splitlines()[-1])


# --------------------------------------------------------------------------------- show ----


def test_show_tells_charges_and_composed_epsilons(out: Path, hushtune: Any) -> None:
    before = tree(out)
    answer = hushtune("ledger", "show", out, "--delta", "1e-4", "--json")
    assert answer.status == 0, answer.err
    told = last_json(answer)
    assert told["delta"] == 1e-4
    assert list(told["ledgers"]) == ["north/1", "south"]
    north = told["ledgers"]["north/1"]["datasets"]["d"]
    for relation in Relation:

        def cost(*events: DpSgdEvent, relation: Relation = relation) -> float:
            return accountant.epsilon(events, delta=1e-4, relation=relation)

        kind = str(relation)
        assert north["epsilon"][kind] == cost(LOUD, QUIET, LOUD)
        assert north["runs"]["first"]["epsilon"][kind] == cost(LOUD, LOUD)
        assert north["runs"]["second"]["epsilon"][kind] == cost(QUIET)
    assert (north["num_charges"], north["steps"], north["num_resent"]) == (3, 12, 1)
    south = told["ledgers"]["south"]["datasets"]
    assert {name: dataset["num_charges"] for name, dataset in south.items()} == {"e": 1, "f": 1}
    assert south["e"]["epsilon"][kind] == cost(QUIET)
    assert tree(out) == before


def test_show_prints_tables(out: Path, hushtune: Any) -> None:
    answer = hushtune("ledger", "show", ledger_path(out, "north/1"))
    assert answer.status == 0, answer.err
    ledger = Ledger(ledger_path(out, "north/1"))
    for entry in ledger.entries():
        assert entry.hash[:12] in answer.out
    assert ledger.head() in answer.out
    assert "epsilon at delta 1e-05" in answer.out
    for words in ("first alone", "all runs, composed", "replace one", "sent again"):
        assert words in answer.out
    exact = ledger.epsilon(dataset="d", delta=1e-5, relation=Relation.REPLACE_ONE)
    (row,) = [line for line in answer.out.splitlines() if "all runs" in line]
    assert 0 <= float(row.split("\u2502")[3]) - exact <= 1e-4


def test_show_tells_how_much_of_a_policy_is_spent(tmp_path: Path, hushtune: Any) -> None:
    for site, terms in {
        "north": "max_epsilon = 3.0\nmax_delta = 1e-4\n",
        "south": 'max_epsilon = 2.5\nmax_delta = 1e-6\ndata_set = "ward"\n',
    }.items():
        (tmp_path / f"{site}.toml").write_text(terms)
        ledger = Ledger(tmp_path / f"{site}.sqlite")
        for dataset, event in (("d", LOUD), ("e", QUIET)):
            ledger.charge(event, dataset=dataset, run="r", round=1)
    answer = hushtune("ledger", "show", tmp_path, "--json")
    assert answer.status == 0, answer.err
    told = last_json(answer)
    assert told["delta"] == 1e-6  # the smaller of the two
    north, south = (told["ledgers"][site]["policy"] for site in ("north", "south"))
    kind = Relation.ADD_OR_REMOVE_ONE
    assert north["epsilon"] == accountant.epsilon([LOUD, QUIET], delta=1e-4, relation=kind)
    assert south["epsilon"] == accountant.epsilon([LOUD], delta=1e-6, relation=kind)
    said = " ".join(answer.err.split())
    assert "of 3 spent at delta 0.0001 (add or remove one), for all that this ledger holds" in said
    assert "of 2.5 spent at delta 1e-06" in said
    assert "for the data set that the policy calls ward" in said


def test_a_damaged_ledger_hides_no_other(out: Path, hushtune: Any) -> None:
    ledger_path(out, "north/1").write_bytes(b"torn" * 999)
    answer = hushtune("ledger", "show", out, "--json")
    assert answer.status == 2
    told = json.loads(answer.out.splitlines()[-1])["ledgers"]
    assert (told["north/1"]["ok"], told["north/1"]["code"]) == (False, "HT402")
    assert told["south"]["num_charges"] == 2
    assert "HT402 north/1: " in answer.err


def test_a_delta_that_is_none_is_refused(out: Path, hushtune: Any) -> None:
    answer = hushtune("ledger", "show", out, "--delta", "2")
    assert answer.status == 2
    assert "HT403" in answer.err


# ------------------------------------------------------------------------------- verify ----


@pytest.mark.parametrize("part", ["", "ledger", "ledger/south.sqlite"])
def test_verify_names_each_head_and_touches_nothing(out: Path, hushtune: Any, part: str) -> None:
    before = tree(out)
    answer = hushtune("ledger", "verify", out / part)
    assert answer.status == 0, answer.err
    south = Ledger(ledger_path(out, "south"))
    assert tree(out) == before
    assert "ok south: 2 charges" in answer.out
    assert south.head() in answer.out
    assert ("north/1" in answer.out) is (part != "ledger/south.sqlite")


def change(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement)
    db.close()


def exchange_key(path: Path) -> None:
    """Of a ledger with a charge under its key, as the charges of a site all are."""
    ledger = Ledger(path)
    ledger.charge(LOUD, dataset=ledger.name_of("rows"), run="r", round=1)
    change(path, "UPDATE secret SET key = randomblob(32)")


@pytest.mark.parametrize("fault", ["row", "reply", "mode", "head mode", "deleted", "cut", "key"])
def test_verify_refuses_by_name(out: Path, hushtune: Any, fault: str) -> None:
    path = ledger_path(out, "south")
    faults: dict[str, tuple[str, Callable[[], object]]] = {
        "row": ("row 1 is damaged", lambda: change(path, "UPDATE charges SET run = 'x'")),
        "reply": ("reply kept", lambda: change(path, "UPDATE replies_kept SET reply = x'00'")),
        "mode": ("can be read by others", lambda: path.chmod(0o644)),
        "head mode": ("can be read by others", lambda: Path(f"{path}.head").chmod(0o604)),
        "deleted": ("cannot be read", path.unlink),
        "cut": ("cannot be read", lambda: path.write_bytes(b"")),
        "key": ("its key was exchanged", lambda: exchange_key(path)),
    }
    reason, plant = faults[fault]
    plant()
    before = tree(out)
    answer = hushtune("ledger", "verify", out, "--json")
    assert answer.status == 2
    assert "HT402" in answer.err
    assert reason in answer.err
    told = last_json(answer)
    assert told["ok"] is False
    assert told["ledgers"]["north/1"]["ok"] is True
    assert told["ledgers"]["south"]["code"] == "HT402"
    assert tree(out) == before


def test_a_noted_head_tells_growth_from_a_rollback(out: Path, hushtune: Any) -> None:
    path = ledger_path(out, "south")
    noted = [GENESIS, *(entry.hash for entry in Ledger(path).entries())]
    for number, (head, said) in enumerate(
        zip(noted, ("by 2", "by 1", "the noted head is its last"), strict=True)
    ):
        answer = hushtune("ledger", "verify", path, "--head", head, "--json")
        assert answer.status == 0, answer.err
        assert said in answer.err
        assert last_json(answer)["ledgers"]["south"]["num_charges_since_noted"] == 2 - number
    old = tree(out)
    Ledger(path).charge(LOUD, dataset="e", run="first", round=9)
    later = Ledger(path).head()
    for name, (content, *_) in old.items():
        Path(name).write_bytes(content)
    assert hushtune("ledger", "verify", out).status == 0  # by itself it cannot be told
    answer = hushtune("ledger", "verify", out, "--head", f"south={later}")
    assert answer.status == 2
    assert "HT402" in answer.err
    assert "rolled back or replaced" in answer.err


def test_a_noted_head_of_many_ledgers_names_its_site(out: Path, hushtune: Any) -> None:
    for head in (GENESIS, f"east={GENESIS}"):
        answer = hushtune("ledger", "verify", out, "--head", head)
        assert answer.status == 2
        assert "--head south=HASH" in answer.err
    answer = hushtune(
        "ledger", "verify", out, "--head", f"south={GENESIS}", "--head", f"north/1={GENESIS}"
    )
    assert answer.status == 0, answer.err


def test_a_folder_without_ledgers_is_refused_and_left_empty(tmp_path: Path, hushtune: Any) -> None:
    for command in ("show", "verify", "export"):
        for place in (tmp_path, tmp_path / "missing"):
            answer = hushtune("ledger", command, place)
            assert answer.status == 2
            assert "no privacy ledger here" in answer.err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------- export ----


def test_an_export_is_enough_to_check_the_chain_and_recompute_epsilon(
    out: Path, hushtune: Any, tmp_path: Path
) -> None:
    file = tmp_path / "audit.json"
    before = tree(out)
    answer = hushtune("ledger", "export", out, "--to", file, "--json")
    assert answer.status == 0, answer.err
    assert tree(out) == before
    document = json.loads(file.read_text())
    assert document == last_json(hushtune("ledger", "export", out, "--json"))
    assert document == json.loads(hushtune("ledger", "export", out).out)
    north = document["ledgers"]["north/1"]
    assert last_json(answer)["ledgers"]["north/1"]["head"] == north["head"]
    # From here on, with nothing of hushtune.
    previous = document["genesis"]
    pld = PLDAccountant()
    for charge in north["charges"]:
        assert charge["previous"] == previous
        previous = charge.pop("hash")
        text = json.dumps(charge, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == previous
        event = charge["event"]
        step = dp_event.PoissonSampledDpEvent(
            event["sampling_probability"], dp_event.GaussianDpEvent(event["noise_multiplier"])
        )
        pld.compose(dp_event.SelfComposedDpEvent(step, event["steps"]))
    assert previous == north["head"]
    ledger = Ledger(ledger_path(out, "north/1"))
    ours = ledger.epsilon(dataset="d", delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE)
    assert pld.get_epsilon(1e-5) == pytest.approx(ours, abs=2e-3)
    digest = hashlib.sha256(SECRET).hexdigest()
    assert [(r["sequence"], r["sha256"]) for r in north["replies"]] == [
        (number, digest) for number in (1, 2, 3)
    ]
    assert north["resent"] == [{"sequence": 1, "times": 1}]


def test_an_export_holds_no_reply(out: Path, hushtune: Any) -> None:
    text = hushtune("ledger", "export", out).out
    for form in (SECRET.decode(), SECRET.hex(), repr(SECRET), json.dumps(list(SECRET))[1:-1]):
        assert form not in text


def test_a_damaged_ledger_is_named_in_an_export_and_hides_no_other(
    out: Path, hushtune: Any, tmp_path: Path
) -> None:
    whole = json.loads(hushtune("ledger", "export", out).out)
    ledger_path(out, "north/1").write_bytes(b"torn" * 999)
    file = tmp_path / "audit.json"
    answer = hushtune("ledger", "export", out, "--to", file, "--json")
    assert answer.status == 2
    assert "HT402 north/1: " in answer.err
    document = json.loads(file.read_text())
    assert document["ledgers"] == {"south": whole["ledgers"]["south"]}
    assert document["refused"]["north/1"]["code"] == "HT402"
    assert last_json(answer)["refused"].keys() == {"north/1"}
    printed = hushtune("ledger", "export", out)
    assert (printed.status, json.loads(printed.out)) == (2, document)
    ledger_path(out, "south").write_bytes(b"")
    assert hushtune("ledger", "export", out, "--to", tmp_path / "none.json").status == 2
    assert not (tmp_path / "none.json").exists()


def test_an_export_replaces_no_file(out: Path, hushtune: Any) -> None:
    before = tree(out)
    answer = hushtune("ledger", "export", out, "--to", ledger_path(out, "south"))
    assert answer.status == 2
    assert "HT601" in answer.err
    assert tree(out) == before


# ------------------------------------------------------------------ of a run, at its delta ----


def test_epsilon_is_told_at_the_run_s_delta(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    study.run(settings.config(privacy__trust="site", train__rounds=1, train__warmup_rounds=0), out)
    spent = json.loads((out / "summary.json").read_text(encoding="utf-8"))["sites"]["east"]
    for place in (out, out / "ledger", out / "ledger" / "east.sqlite"):
        answer = hushtune("ledger", "show", place, "--json")
        told = last_json(answer)
        assert (told["delta"], told["delta_source"]) == (1e-3, "the run's")
        assert "epsilon at delta 0.001 (the run's)" in answer.err
        (dataset,) = told["ledgers"]["east"]["datasets"].values()
        assert dataset["epsilon"]["add_or_remove_one"] == pytest.approx(spent["epsilon"])
    given = last_json(hushtune("ledger", "show", out, "--delta", "1e-4", "--json"))
    assert (given["delta"], given["delta_source"]) == (1e-4, "as given")


def test_without_a_run_the_delta_is_said_to_be_a_choice(out: Path, hushtune: Any) -> None:
    answer = hushtune("ledger", "show", out, "--json")
    assert last_json(answer)["delta"] == 1e-5
    assert "epsilon at delta 1e-05 (no run here says another; --delta chooses one)" in answer.err


def test_the_names_of_runs_do_not_wrap_at_80_columns(tmp_path: Path) -> None:
    ledger = Ledger(ledger_path(tmp_path, "north"))
    names = ("81101626f5a2b813-0a1b2c3d4e5f", "81101626f5a2b813-0a1b2c3d4e5f/metrics")
    for round_, name in enumerate(names, start=10):
        ledger.charge(LOUD, dataset="d", run=name, round=round_)
    done = subprocess.run(
        [sys.executable, "-m", "hushtune.simulations.cli", "ledger", "show", tmp_path],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    for place, short in enumerate(("81101626f…b2c3d4e5f", "81101…d4e5f/metrics")):
        (row,) = (line for line in lines if short in line and f" 1{place} " in line)
        assert ledger.entries()[place].hash[:12] in row  # one line a charge, with its hash whole
        assert any(f"│ {short} alone " in line for line in lines)
    told = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-m",
                "hushtune.simulations.cli",
                "ledger",
                "show",
                tmp_path,
                "--json",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
    )
    (dataset,) = told["ledgers"]["north"]["datasets"].values()
    assert tuple(dataset["runs"]) == names


@pytest.mark.parametrize("key", ["ledgers", "policies"])
def test_ledgers_that_lie_elsewhere_are_found_by_their_run(
    out: Path, hushtune: Any, tmp_path: Path, key: str
) -> None:
    """Beside the sites' policies, or where several runs share them."""
    run = tmp_path / "run"
    run.mkdir()
    text = (
        f'[data]\nsource = "demo"\n[privacy]\ndelta = 1e-6\n[simulation]\n{key} = "{out}/ledger"\n'
    )
    (run / "config.toml").write_text(text, encoding="utf-8")
    told = last_json(hushtune("ledger", "show", run, "--json"))
    assert set(told["ledgers"]) == {"north/1", "south"}
    assert told["delta"] == 1e-6
    assert hushtune("ledger", "verify", run).status == 0
