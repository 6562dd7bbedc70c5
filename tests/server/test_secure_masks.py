"""What each kind of mask hides, once the other is taken off; false shares, and false keys."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import RecordDict
from scipy import stats

from hushtune.common.errors import QuorumError
from hushtune.common.messages import unpack_body, with_body
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.ring import Ring, from_ring, mask
from hushtune.common.secagg.wire_step import decode_open_reply, decode_step_reply
from hushtune.server import secure as server

from .secure_grid import CLIP, SIZE, Sites, no_noise, sum_vectors

NAMES = ("east", "north", "south", "west")
STEPS = tuple(range(1, 21))


def sites(folder: Path, patch: pytest.MonkeyPatch, *, value: float = 0.0) -> Sites:
    """Sites that all have the same number in every place, and no noise."""
    folder.mkdir(exist_ok=True)
    grid = Sites(NAMES, folder)
    sum_vectors(grid, patch)
    no_noise(patch)
    for name in NAMES:
        grid.vectors[name] = np.full(SIZE, value)
    return grid


def masked_and_session(grid: Sites) -> tuple[dict[tuple[str, int], Ring], str]:
    """The masked sums of a session, by site and step, and its name."""
    session = grid.session(least=3, steps=STEPS)
    session.begin()
    for number in STEPS:
        session.step(grid.orders(number))
    replies = [(s, decode_step_reply(it)) for doing, s, it in grid.sent if doing == "masked"]
    return {(site, reply.round): reply.values for site, reply in replies}, session.name


def without_own(grid: Sites) -> np.ndarray:
    """What is left of the masked sums once the masks are off whose seeds the sites gave out."""
    masked, session = masked_and_session(grid)
    given: dict[tuple[str, int], dict[str, bytes]] = {}
    for doing, holder, it in grid.sent:
        if doing == "open":
            reply = decode_open_reply(it)
            for site, share in reply.own.items():
                given.setdefault((site, reply.step), {})[holder] = share
    left: list[Ring] = []
    for (site, step), values in sorted(masked.items()):
        seed = crypto.combine(given[site, step], threshold=3, holders=NAMES)
        left.append(values - mask(crypto.own_seed(seed, session, step), SIZE))
    return np.concatenate(left)


def without_pairs(grid: Sites) -> np.ndarray:
    """What is left once the masks that sites share are off, as if all of the others were false."""
    masked, session = masked_and_session(grid)
    secrets = {
        site: json.loads(str(grid.memory[site].config_records["hushtune.secure"]["json"]))["pair"]
        for site in NAMES
    }
    left: list[Ring] = []
    for (site, step), sent in sorted(masked.items()):
        values = sent
        keys = {
            name: crypto.private_key(bytes.fromhex(seeds[STEPS.index(step)]), "pair", session, step)
            for name, seeds in secrets.items()
        }
        for other in NAMES:
            if other == site:
                continue
            public = crypto.public_bytes(keys[site])
            seed = crypto.pair_seed(keys[other], public, other, site, session, step)
            hidden = mask(seed, SIZE)
            values = values - hidden if site < other else values + hidden
        left.append(values)
    return np.concatenate(left)


@pytest.mark.parametrize("left", [without_own, without_pairs])
def test_with_one_kind_of_mask_off_the_other_hides_a_site_s_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: Callable[[Sites], np.ndarray]
) -> None:
    """Uniform, and the same whether the vector is zero or large."""
    drawn = [
        left(sites(tmp_path / str(value), monkeypatch, value=value)) for value in (0.0, 1e5 * CLIP)
    ]
    for values in drawn:
        for shift in (0, 24, 44, 60):  # low bits, two of the content's own, and high ones
            digit = ((values >> np.uint64(shift)) & np.uint64(15)).astype(int)
            assert stats.chisquare(np.bincount(digit, minlength=16)).pvalue > 1e-6
    table = [np.bincount((d >> np.uint64(60)).astype(int), minlength=16) for d in drawn]
    assert stats.chi2_contingency(np.array(table))[1] > 1e-6


@pytest.mark.parametrize("left", [without_own, without_pairs])
def test_each_mask_follows_from_secrets_of_its_session_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: Callable[[Sites], np.ndarray]
) -> None:
    """Not from names, which the server knows: the same names twice give masks without relation."""
    monkeypatch.setattr(server, "os", SimpleNamespace(urandom=bytes))  # one name for all sessions
    drawn = [left(sites(tmp_path / turn, monkeypatch)) for turn in ("first", "again")]
    assert not (drawn[0] == drawn[1]).any()
    assert len(np.unique(np.concatenate(drawn))) == 2 * len(NAMES) * len(STEPS) * SIZE


# ------------------------------------------------------------------ false at dealing ----


def spoil(
    action: str, site: str, change: Callable[[dict[str, object]], None]
) -> Callable[[str, str, RecordDict], RecordDict]:
    """Alters one site's answers at one stage."""

    def altered(doing: str, who: str, answer: RecordDict) -> RecordDict:
        if (doing, who) != (action, site):
            return answer
        body = unpack_body(answer)
        change(body)
        return with_body(answer, body)

    return altered


