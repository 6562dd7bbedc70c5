"""A dry run says what the sites' own policies and ledgers would refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from hushtune.client.site import close_sites
from hushtune.common.errors import QuorumError, SiteError
from hushtune.simulations import run
from hushtune.simulations.observer import Silent

GENEROUS: dict[str, Any] = {"max_epsilon": 9.0, "max_delta": 1e-3}


def policies(folder: Path, **by_site: Mapping[str, Any] | str | None) -> str:
    """A folder of policies: generous, with other terms, of that text, or (None) missing."""
    folder.mkdir()
    for site in ("east", "north", "south"):
        terms = by_site.get(site, {})
        if terms is not None:
            text = terms if isinstance(terms, str) else tomli_w.dumps({**GENEROUS, **terms})
            (folder / f"{site}.toml").write_text(text, encoding="utf-8")
    return str(folder)


def dry_run(hushtune: Any, toml: Path) -> tuple[Any, list[dict[str, Any]]]:
    answer = hushtune("simulate", "--config", toml, "--dry-run", "--json")
    return answer, json.loads(answer.out.splitlines()[-1])["refusals"]


def test_policies_that_agree_are_not_spoken_of(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    folder = policies(tmp_path / "policies")
    toml = settings.file(tmp_path, privacy__trust="site", simulation__policies=folder)
    before = sorted(tmp_path.rglob("*"))
    answer, found = dry_run(hushtune, toml)
    assert (answer.status, found) == (0, [])
    assert "would refuse" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("terms", "code", "first"),
    [
        ({"min_noise_multiplier": 90.0}, "HT404", 1),
        ({"max_rounds": 1}, "HT401", 2),
        ({"max_epsilon": 2.5}, "HT401", 3),
    ],
    ids=["more noise", "fewer rounds", "less epsilon"],
)
def test_a_dry_run_says_what_the_run_would_meet(
    settings: Any, hushtune: Any, tmp_path: Path, terms: Any, code: str, first: int
) -> None:
    folder = policies(tmp_path / "policies", north=terms)
    changes = {"privacy__trust": "site", "simulation__policies": folder}
    answer, found = dry_run(hushtune, settings.file(tmp_path, **changes))
    assert answer.status == 0, answer.err
    assert [(row["site"], row["code"], row["round"]) for row in found] == [("north", code, first)]
    since = "" if first == 1 else f" from round {first} on"
    assert f"north would refuse its training{since}: {code}" in " ".join(answer.err.split())
    run(settings.config(**changes), tmp_path / "out")
    rows = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    said = {row["round"]: row["rejected"].get("north", "") for row in map(json.loads, rows)}
    assert [number for number, reason in said.items() if code in reason] == list(range(first, 4))


def test_what_other_runs_spent_counts(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    folder = policies(tmp_path / "policies", north={"max_epsilon": 3.2})
    changes = {"privacy__trust": "site", "simulation__policies": folder}
    toml = settings.file(tmp_path, **changes)
    assert dry_run(hushtune, toml)[1] == []
    run(settings.config(**changes), tmp_path / "first")
    answer, found = dry_run(hushtune, toml)
    assert answer.status == 0
    assert [(row["site"], row["code"]) for row in found] == [("north", "HT401")]


def test_figures_that_a_site_does_not_tell(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    folder = policies(
        tmp_path / "policies", east={"metrics": "noised"}, north={"metrics": "noised"}
    )
    toml = settings.file(
        tmp_path,
        privacy__trust="site",
        simulation__policies=folder,
        metrics__release="noised",
        metrics__noise_multiplier=20.0,
    )
    answer, found = dry_run(hushtune, toml)
    assert answer.status == 0, answer.err
    assert [(row["site"], row["what"], row["code"]) for row in found] == [
        ("south", "figures", "HT404")
    ]


def test_a_dry_run_fails_where_the_run_would(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    at_once, later = {"min_noise_multiplier": 90.0}, {"max_rounds": 2}
    folder = policies(tmp_path / "policies", east=at_once, north=at_once, south=later)
    toml = settings.file(tmp_path, privacy__trust="site", simulation__policies=folder)
    answer, found = dry_run(hushtune, toml)
    assert len(found) == 3
    assert answer.status == 2
    assert "HT501 too few sites would take part in round 3" in answer.err
    for site in ("east", "north", "south"):
        assert f"{site} would refuse" in answer.err


def test_a_run_warns_before_it_spends_of_what_will_end_it(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    all_sites = {key: {"max_rounds": 2} for key in ("east", "north", "south")}
    folder = policies(tmp_path / "policies", **all_sites)
    toml = settings.file(tmp_path, privacy__trust="site", simulation__policies=folder)
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    assert answer.status == 2
    said = " ".join(answer.out.split())
    begins = said.index("round 1 ")
    for warning in (
        "east would refuse its training from round 3 on: HT401",
        "the run would end in round 3",
        "With train.rounds = 2 it would have a result",
    ):
        assert 0 <= said.find(warning) < begins, warning
    assert "HT501 too few usable updates in round 3" in answer.err
    assert "train.rounds = 2" in answer.err


@pytest.mark.parametrize("most", [3, 5])
def test_a_run_that_cannot_finish_replaces_none(settings: Any, tmp_path: Path, most: int) -> None:
    """The budget is at an end at once, or only in the new run's last round."""
    all_sites = {key: {"max_rounds": most} for key in ("east", "north", "south")}
    folder = policies(tmp_path / "policies", **all_sites)
    config = settings.config(privacy__trust="site", simulation__policies=folder)
    run(config, tmp_path / "out")
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files if path.suffix != ".sqlite-wal"}
    with pytest.raises(QuorumError, match="HT401"):
        run(config, tmp_path / "out", overwrite=True)
    assert {path: path.read_bytes() for path in before} == before


