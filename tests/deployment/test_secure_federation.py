"""Secure sums between processes: sites are lost at each stage, and no sum is wrong or revealed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from hushtune.common.privacy.ledger import Ledger

from .processes import Federation, Institution, hushtune, wait_until

SIZES = {"east": 120, "middle": 120, "north": 150, "south": 120, "west": 120}
LEAST = 4  # of five sites, where one may side with the server
STAGES = ("keys", "shares", "received", "masked", "confirm", "open")
STEPS, ANSWER_SECONDS = 2, 12
SECURE = {
    "privacy__trust": "distributed",
    "privacy__min_survivors": LEAST,
    "train__local_steps": STEPS,
    # Its steps are as long as the sums: a mask that stays in one shows.
    "train__optimizer": "sgd",
}

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Federation]:
    """Five sites whose policies let them take part in secure sums."""
    with Federation(tmp_path_factory.mktemp("secure"), SIZES, model=tiny_bert) as made:
        for site in made.sites.values():
            policy = site.folder / "policy.toml"
            text = policy.read_text(encoding="utf-8")
            assert text.count('\ntrust = ["site"]\n') == 1
            text = text.replace('\ntrust = ["site"]\n', '\ntrust = ["distributed"]\n')
            policy.write_text(text, encoding="utf-8")
        made.begin()
        yield made


def charges(federation: Federation, run: str) -> dict[str, Counter[int]]:
    """How often each site was charged for each step of a run, by its own ledger."""
    name = federation.state(run)["run"]
    return {
        site: Counter(
            entry.round
            for entry in Ledger(one.folder / "policy.sqlite").entries()
            if entry.run == name
        )
        for site, one in federation.sites.items()
    }


def check_sums(federation: Federation, run: str) -> None:
    """Nothing but gradients and noise is in the model: a mask has some 2^31 clip norms."""
    for row in federation.rows(run):
        assert row["update_norm"] < 1.0, row
        assert len(row["accepted"]) in (0, *range(LEAST, len(SIZES) + 1)), row


def check_end(federation: Federation, run: str, *, rounds: int) -> None:
    """Results verify everywhere, and no step was charged twice or used without its charge."""
    rows = federation.rows(run)
    assert [row["round"] for row in rows] == list(range(1, rounds + 1))
    check_sums(federation, run)
    hushtune("verify", federation.out(run))
    name = federation.state(run)["run"]
    for site, counted in charges(federation, run).items():
        assert set(counted.values()) <= {1}, site
        steps = {
            step
            for row in rows
            if site in row["accepted"]
            for step in range((row["round"] - 1) * STEPS + 1, row["round"] * STEPS + 1)
        }
        # Of the round in which it was lost, a site may have done one step and not the other.
        lost = steps - set(counted)
        assert len(lost) <= 1, site
        folder = federation.sites[site].folder
        hushtune("ledger", "verify", folder / "policy.sqlite", apart=True)
        result = folder / "runs" / name
        if result.is_dir():
            hushtune("verify", result)


def kill_at(site: Institution, stage: str, what: str, *, seconds: float = 90) -> None:
    """SIGKILL to a site's executor, or to all of the site, when it begins the next such order."""
    pid = site.processes()[what]
    with (site.folder / "log.jsonl").open(encoding="utf-8") as log:
        log.seek(0, os.SEEK_END)
        held, deadline = "", time.monotonic() + seconds
        while True:
            assert time.monotonic() < deadline, f"{site.name} was not asked for {stage}"
            held += log.read()
            *lines, held = held.split("\n")
            told = [json.loads(line) for line in lines]
            if any(
                one.get("event") == "order" and one.get("kind") == f"train.{stage}" for one in told
            ):
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.002)


def come_back(site: Institution) -> None:
    """Start a site that was killed, or wait until its executor is there again."""
    assert site.joined is not None
    if site.joined.process.poll() is not None:
        wait_until(lambda: len(site.processes()) <= 1, seconds=20)
        site.join()
    wait_until(
        lambda: (
            {"executor", "node"} <= set(site.processes())
            and site.status().get("pid") == site.processes()["join"]  # not what was left behind
            and site.status().get("state") in ("connected", "working")
        ),
        seconds=180,
        why=lambda: f"{site.status()}",
    )


def test_a_run_ends_and_verifies_everywhere(federation: Federation) -> None:
    run = federation.run("sums", **SECURE)
    assert run.ended(seconds=240) == 0, run.said
    assert [row["accepted"] for row in federation.rows("sums")] == [sorted(SIZES)] * 3
    steps = Counter(dict.fromkeys(range(1, 3 * STEPS + 1), 1))
    assert charges(federation, "sums") == dict.fromkeys(SIZES, steps)
    check_end(federation, "sums", rounds=3)
    for site in federation.sites.values():
        (result,) = (site.folder / "runs").iterdir()
        told = json.loads((result / "privacy.json").read_text(encoding="utf-8"))
        assert told["trust"] == "distributed"
        assert told["sites"][site.name]["guarantee"], told
        page = (result / "privacy.md").read_text(encoding="utf-8")
        assert "side with the server" in page or "sites" in page


def each_loss() -> list[ParameterSet]:
    """One by day: its masks are in the sums of all others, and have to come off."""
    return [
        pytest.param(
            stage, what, marks=[] if (stage, what) == ("masked", "join") else pytest.mark.nightly
        )
        for stage in STAGES
        for what in ("join", "executor")
    ]


@pytest.mark.parametrize(("stage", "what"), each_loss())
def test_a_site_is_lost_at_a_stage(federation: Federation, stage: str, what: str) -> None:
    """The sum is that of those who stay, and the site takes part again when it is back."""
    name = f"lost-{stage}-{what}"
    rounds = 5
    run = federation.run(name, "--answer-seconds", ANSWER_SECONDS, **SECURE, train__rounds=rounds)
    federation.wait_for_round(name, 1)
    site = federation.sites["south"]
    kill_at(site, stage, what)
    try:
        if what == "join":
            site.joined.process.wait()  # type: ignore[union-attr]
        came = time.monotonic()
        come_back(site)
        print(f"{name}: back after {time.monotonic() - came:.1f} s")
    finally:
        ended = run.ended(seconds=400)
    assert ended == 0, run.said
    for row in federation.rows(name):
        print(row["round"], row["accepted"], row["rejected"], row["seconds"]["training"])
    check_end(federation, name, rounds=rounds)


@pytest.mark.nightly
def test_with_too_few_sites_nothing_is_opened_and_the_run_goes_on(federation: Federation) -> None:
    """Two of five are lost in a step: an error names them, and the round's steps stay lost."""
    name, rounds = "too-few", 3
    run = federation.run(name, "--answer-seconds", ANSWER_SECONDS, **SECURE, train__rounds=rounds)
    federation.wait_for_round(name, 1)
    lost = [federation.sites[site] for site in ("south", "west")]
    for site in lost:
        assert site.joined is not None
        site.joined.kill()
    assert run.ended(seconds=240) == 2, run.said
    assert "HT501" in run.said
    assert "too few sites" in run.said
    assert f"{LEAST} or more (privacy.min_survivors)" in run.said
    over = len(federation.rows(name))
    for site in lost:
        come_back(site)
    again = federation.run(name, "--resume", "--answer-seconds", 60, **SECURE, train__rounds=rounds)
    assert again.ended(seconds=400) == 0, again.said
    assert federation.rows(name)[over]["accepted"] == []
    check_end(federation, name, rounds=rounds)
