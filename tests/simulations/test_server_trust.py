"""Runs under trust = server from end to end: figures, statement, policies, dry run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import load_config
from hushtune.common.errors import QuorumError, SiteError
from hushtune.common.presets import PRESETS
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.plan import Relation
from hushtune.server.checkpoint import load
from hushtune.simulations import run
from hushtune.simulations.estimate import estimate
from hushtune.simulations.planner_clients import plan_clients
from hushtune.simulations.planner_outline import Outline

CLIENTS: dict[str, Any] = {
    "data__site": None,
    "data__partition": "iid",
    "data__sites": 10,
    "privacy__trust": "server",
    "privacy__unit": "client",
    "privacy__delta": 1e-2,
}


def statement(out: Path) -> dict[str, Any]:
    return json.loads((out / "privacy.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "how", [{}, {"privacy__adaptive_clipping": True}, {"privacy__client_turns": 2}]
)
def test_a_run_and_its_statement(settings: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    summary = run(settings.config(**CLIENTS, **how), tmp_path / "out")
    told = statement(tmp_path / "out")
    server = told["server"]
    entries = [LedgerEntry.from_dict(row) for row in server["ledger"]]
    assert [entry.previous for entry in entries] == [GENESIS, *(e.hash for e in entries[:-1])]
    assert {entry.unit for entry in entries} == {"client"}
    assert len(entries) == (1 if how.get("privacy__client_turns") else 3)
    spent = epsilon([e.event for e in entries], delta=1e-2, relation=Relation.ADD_OR_REMOVE_ONE)
    assert told["guarantee"]
    assert f"ledger, in {tmp_path / 'out' / 'checkpoint'}" in summary["rests_on"]
    assert server["epsilon"] == spent <= 3.0
    assert {row["epsilon"] for row in summary["sites"].values()} == {spent}
    assert not (tmp_path / "out" / "ledger").exists()
    assert list(load(tmp_path / "out" / "checkpoint").ledger) == server["ledger"]
    for page in ("privacy.md", "privacy.html"):
        text = (tmp_path / "out" / page).read_text(encoding="utf-8")
        assert "adding or removing all data of one client among the 10 of a public list" in text
        assert "have to trust the server" in text
        assert "reach the server in the clear" in text
        assert "the global adapter after each round" in text
        assert ("follows a noised count" in text) is ("privacy__adaptive_clipping" in how)
        assert ("it holds noise that later rounds take back" in text) is (
            "privacy__client_turns" in how
        )
        assert "NO PRIVACY" not in text
        assert "hushtune ledger verify DIR --head HASH" in text
        assert "Noised sums are put on a public grid" in text
        assert "noised sums on a public grid" in text
        assert "none: every client" not in text


def test_who_was_drawn_is_in_no_file_of_the_run(settings: Any, tmp_path: Path) -> None:
    run(settings.config(**CLIENTS, privacy__client_sampling_probability=0.5), tmp_path / "out")
    for line in (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert (row["accepted"], row["rejected"], row["bytes_up"]) == ([], {}, 0)
    text = (tmp_path / "out" / "privacy.md").read_text(encoding="utf-8")
    assert "who was drawn for a round" in text
    assert statement(tmp_path / "out")["server"]["sampling_probability"] == 0.5


def test_seeded_noise_is_no_privacy(settings: Any, tmp_path: Path) -> None:
    run(settings.config(**CLIENTS, privacy__insecure_seeded_noise=True), tmp_path / "out")
    told = statement(tmp_path / "out")
    assert not told["guarantee"]
    assert told["server"]["epsilon"] is None
    for page in ("privacy.md", "privacy.html"):
        assert "NO PRIVACY" in (tmp_path / "out" / page).read_text(encoding="utf-8")


def test_the_preset_and_what_it_is_compared_with(settings: Any, tmp_path: Path) -> None:
    model = settings.tree()["model"]["name"]
    few = ["data.max_rows_per_site=20", "data.sites=12", "train.rounds=2", "train.warmup_rounds=1"]
    config = load_config(preset="clients", presets=PRESETS, overrides=[*few, f"model.name={model}"])
    summary = run(config, tmp_path / "out")
    compared = {name for name, value in summary["baselines"].items() if value is not None}
    assert compared == {"majority", "untrained", "head_private", "head_best", "pooled"}
    assert (summary["trust"], summary["unit"], len(summary["sites"])) == ("server", "client", 12)
    assert statement(tmp_path / "out")["guarantee"]
    card = (tmp_path / "out" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "DP for all data of any one client" in card
    assert "clients trust the server" in card


# ------------------------------------------------------------------------- the server's ledger ----


def test_the_server_s_ledger_is_shown_verified_and_exported(
    settings: Any, tmp_path: Path, hushtune: Any
) -> None:
    """An auditor of such a run has the same commands as one of sites' own ledgers."""
    out = tmp_path / "out"
    run(settings.config(**CLIENTS), out)
    server = statement(out)["server"]
    for place in (out, out / "checkpoint", out / "checkpoint" / "latest.hushtune"):
        said = hushtune("ledger", "show", place, "--json")
        assert said.status == 0, said.err
        told = json.loads(said.out.splitlines()[-1])
        (data_set,) = told["ledgers"]["server"]["datasets"].values()
        assert data_set["epsilon"]["add_or_remove_one"] == server["epsilon"]
        assert told["delta"] == 1e-2
    head = server["ledger_head"]
    said = hushtune("ledger", "verify", out, "--head", head)
    assert said.status == 0, said.err
    assert "and the noted head is its last" in said.out
    assert hushtune("ledger", "verify", out, "--head", "ab" * 32).status == 2
    said = hushtune("verify", out)  # which is of what sites and a coordinator have signed
    assert said.status == 2
    assert "a simulation's folder, in which nothing is signed" in said.err
    assert f"`hushtune ledger verify {out}` checks the ledgers" in " ".join(said.err.split())
    exported = json.loads(hushtune("ledger", "export", out, "--json").out.splitlines()[-1])
    assert exported["ledgers"]["server"]["charges"] == server["ledger"]
    again = hushtune("simulate", "--config", out / "config.toml", "--out", out, "--overwrite")
    assert "had up to 3 charges at its server" in " ".join(again.out.split())