def deal_falsely(*to: str) -> Callable[[dict[str, object]], None]:
    def change(body: dict[str, object]) -> None:
        sealed = body["sealed"]
        assert isinstance(sealed, dict)
        sealed.update({name: "00" * 40 for name in to})

    return change


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Four sites without noise, of which north deals falsely in some tests."""
    return sites(tmp_path, monkeypatch, value=1.0)


def mean_of(grid: Sites, *, least: int) -> tuple[float, tuple[str, ...], dict[str, str]]:
    session = grid.session(least=least, steps=(1,))
    session.begin()
    opened = session.step(grid.orders(1))
    total = from_ring(opened.values, clip_norm=CLIP)
    return float(total.mean()), opened.survivors, session.traffic.lost


def test_one_share_that_does_not_open_expels_nobody(
    grid: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be the receiver who is false: the others hold enough."""
    grid.spoil = spoil("shares", "north", deal_falsely("west"))
    with caplog.at_level(logging.WARNING):
        total, survivors, lost = mean_of(grid, least=3)
    assert (survivors, lost) == (NAMES, {})
    assert total == pytest.approx(4.0, abs=1e-6)
    assert "what north has shared is no share for west" in caplog.text


def test_a_dealer_whose_masks_too_few_could_open_is_left_out_by_name(
    grid: Sites, caplog: pytest.LogCaptureFixture
) -> None:
    grid.spoil = spoil("shares", "north", deal_falsely("east", "west"))
    with caplog.at_level(logging.WARNING):
        total, survivors, lost = mean_of(grid, least=3)
    assert survivors == ("east", "south", "west")
    assert total == pytest.approx(3.0, abs=1e-6)
    assert lost == {"north": "rejected: what it has shared is no share for east, west"}
    assert "go on without north" in caplog.text


def test_where_all_must_stay_a_false_dealer_is_named_before_anything_is_charged(
    grid: Sites,
) -> None:
    grid.spoil = spoil("shares", "north", deal_falsely("west"))
    with pytest.raises(QuorumError, match="north: rejected: what it has shared is no share for w"):
        mean_of(grid, least=4)
    assert not any(grid.sites[name].ledger.entries() for name in NAMES)


@pytest.mark.parametrize("bad", ["small order", "own twice"])
def test_a_site_with_unusable_keys_is_left_out_and_the_others_go_on(grid: Sites, bad: str) -> None:
    def change(body: dict[str, object]) -> None:
        keys = body["keys"]
        assert isinstance(keys, dict)
        keys["seal"] = "00" * 32 if bad == "small order" else keys["pair"][0]

    grid.spoil = spoil("keys", "north", change)
    _, survivors, lost = mean_of(grid, least=3)
    assert survivors == ("east", "south", "west")
    assert "rejected" in lost["north"]