# --------------------------------------------------------------------- sites that do not open ----


@pytest.mark.parametrize("what", ["policies", "ledgers"])
def test_where_no_site_opens_each_is_named_and_nothing_is_left(
    settings: Any,
    hushtune: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    folder, out = tmp_path / f"the {what}", tmp_path / "out"
    folder.mkdir()
    for site in ("east", "north", "south") if what == "ledgers" else ():
        (folder / f"{site}.sqlite").write_bytes(b"no ledger" * 99)
        (folder / f"{site}.sqlite").chmod(0o600)
    changes = {"privacy__trust": "site", f"simulation__{what}": str(folder)}
    toml = settings.file(tmp_path, **changes)
    before = sorted(tmp_path.rglob("*"))
    answer = hushtune("simulate", "--config", toml, "--out", out)
    assert answer.status == 2
    assert answer.err.startswith("HT504 3 of 3 sites cannot take part\n")
    for site in ("east", "north", "south"):
        assert f"  {site}: HT" in answer.err
    assert "node" not in answer.err
    if what == "policies":
        assert f"`hushtune policy new > '{folder}/east.toml'`" in answer.err
    assert sorted(tmp_path.rglob("*")) == before
    assert not [record for record in caplog.records if record.name.startswith("hushtune")]


def test_one_site_that_does_not_open_stops_a_run_and_its_dry_run_before_anything_is_written(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    typo = "max_epsilom = 3.0\n"
    nothing = {"max_delta": 0.5}  # a promise to nobody
    folder = policies(tmp_path / "policies", east=nothing, north=None, south=typo)
    toml = settings.file(tmp_path, privacy__trust="site", simulation__policies=folder)
    before = sorted(tmp_path.rglob("*"))
    for how in (["--out", tmp_path / "out"], ["--dry-run"]):
        answer = hushtune("simulate", "--config", toml, *how)
        assert answer.status == 2
        assert answer.err.startswith("HT504 3 of 3 sites cannot take part\n")
        assert "east: HT404 a policy's max_delta promises nothing" in answer.err
        assert "north: HT201 the site's policy does not exist" in answer.err
        assert "max_epsilom" in answer.err
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("how", ["finished", "half"])
@pytest.mark.parametrize("loss", ["gone", "an older copy"])
def test_a_run_goes_on_only_with_the_charges_that_it_has_seen(
    settings: Any, tmp_path: Path, how: str, loss: str
) -> None:
    """A ledger that is begun anew, or put back with its head, forgets what was released."""
    config = settings.config(privacy__trust="site", train__rounds=3)
    out, kept = tmp_path / "out", tmp_path / "kept"

    class Stop(Silent):
        def round_done(self, row: Any) -> None:
            if row["round"] == 1:
                shutil.copytree(out / "ledger", kept)
            if row["round"] == 3 and how == "half":
                raise KeyboardInterrupt

    if how == "half":
        with pytest.raises(KeyboardInterrupt):
            run(config, out, observer=Stop())
    else:
        run(config, out, observer=Stop())
    close_sites()
    for file in (out / "ledger").glob("north*"):
        file.unlink()
        if loss == "an older copy":
            shutil.copy2(kept / file.name, file)
    with pytest.raises(SiteError, match=r"(?s)1 of 3 sites.*north: HT402 the ledger lacks charges"):
        run(config, out, resume=True)


# ------------------------------------------------------------------ steps of secure sums ----

DISTRIBUTED: dict[str, Any] = {"trust": ["distributed"]}
OF_CLIENTS: dict[str, Any] = {
    **DISTRIBUTED,
    "unit": "client",
    "max_delta": 0.05,
    "min_noise_multiplier": 0.05,
}
CLIENTS: dict[str, Any] = {
    "privacy__unit": "client",
    "privacy__epsilon": 50.0,
    "privacy__delta": 0.05,
}


@pytest.mark.parametrize(
    ("terms", "changes"),
    [
        ({**OF_CLIENTS, "max_epsilon": 50.0}, {**CLIENTS, "train__local_steps": 5}),
        ({**OF_CLIENTS, "max_epsilon": 50.0}, CLIENTS),
        ({**DISTRIBUTED, "max_epsilon": 3.0, "max_rounds": 6}, {}),
    ],
    ids=["more local steps than rounds", "a budget that is just enough", "records"],
)
def test_secure_sums_that_sites_can_pay_are_not_spoken_of(
    settings: Any, hushtune: Any, tmp_path: Path, terms: Any, changes: dict[str, Any]
) -> None:
    sites = ("east", "north", "south")
    folder = policies(tmp_path / "policies", **dict.fromkeys(sites, terms))
    changes = {"privacy__trust": "distributed", "simulation__policies": folder, **changes}
    answer, found = dry_run(hushtune, settings.file(tmp_path, **changes))
    assert (answer.status, found) == (0, []), answer.err
    summary = run(settings.config(**changes), tmp_path / "out")
    spent = {row["epsilon"] for row in summary["sites"].values()}
    assert all(0.95 * terms["max_epsilon"] < epsilon <= terms["max_epsilon"] for epsilon in spent)


@pytest.mark.parametrize(
    ("terms", "code", "first"),
    [
        ({"max_rounds": 3}, "HT401", 2),  # of two steps each
        ({"max_epsilon": 2.9}, "HT401", 3),
        ({"colluding_sites": 2}, "HT404", 1),
    ],
    ids=["fewer steps", "less epsilon", "more false sites"],
)
def test_a_dry_run_says_what_secure_sums_would_meet(
    settings: Any, hushtune: Any, tmp_path: Path, terms: Any, code: str, first: int
) -> None:
    """One site that refuses ends them: unless it is set, all must stay (privacy.min_survivors)."""
    sites = ("east", "north", "south")
    other = {**dict.fromkeys(sites, DISTRIBUTED), "north": {**DISTRIBUTED, **terms}}
    folder = policies(tmp_path / "policies", **other)
    changes = {"privacy__trust": "distributed", "simulation__policies": folder}
    answer, found = dry_run(hushtune, settings.file(tmp_path, **changes))
    assert [(row["site"], row["code"], row["round"]) for row in found] == [("north", code, first)]
    assert answer.status == 2
    assert f"too few sites would take part in round {first}" in answer.err
    assert "at least 3 (privacy.min_survivors)" in answer.err
    with pytest.raises(QuorumError, match=rf"north: (refused, )?{code}"):
        run(settings.config(**changes), tmp_path / "out")
    path = tmp_path / "out" / "metrics.jsonl"
    rounds = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    assert len(rounds) == first - 1