def test_a_damaged_checkpoint_fails_the_server_s_ledger(
    settings: Any, tmp_path: Path, hushtune: Any
) -> None:
    out = tmp_path / "out"
    run(settings.config(**CLIENTS), out)
    file = out / "checkpoint" / "latest.hushtune"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    for command in ("show", "verify", "export"):
        said = hushtune("ledger", command, out)
        assert said.status == 2
        assert "HT402" in said.err
        assert "the server's ledger cannot be read" in " ".join(said.err.split())


# ---------------------------------------------------------------------------- sites' policies ----


def policies(folder: Path, **terms: Any) -> str:
    import tomli_w

    folder.mkdir()
    text = tomli_w.dumps({"max_epsilon": 3.0, "max_delta": 1e-2, **terms})
    for place in range(10):
        (folder / f"site-{place}.toml").write_text(text, encoding="utf-8")
    return str(folder)


def refused(settings: Any, tmp_path: Path, **terms: Any) -> str:
    config = settings.config(
        **CLIENTS, simulation__policies=policies(tmp_path / "policies", **terms)
    )
    with pytest.raises((QuorumError, SiteError)) as caught:
        run(config, tmp_path / "out")
    return str(caught.value)


def test_a_site_whose_policy_does_not_allow_it_refuses(settings: Any, tmp_path: Path) -> None:
    assert "trust model is not this site's" in refused(settings, tmp_path, unit="client")


def test_a_site_that_protects_records_refuses(settings: Any, tmp_path: Path) -> None:
    found = refused(settings, tmp_path, trust=["site", "server"])
    assert "another unit" in found
    assert "given: client, under trust = server" in found
    assert "expected: example, under trust = site or server, in site-" in found


def test_all_that_a_policy_forbids_is_said_at_once(settings: Any, tmp_path: Path) -> None:
    """Who mends the unit alone would meet the trust model next."""
    found = refused(settings, tmp_path, trust=["site"])
    assert "given: client, under trust = server" in found
    assert "as the policy has them, and privacy.trust too" in found


def test_a_site_refuses_a_run_that_costs_more(settings: Any, tmp_path: Path) -> None:
    found = refused(settings, tmp_path, trust=["server"], unit="client", max_epsilon=2.9)
    assert "costs more than this site allows" in found


def test_a_site_that_allows_it_takes_part(settings: Any, tmp_path: Path) -> None:
    folder = policies(tmp_path / "policies", trust=["server"], unit="client")
    config = settings.config(**CLIENTS, simulation__policies=folder)
    assert estimate(config)["refusals"] == []
    summary = run(config, tmp_path / "out")
    assert summary["rejected"] == {}
    assert not list((tmp_path / "policies").glob("*.sqlite"))


# ------------------------------------------------------------------------------ looking ahead ----


def test_few_clients_make_no_sense_and_many_do() -> None:
    few = plan_clients(4, Outline(delta=1e-4, trained_values=770))
    many = plan_clients(5000, Outline(delta=1e-4, trained_values=770))
    assert few["signal_to_noise"]["run"] < 1.0
    assert many["signal_to_noise"]["run"] > 10.0
    assert 200 < few["needed"] < 2000
    # Twice the clients, twice the signal, as the noise on the sum stays.
    twice = plan_clients(8, Outline(delta=1e-4, trained_values=770))
    assert twice["signal_to_noise"]["run"] == pytest.approx(2 * few["signal_to_noise"]["run"])


def test_the_dry_run_says_so(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    path = settings.file(tmp_path, **CLIENTS)
    said = hushtune("simulate", "--config", path, "--dry-run")
    assert said.status == 0, said.err
    assert "makes no sense with so few clients" in said.out
    assert "all 10 clients" in said.out
    assert 'privacy.trust = "site" with privacy.unit' in " ".join(said.out.split())
    path = settings.file(tmp_path, **CLIENTS, privacy__insecure_seeded_noise=True)
    said = hushtune("simulate", "--config", path, "--dry-run")
    assert "NO PRIVACY: privacy.insecure_seeded_noise = true" in " ".join(said.out.split())
    figures = estimate(settings.config(**CLIENTS))
    assert figures["clients"]["clients"] == 10
    assert figures["clients"]["signal_to_noise"]["run"] < 1.0


def test_plan_says_so(hushtune: Any) -> None:
    said = hushtune("plan", "--clients", "4", "--json")
    assert said.status == 0, said.err
    assert "makes no sense with so few clients" in said.err
    assert json.loads(said.out.splitlines()[-1])["clients"] == 4
    assert hushtune("plan").status == 2
    assert hushtune("plan", "--clients", "4", "--sites", "5,6").status == 2
    assert hushtune("plan", "--clients", "4", "--client-turns", "5").status == 2
    assert hushtune("plan", "--clients", "40", "--client-turns", "5").status == 0
