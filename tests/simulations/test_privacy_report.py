"""From ledgers to the statement."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.client.site import ledger_path
from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.errors import MissingFileError, QuorumError
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown
from hushtune.common.privacy.statement_verify import ANSWERS
from hushtune.common.run_context import RunContext
from hushtune.server.strategy import FederationResult
from hushtune.simulations import run
from hushtune.simulations.privacy_report import privacy_of
from hushtune.simulations.saved import adapter_folder

ADD = Relation.ADD_OR_REMOVE_ONE


def result(*history: dict[str, Any]) -> FederationResult:
    """A federation that is over, with these rounds and one tensor."""
    spec = AdapterSpec("", rank=1, alpha=1.0, rslora=False, targets=(), head=("weight",))
    return FederationResult(
        run="r",
        state=AdapterState(spec, {"head.weight": torch.zeros(1, 2)}),
        history=history,
        charges={},
        refusals={},
        seconds={},
    )


def test_the_statement_tells_how_often_a_reply_was_sent_again(
    settings: Any, tmp_path: Path
) -> None:
    sizes = {"east": 60, "north": 80, "south": 70}
    config = settings.config(privacy__trust="site", data__public_sizes=sizes)
    for number, (site, plan) in enumerate(sorted(site_plans(config).items())):
        ledger = Ledger(ledger_path(tmp_path, site))
        ledger.charge_with_reply(plan.event(2), dataset="d", run="r", round=1, reply=b"reply")
        for _ in range(number):
            assert ledger.resend("r", 1, dataset="d") is not None

    told = privacy_of(RunContext(config, tmp_path), result())
    assert {site: at["num_resent"] for site, at in told["sites"].items()} == {
        "east": 0,
        "north": 1,
        "south": 2,
    }


def test_rounds_of_figures_alone_are_rounds_of_release(settings: Any, tmp_path: Path) -> None:
    """A site that told figures and trained nothing released them in a round."""
    config = settings.config(privacy__trust="site", data__public_sizes={"east": 60})
    figures = DpSgdEvent(sampling_probability=1.0, noise_multiplier=20.0, steps=1)
    Ledger(ledger_path(tmp_path, "east")).charge(figures, dataset="d", run="r/metrics", round=5)
    site = privacy_of(RunContext(config, tmp_path), result())["sites"]["east"]
    assert site["rounds"] == {"first": 5, "last": 5}
    assert "in round 5 to the server" in site["sentence"]


def test_the_statement_tells_what_was_charged_and_not_what_was_planned(
    settings: Any, tmp_path: Path
) -> None:
    config = settings.config(privacy__trust="site", data__public_sizes={"east": 60})
    louder = DpSgdEvent(sampling_probability=0.2, noise_multiplier=7.5, steps=2)
    Ledger(ledger_path(tmp_path, "east")).charge(louder, dataset="d", run="r", round=1)
    site = privacy_of(RunContext(config, tmp_path), result())["sites"]["east"]
    assert (site["sampling_probability"], site["noise_multiplier"]) == (0.2, 7.5)


def test_all_that_a_ledger_holds_is_added_up_whatever_became_of_the_run(
    settings: Any, tmp_path: Path
) -> None:
    """A row that was corrected makes another data set, of nearly the same people."""
    config = settings.config(privacy__trust="site", data__public_sizes={"east": 60})
    event = site_plans(config)["east"].event(6)
    ledger = Ledger(ledger_path(tmp_path, "east"))
    ledger.charge(event, dataset="before the correction", run="earlier", round=1)
    ledger.charge(event, dataset="others", run="x", round=1, unit="group patient")
    for runs in (1, 2):
        told = privacy_of(RunContext(config, tmp_path), result())["sites"]["east"]
        whole = accountant.epsilon([event] * runs, delta=1e-3, relation=ADD)
        assert told["epsilon_lifetime"] == whole
        assert (told["epsilon"] == 0.0) is (runs == 1)  # refused, or not asked
        ledger.charge(event, dataset="after it", run="r", round=1)


def test_one_site_s_own_words_take_the_promise_away(settings: Any, tmp_path: Path) -> None:
    """Whatever the configuration says: a site whose noise had a seed says so with its update."""
    config = settings.config(privacy__trust="site", data__public_sizes={"east": 60, "north": 80})
    rows = [
        {
            "round": number,
            "accepted": ["east", "north"],
            "rejected": {},
            "noise": {
                "east": NoiseSource().description,
                "north": NoiseSource.insecure(3).description if number == 2 else "ChaCha20",
            },
        }
        for number in (1, 2, 3)
    ]
    for site, plan in site_plans(config).items():
        Ledger(ledger_path(tmp_path, site)).charge(plan.event(2), dataset="d", run="r", round=1)
    told = privacy_of(RunContext(config, tmp_path), result(*rows))
    assert told["guarantee"] is False
    assert told["sites"]["north"]["epsilon"] is None
    assert "NO PRIVACY" in told["sites"]["north"]["sentence"]
    assert told["sites"]["east"]["epsilon"] is not None


@pytest.mark.parametrize("site", ["east", "it's the north ward", "n" * 300, "öst=a"])
def test_a_ledger_that_grew_is_verified_as_the_statement_says(
    settings: Any, tmp_path: Path, hushtune: Any, site: str
) -> None:
    """Later runs and figures make a ledger grow, which must not look like a forgery."""
    config = settings.config(privacy__trust="site", data__public_sizes={site: 60})
    path = ledger_path(tmp_path, site)
    copy = path.parent.parent / "older"
    event = site_plans(config)[site].event(2)
    ledger = Ledger(path)
    ledger.charge(event, dataset="d", run="r", round=1)
    shutil.copytree(path.parent, copy)
    ledger.charge(event, dataset="d", run="r", round=2)
    told = privacy_of(RunContext(config, tmp_path), result())
    markdown = render_markdown(told)
    (command,) = re.findall(r"^- `(hushtune ledger verify .*)`$", markdown, re.MULTILINE)
    assert command in html.unescape(render_html(told))
    last, grown, other, _ = ANSWERS

    def answer(folder: Path) -> Any:
        words = shlex.split(command)
        return hushtune(*(str(folder) if word == "DIR" else word for word in words[1:]))

    found = answer(path.parent)
    assert found.status == 0, found.err
    assert last.partition(", and ")[2] in found.out
    ledger.charge(event, dataset="d", run="r/metrics", round=2)
    ledger.charge(event, dataset="d", run="later", round=1)
    found = answer(path.parent)
    assert found.status == 0, found.err
    assert grown.partition(", and ")[2] in found.out
    found = answer(copy)
    assert found.status == 2
    assert other.partition(", it ")[2] in found.err
    for words in ("r/metrics", "later"):
        assert words in hushtune("ledger", "show", path).out


@pytest.mark.parametrize(("budget", "rounds"), [(2.0, 1), (0.2, 0)])
def test_a_run_whose_budget_ends_tells_what_was_released_until_then(
    settings: Any, tmp_path: Path, budget: float, rounds: int
) -> None:
    folder, out = tmp_path / "policies", tmp_path / "out"
    folder.mkdir()
    for site in ("east", "north", "south"):
        (folder / f"{site}.toml").write_text(f"max_epsilon = {budget}\nmax_delta = 1e-3\n")
    config = settings.config(privacy__trust="site", simulation__policies=str(folder))
    with pytest.raises(QuorumError, match=f"in round {rounds + 1}") as caught:
        run(config, out)
    assert "HT401" in str(caught.value)
    pages = [out / f"privacy.{ending}" for ending in ("json", "md", "html")]
    assert [page.exists() for page in pages] == [rounds > 0] * 3
    if not rounds:
        return
    told = json.loads(pages[0].read_text(encoding="utf-8"))
    for name, site in told["sites"].items():
        entries = Ledger(folder / f"{name}.sqlite").entries()
        assert len(entries) == rounds
        assert site["rounds"] == {"first": 1, "last": rounds}
        assert site["steps"] == 2 < site["planned"]["steps"] == 6
        spent = accountant.epsilon([entry.event for entry in entries], delta=1e-3, relation=ADD)
        assert site["epsilon"] == spent <= budget
        assert "-DP" in site["sentence"]
        assert ["HT401" in line for line in site["refusals"]] == [True]
    assert "released in round 1 to the server" in pages[1].read_text(encoding="utf-8")
    ended = "The run ended early, after round 1 of 3, and has no final model: HT501 too few"
    assert told["ended_early"].startswith(ended)
    assert "no final model" in told["selection"]
    assert "model is that after the last round" not in pages[1].read_text(encoding="utf-8")
    for page in pages[1:]:
        assert ended in page.read_text(encoding="utf-8")
    assert "train.rounds = 1" in str(caught.value.remedy)
    with pytest.raises(MissingFileError, match="once what ended it is mended"):
        adapter_folder(out)
    before = pages[0].read_bytes()
    with pytest.raises(QuorumError):
        run(config, out, resume=True)
    assert pages[0].read_bytes() == before


def test_each_figure_of_a_site_is_its_own(settings: Any, tmp_path: Path) -> None:
    """Head, refusals, aborted rounds, unit and every epsilon of two sites, from their sources."""
    sizes = {"east": 60, "north": 80}
    config = settings.config(
        privacy__trust="site",
        data__public_sizes=sizes,
        data__group="patient",
        privacy__unit="group",
        privacy__records_per_group=3,
    )
    ledgers = {site: Ledger(ledger_path(tmp_path, site)) for site in sizes}
    events = {site: plan.event(2) for site, plan in site_plans(config).items()}
    for number, (site, ledger) in enumerate(ledgers.items(), start=1):
        for round in range(1, number + 2):
            ledger.charge(events[site], dataset="d", run="r", round=round, unit="group patient")
    rows = [
        {"round": 1, "accepted": ["east", "north"], "rejected": {}, "noise": {}},
        {"round": 2, "accepted": ["north"], "rejected": {"east": "rejected, norm: 9"}, "noise": {}},
    ]
    refusals = {"east": [{"round": 3, "code": "HT404", "reason": "enough\nis enough"}]}
    told = privacy_of(RunContext(config, tmp_path), replace(result(*rows), refusals=refusals))
    assert (told["unit"], told["group"]) == ("group", "patient")
    east, north = (told["sites"][site] for site in sizes)
    for site, ledger in ledgers.items():
        assert told["sites"][site]["ledger_head"] == ledger.head()
    assert east["ledger_head"] != north["ledger_head"]
    assert (east["refusals"], north["refusals"]) == (["round 3: HT404 enough is enough"], [])
    # One of two charged rounds of east was rejected; north was charged for a third, never heard of.
    assert (east["num_aborted"], north["num_aborted"]) == (1, 1)
    for name, number in (("east", 2), ("north", 3)):
        site, charged = told["sites"][name], [events[name]] * number
        for kind in Relation:
            spent = accountant.epsilon(charged, delta=config.privacy.delta, relation=kind)
            assert site["epsilon_by_relation"][str(kind)] == spent
        for count in (1, 2, 4, 8):
            expected = accountant.epsilon_group(charged, delta=config.privacy.delta, records=count)
            assert site["epsilon_by_records"][str(count)] == expected
    assert east["epsilon_by_records"]["8"] > east["epsilon_by_records"]["4"] > east["epsilon"]
