"""Rounds of gradients, step by step, and what else a rule leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from hushtune.client.site import ledger_path
from hushtune.common.errors import ConfigError, QuorumError
from hushtune.common.messages import decode_order
from hushtune.common.planning import site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.tasks.workspace import resolve
from hushtune.server.federation import check_sites
from hushtune.simulations import own_models, run
from hushtune.simulations.baselines import trained_baselines
from hushtune.simulations.engine import InProcessGrid

SITES = ("east", "north", "south")


def test_a_round_of_gradients_that_was_stopped_is_lost_and_paid_for_once(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site is late in step 3, and nobody is heard in step 4: asked for again with all there, the
    steps would follow from other answers, which no site that was charged would give."""
    made = settings.config(
        aggregation__rule="fedsgd",
        privacy__trust="site",
        train__rounds=3,
        train__warmup_rounds=1,
        train__local_steps=2,
    )
    original = InProcessGrid.send_and_receive
    silent = {3: {"south"}, 4: set(SITES)}

    def heard(grid: InProcessGrid, messages: Iterable[Message], **others: Any) -> list[Message]:
        asked = list(messages)
        answers = list(original(grid, asked, **others))
        if not asked or asked[0].metadata.message_type != "train":
            return answers
        orders = {m.metadata.dst_node_id: decode_order(m.content) for m in asked}
        return [
            answer
            for answer in answers
            if (order := orders[answer.metadata.src_node_id]).site
            not in silent.get(order.round, ())
        ]

    with monkeypatch.context() as patch:
        patch.setattr(InProcessGrid, "send_and_receive", heard)
        with pytest.raises(QuorumError, match="too few usable updates in round 2"):
            run(made, tmp_path)
    try:
        summary = run(made, tmp_path, resume=True)
    except QuorumError as error:
        pytest.fail(f"the run cannot go on: {error}")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [bool(row["accepted"]) for row in rows] == [True, False, True]
    assert json.loads((tmp_path / "privacy.json").read_text())["lost_rounds"] == [2]
    for site in SITES:
        charged = Ledger(ledger_path(tmp_path, site)).entries()
        assert [entry.round for entry in charged] == [1, 2, 3, 4, 5, 6]
        assert 2.9 < summary["sites"][site]["epsilon"] <= 3.0


def test_what_is_compared_has_no_part_that_stays_at_a_site(settings: Any) -> None:
    """Alone or pooled there is nobody to keep a B from, and own adapters are no part of it."""
    kept = resolve(settings.config(aggregation__rule="fedsa", simulation__baselines=True))
    found = trained_baselines(kept)
    assert found["pooled"].aggregation.rule == found["alone_private/east"].aggregation.rule
    assert found["pooled"].aggregation.rule == "fedit"
    own = resolve(settings.config(personal__method="ditto", simulation__baselines=True))
    for baseline in trained_baselines(own).values():
        assert baseline.personal.method == "none"
    plain = resolve(settings.config(privacy__trust="site", simulation__baselines=True))
    steps = {name: site_plans(c) for name, c in trained_baselines(plain).items()}
    mixed = resolve(
        settings.config(
            privacy__trust="site",
            personal__method="finetune",
            aggregation__rule="flora",
            adapter__ranks={"east": 8},
            simulation__baselines=True,
        )
    )
    for name, baseline in trained_baselines(mixed).items():
        assert baseline.adapter.ranks == {} or name == "head_private"
        assert site_plans(baseline) == steps[name]
    assert trained_baselines(mixed)["alone_private/east"].adapter.rank == 8
    assert trained_baselines(mixed)["pooled"].adapter.rank == 8
    assert trained_baselines(mixed)["alone_private/north"].adapter.rank == 2


def test_ranks_of_a_site_that_is_not_there_are_refused(settings: Any) -> None:
    made = resolve(settings.config(aggregation__rule="flora", adapter__ranks={"nowhere": 8}))
    with pytest.raises(ConfigError, match=r"(?s)adapter.ranks.*given: nowhere.*east, north, south"):
        check_sites(made, site_plans(made), made.data.public_sizes)


def test_noise_is_not_taken_back_in_another_basis(settings: Any) -> None:
    turns = {
        "privacy__trust": "server",
        "privacy__unit": "client",
        "privacy__delta": 0.05,
        "privacy__client_turns": 2,
    }
    settings.config(**turns)
    with pytest.raises(ConfigError, match=r"(?s)another basis.*fedsvd"):
        settings.config(**turns, aggregation__rule="fedsvd")


def test_a_site_s_part_that_no_noise_covers_is_not_exported(settings: Any, tmp_path: Path) -> None:
    trusted = {"privacy__trust": "server", "privacy__unit": "client", "privacy__delta": 0.05}
    run(settings.config(**trusted, aggregation__rule="fedsa"), tmp_path / "run")
    with pytest.raises(ConfigError, match="trained without noise"):
        own_models.export_own(tmp_path / "run", "north", tmp_path / "north", merged=False)
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "A part of each model stayed at its site" in card
    run(settings.config(), tmp_path / "one")
    with pytest.raises(ConfigError, match="there is one for all"):
        own_models.export_own(tmp_path / "one", "north", tmp_path / "north", merged=False)
