"""A server that tells different sites different things opens nothing of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from hushtune.common.messages import unpack_body
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import from_ring, mask
from hushtune.common.secagg.wire import (
    KeysOrder,
    ReceivedOrder,
    SharesOrder,
    SiteKeys,
    decode_keys,
    decode_received,
    decode_shares,
    encode_keys_order,
    encode_received_order,
    encode_shares_order,
)
from hushtune.common.secagg.wire_step import (
    ConfirmOrder,
    OpenOrder,
    OpenReply,
    StepOrder,
    decode_confirmed,
    decode_open_reply,
    decode_step_reply,
    encode_confirm_order,
    encode_open_order,
    encode_steps,
)

from .secure_grid import CLIP, RUN, SIZE, Sites, no_noise, order, plan, sum_vectors

NAMES = tuple(f"s{place}" for place in range(10))
LEAST = 6
SESSION = "ab" * 16
VICTIM = "s0"


@dataclass
class Server:
    """One that tells each site what it likes, and goes on with whatever comes back."""

    grid: Sites
    keys: dict[str, SiteKeys] = field(default_factory=dict[str, SiteKeys])
    sealed: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    receipts: dict[str, bytes] = field(default_factory=dict[str, bytes])
    masked: dict[str, np.ndarray] = field(default_factory=dict[str, np.ndarray])
    refusals: list[str] = field(default_factory=list[str])

    def ask(self, action: str, site: str, content: RecordDict) -> RecordDict | None:
        answer = self.grid.answer(action, site, content)
        if unpack_body(answer).get("refused"):
            self.refusals.append(str(unpack_body(answer)))
            return None
        return answer

    def begin(self) -> None:
        cohort = Cohort(sites=NAMES, min_survivors=LEAST, colluding=0)
        for site in NAMES:
            begun = KeysOrder(
                run=RUN, session=SESSION, site=site, cohort=cohort, plan=plan(), steps=(1,)
            )
            answer = self.ask("keys", site, encode_keys_order(begun))
            assert answer is not None
            self.keys[site] = decode_keys(answer)[2]
        for site in NAMES:
            offered = SharesOrder(run=RUN, session=SESSION, site=site, keys=self.keys)
            answer = self.ask("shares", site, encode_shares_order(offered))
            assert answer is not None
            self.sealed[site] = decode_shares(answer)[2]

    def share(self, sharing: Mapping[str, Sequence[str]]) -> None:
        """Tell each site a list of its own of who has shared."""
        for site in NAMES:
            content = encode_received_order(
                ReceivedOrder(
                    run=RUN,
                    session=SESSION,
                    site=site,
                    sharing=tuple(sharing[site]),
                    sealed={o: self.sealed[o][site] for o in sharing[site] if o != site},
                )
            )
            answer = self.ask("received", site, content)
            if answer is not None:
                self.receipts[site] = decode_received(answer).signature

    def collect(self) -> None:
        for site in NAMES:
            asked = StepOrder(order=order(site, 1), session=SESSION, agreed=self.receipts)
            (content,) = encode_steps([asked])
            answer = self.ask("masked", site, content)
            if answer is not None:
                self.masked[site] = decode_step_reply(answer).values

    def open(self, survivors: Mapping[str, Sequence[str]]) -> dict[str, OpenReply]:
        """Tell each site a list of its own of whose sums arrived."""
        signed: dict[str, bytes] = {}
        found: dict[str, OpenReply] = {}
        for site in NAMES:
            content = encode_confirm_order(
                ConfirmOrder(
                    run=RUN, session=SESSION, site=site, step=1, survivors=tuple(survivors[site])
                )
            )
            answer = self.ask("confirm", site, content)
            if answer is not None:
                signed[site] = decode_confirmed(answer).signature
        for site in NAMES:
            content = encode_open_order(
                OpenOrder(
                    run=RUN,
                    session=SESSION,
                    site=site,
                    step=1,
                    survivors=tuple(survivors[site]),
                    confirmed=signed,
                )
            )
            answer = self.ask("open", site, content)
            if answer is not None:
                found[site] = decode_open_reply(answer)
        return found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Ten sites, of which six must stay, and a server that was begun with."""
    grid = Sites(NAMES, tmp_path)
    sum_vectors(grid, monkeypatch)
    no_noise(monkeypatch)
    server = Server(grid)
    server.begin()
    return server


def dropped(targets: Sequence[str], *, each: int, spare: Mapping[str, int]) -> dict[str, set[str]]:
    """To whom which targets are told as dropped: each target to ``each`` others, and to nobody more
    than it has to spare."""
    found: dict[str, set[str]] = {name: set() for name in NAMES}
    for target in targets:
        able = [n for n in NAMES if n != target and len(found[n]) < spare[n]]
        able.sort(key=lambda name: len(found[name]) - spare[name])
        assert len(able) >= each
        for name in able[:each]:
            found[name].add(target)
    return found


def opened_seeds(replies: Mapping[str, OpenReply], *, kind: str) -> dict[str, bytes]:
    """The seeds of one kind that the server can put together, checked by what was published."""
    found: dict[str, bytes] = {}
    for site in NAMES:
        held = {n: getattr(r, kind)[site] for n, r in replies.items() if site in getattr(r, kind)}
        if len(held) >= LEAST:
            found[site] = crypto.combine(held, threshold=LEAST, holders=list(NAMES))
    return found


def test_a_site_that_is_shown_few_shares_is_not_opened_by_lists_that_differ(
    server: Server,
) -> None:
    """Who has shared is told the victim otherwise than the rest, so that it has few masks."""
    few = NAMES[:LEAST]
    server.share({site: few if site == VICTIM else NAMES for site in NAMES})
    server.collect()
    assert VICTIM not in server.masked
    assert "confirmed who has shared" in " ".join(server.refusals)
    spare = {site: (len(few) if site == VICTIM else len(NAMES)) - LEAST for site in NAMES}
    drops = dropped(few[1:], each=LEAST, spare=spare)
    told = {s: sorted(set(few if s == VICTIM else NAMES) - drops[s]) for s in NAMES}
    assert server.open(told) == {}


def test_lists_of_survivors_that_differ_open_no_sum_of_a_few(server: Server) -> None:
    server.share(dict.fromkeys(NAMES, NAMES))
    server.collect()
    assert set(server.masked) == set(NAMES)
    kept, outside = NAMES[:4], NAMES[4:]
    drops = dropped(outside, each=LEAST, spare=dict.fromkeys(NAMES, len(NAMES) - LEAST))
    replies = server.open({site: sorted(set(NAMES) - drops[site]) for site in NAMES})
    # With both kinds of seeds the masks of those who are kept would come off.
    assert not set(opened_seeds(replies, kind="own")) & set(kept)
    assert not opened_seeds(replies, kind="pair")
    assert replies == {}
    assert all("confirmed whose sums" in reason for reason in server.refusals)


def test_one_list_for_all_is_opened_and_a_second_one_is_not(server: Server) -> None:
    """The same hands, told the same: the tests above fail for what they say and nothing else."""
    server.share(dict.fromkeys(NAMES, NAMES))
    server.collect()
    replies = server.open(dict.fromkeys(NAMES, NAMES))
    assert not server.refusals
    seeds = opened_seeds(replies, kind="own")
    total = np.zeros(SIZE, np.uint64)
    for site in NAMES:
        total += server.masked[site] - mask(crypto.own_seed(seeds[site], SESSION, 1), SIZE)
    expected = np.sum([server.grid.vectors[name].astype(np.float32) for name in NAMES], axis=0)
    assert from_ring(total, clip_norm=CLIP) == pytest.approx(expected, abs=1e-5)
    assert server.open(dict.fromkeys(NAMES, NAMES[:LEAST])) == {}


def test_signatures_of_others_or_of_too_few_sites_open_nothing(server: Server) -> None:
    server.share(dict.fromkeys(NAMES, NAMES))
    server.collect()
    signed: dict[str, bytes] = {}
    for site in NAMES:
        content = encode_confirm_order(
            ConfirmOrder(run=RUN, session=SESSION, site=site, step=1, survivors=NAMES)
        )
        answer = server.ask("confirm", site, content)
        assert answer is not None
        signed[site] = decode_confirmed(answer).signature
    some = dict(list(signed.items())[: LEAST - 1])
    for confirmed in (
        {},
        some,
        {**some, "s9": signed["s8"]},  # under another name
        {**some, "s9": bytes(64)},
        {**some, "stranger": signed["s9"]},
        {name: server.receipts[name] for name in NAMES},  # of something else
    ):
        asked = OpenOrder(
            run=RUN, session=SESSION, site="s1", step=1, survivors=NAMES, confirmed=confirmed
        )
        assert server.ask("open", "s1", encode_open_order(asked)) is None
    asked = OpenOrder(
        run=RUN,
        session=SESSION,
        site="s1",
        step=1,
        survivors=NAMES,
        confirmed={**some, "s9": signed["s9"]},
    )
    assert server.ask("open", "s1", encode_open_order(asked)) is not None


def test_who_has_shared_is_told_once(server: Server) -> None:
    server.share(dict.fromkeys(NAMES, NAMES))
    server.share(dict.fromkeys(NAMES, NAMES[:LEAST]))
    assert len(server.refusals) == len(NAMES)
    assert any("after this site had signed" in reason for reason in server.refusals)


def test_keys_and_shares_of_a_step_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what opens the first step opens every later one."""
    grid = Sites(NAMES[:4], tmp_path)
    sum_vectors(grid, monkeypatch)
    session = grid.session(least=4, steps=(1, 2, 3))
    session.begin()
    for number in (1, 2, 3):
        session.step(grid.orders(number))
    for site in grid.names:
        raw = json.loads(str(grid.memory[site].config_records["hushtune.secure"]["json"]))
        assert len({*raw["pair"], *raw["own"], raw["seal"]}) == 3 + 3 + 1
    opened = [decode_open_reply(it) for action, _, it in grid.sent if action == "open"]
    shares = [share for reply in opened for share in reply.own.values()]
    assert len(shares) == 3 * 4 * 4
    assert len(set(shares)) == len(shares)
