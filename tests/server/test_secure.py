"""Secure sums between a server and sites: right, or closed; no message can be read by itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from scipy import stats

from hushtune.client import app, secure
from hushtune.client.policy import SitePolicy
from hushtune.client.terms import Terms
from hushtune.common.errors import QuorumError, SecureSumError
from hushtune.common.messages import (
    Refusal,
    decode_refusal,
    encode_order,
    unpack_body,
    with_body,
)
from hushtune.common.privacy.discrete import MOST_STD
from hushtune.common.privacy.ledger_sessions import KEPT_SESSIONS
from hushtune.common.privacy.plan import Trust, Unit
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.ring import GRID, from_ring, sensitivity
from hushtune.common.secagg.wire import KeysOrder, encode_keys_order
from hushtune.common.secagg.wire_step import (
    ConfirmOrder,
    OpenOrder,
    StepOrder,
    decode_open_reply,
    decode_step_reply,
    encode_confirm_order,
    encode_open_order,
    encode_steps,
)

from .secure_grid import CLIP, RUN, SIZE, Sites, no_noise, order, plan, sum_vectors

STAGES = ("keys", "shares", "received", "masked", "confirm", "open")
NAMES = ("east", "north", "northwest", "south", "southwest", "west")


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """Six sites with vectors of their own, and no noise."""
    sites = Sites(NAMES, tmp_path)
    sum_vectors(sites, monkeypatch)
    no_noise(monkeypatch)
    return sites


def plain_sum(grid: Sites, names: tuple[str, ...] = NAMES) -> np.ndarray:
    return np.sum([grid.vectors[name].astype(np.float32).astype(float) for name in names], axis=0)


def lose(grid: Sites, action: str, *names: str) -> None:
    """These sites do not answer, from this stage on."""
    stages = STAGES
    since = stages.index(action)
    gone: set[str] = set()

    def spoil(doing: str, site: str, answer: RecordDict) -> RecordDict | None:
        if site in names and (site in gone or stages.index(doing) >= since):
            gone.add(site)
            return None
        return answer

    grid.spoil = spoil


def test_the_opened_sum_is_the_plain_sum_to_the_grid_s_rounding(grid: Sites) -> None:
    session = grid.session()
    session.begin()
    for number in (1, 2):
        opened = session.step(grid.orders(number))
        found = from_ring(opened.values, clip_norm=CLIP)
        assert np.abs(found - plain_sum(grid)).max() <= len(NAMES) * 0.5 * CLIP / GRID * 1.001
        assert opened.survivors == NAMES
    # Keys, shares and their receipt; masked sums and shares that open them, twice.
    assert session.traffic.exchanges == 3 + 2 * 2
    assert session.traffic.bytes_up > 0


def test_where_some_may_drop_out_a_step_takes_one_more_exchange(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    assert session.traffic.exchanges == 3 + 3
    assert [it for it in ("confirm", "open") if it in {doing for doing, _, _ in grid.asked}] == [
        "confirm",
        "open",
    ]


def test_sealed_shares_and_what_was_agreed_are_sent_once(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    first, session.traffic.bytes_down = session.traffic.bytes_down, 0
    session.step(grid.orders(2))
    asked = [unpack_body(it) for doing, _, it in grid.asked if doing == "masked"]
    assert [len(body["secure"]["agreed"]) for body in asked] == [6] * 6 + [0] * 6
    assert sum("sealed" in json.dumps(unpack_body(it)) for _, _, it in grid.asked) == 6
    assert session.traffic.bytes_down < first / 2


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("gone", [("north",), ("east", "west")])
def test_drop_outs_at_each_stage_down_to_the_threshold(
    grid: Sites, stage: str, gone: tuple[str, ...]
) -> None:
    session = grid.session(least=4)
    lose(grid, stage, *gone)
    session.begin()
    opened = session.step(grid.orders(1))
    there = (
        NAMES if stage in ("confirm", "open") else tuple(name for name in NAMES if name not in gone)
    )
    assert opened.survivors == there
    assert from_ring(opened.values, clip_norm=CLIP) == pytest.approx(
        plain_sum(grid, there), abs=1e-6
    )
    assert set(gone) <= set(session.traffic.lost)


def test_a_site_that_drops_out_in_one_step_is_in_the_next_again(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    grid.spoil = lambda doing, site, it: None if (doing, site) == ("masked", "west") else it
    assert "west" not in session.step(grid.orders(1)).survivors
    grid.spoil = lambda _, __, it: it
    opened = session.step(grid.orders(2))
    assert opened.survivors == NAMES
    assert from_ring(opened.values, clip_norm=CLIP) == pytest.approx(plain_sum(grid), abs=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_fewer_than_promised_open_nothing(grid: Sites, stage: str) -> None:
    session = grid.session(least=5)
    lose(grid, stage, "east", "north")

    def whole() -> None:
        session.begin()
        session.step(grid.orders(1))

    with pytest.raises(QuorumError, match="nothing is opened"):
        whole()
    opened = [content for action, _, content in grid.sent if action == "open"]
    if stage != "open":
        assert not opened


def test_sites_give_no_shares_to_a_server_that_names_too_few_survivors(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    for survivors in (("east",), ("east", "north", "west"), NAMES[:3]):
        assert "too few sites are left" in ask_to_open(grid, session.name, 2, survivors)


def test_survivors_cannot_be_changed_after_an_answer(grid: Sites) -> None:
    """Else both seeds of a site would be opened, and with them its vector."""
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    assert "changed after" in ask_to_open(grid, session.name, 1, NAMES[:4])
    # The same list again is answered as before.
    asked = next(it for doing, who, it in grid.asked if (doing, who) == ("open", "east"))
    again = grid.answer("open", "east", asked)
    assert set(decode_open_reply(again).own) == set(NAMES)


@pytest.mark.parametrize(
    ("action", "changed"),
    [("shares", "keys of a session"), ("received", "who has shared"), ("confirm", "survivors")],
)
def test_what_a_site_has_decided_outlasts_a_crash_before_its_state_is_kept(
    grid: Sites, action: str, changed: str
) -> None:
    """The node keeps the state once the answer has left; another list would break the promise that
    each honest site signs one."""
    names = NAMES[:5]
    before: dict[str, RecordDict] = {}
    answer = grid.answer

    def watched(doing: str, site: str, content: RecordDict) -> RecordDict:
        if (doing, site) == (action, "east"):
            state = grid.memory[site]
            before[action] = RecordDict({name: state[name] for name in state})
        return answer(doing, site, content)

    grid.answer = watched  # type: ignore[method-assign]
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    asked = next(it for doing, who, it in grid.asked if (doing, who) == (action, "east"))
    told = next(it for doing, who, it in grid.sent if (doing, who) == (action, "east"))
    other = {
        "shares": lambda body: body.update(keys={n: body["keys"][n] for n in names}),
        "received": lambda body: body.update(sharing=list(names)),
        "confirm": lambda body: body.update(survivors=list(names)),
    }[action]
    grid.memory["east"] = before[action]
    assert changed in refused(answer(action, "east", with_changes(asked, other))).reason
    again = answer(action, "east", asked)
    if action == "shares":  # split anew, which fits nothing that was given out before
        assert not unpack_body(again).get("refused")
    else:
        assert unpack_body(again) == unpack_body(told)


def test_a_site_answers_for_its_last_sessions_alone(grid: Sites) -> None:
    """Of an older one the decisions are no longer kept, so that it is refused."""
    session = grid.session(least=4)
    session.begin()
    kept = grid.memory["east"]
    for number in range(KEPT_SESSIONS):
        grid.sites["east"].ledger.begin_session(f"another {number}")
    grid.memory["east"] = kept
    assert "no longer" in ask_to_confirm(grid, session.name, 1, NAMES)
    # Begun again by that name, as in another run, it has other secrets, and does not revive these.
    keys = next(it for doing, who, it in grid.asked if (doing, who) == ("keys", "east"))
    grid.memory["east"] = RecordDict()
    assert not unpack_body(grid.answer("keys", "east", keys)).get("refused")
    grid.memory["east"] = kept
    assert "no longer" in ask_to_confirm(grid, session.name, 1, NAMES)


def test_no_site_reveals_both_seeds_of_another(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    grid.spoil = lambda doing, site, it: None if (doing, site) == ("masked", "west") else it
    session.step(grid.orders(1))
    for action, _, content in grid.sent:
        if action == "open":
            reply = decode_open_reply(content)
            assert not set(reply.own) & set(reply.pair)
            assert set(reply.pair) == {"west"}


def test_a_masked_message_is_uniform_and_independent_of_its_content(
    grid: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"zero": 0.0, "large": 1e6}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in sizes}
    for content, scale in sizes.items():
        for name in NAMES:
            grid.vectors[name] = np.full(SIZE, scale)
        for batch in range(5):
            numbers = tuple(range(100 * batch + 1, 100 * batch + 11))
            if content == "large":
                numbers = tuple(10_000 + number for number in numbers)
            session = grid.session(steps=numbers)
            session.begin()
            for number in numbers:
                grid.sent.clear()
                session.step(grid.orders(number))
                masked = next(it for action, _, it in grid.sent if action == "masked")
                seen[content].append(decode_step_reply(masked).values)
    drawn = {name: np.concatenate(parts) for name, parts in seen.items()}
    for values in drawn.values():
        for shift in (0, 24, 60):  # low, middle and high bits
            digit = ((values >> np.uint64(shift)) & np.uint64(15)).astype(int)
            assert stats.chisquare(np.bincount(digit, minlength=16)).pvalue > 1e-6
    table = [np.bincount((d >> np.uint64(60)).astype(int), minlength=16) for d in drawn.values()]
    assert stats.chi2_contingency(np.array(table))[1] > 1e-6


def test_each_mask_alone_hides_a_message(grid: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without masks the same numbers would be plain: what hides them is the masks."""
    monkeypatch.setattr(secure, "_mask_seeds", lambda session, place: [])
    session = grid.session()
    session.begin()
    opened = session.step(grid.orders(1))  # masks are taken off that were never put on
    assert np.abs(from_ring(opened.values, clip_norm=CLIP) - plain_sum(grid)).max() > 1
    masked = next(it for action, _, it in grid.sent if action == "masked")
    found = from_ring(decode_step_reply(masked).values, clip_norm=CLIP)
    assert found == pytest.approx(grid.vectors["east"], abs=1e-6)


def test_the_noise_of_the_sum_has_the_promised_variance_with_the_fewest_survivors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = Sites(NAMES, tmp_path)
    sum_vectors(grid, monkeypatch)
    for name in NAMES:
        grid.vectors[name] = np.zeros(SIZE)
    numbers = tuple(range(1, 61))
    session = grid.session(least=5, false=1, steps=numbers)
    grid.spoil = lambda doing, site, it: None if (doing, site) == ("masked", "west") else it
    session.begin()
    noise = np.concatenate(
        [session.step(grid.orders(n)).values.view(np.int64) for n in numbers]
    ).astype(float)
    # Five of six are left and one of them may side with the server: four shares make 1.0 * C.
    promised = sensitivity(SIZE)
    assert stats.kstest(noise / (promised * np.sqrt(5 / 4)), "norm").pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise / (promised * np.sqrt(5 / 4) * wrong), "norm").pvalue < 1e-6


# -------------------------------------------------------------------------- false sites ----


def spoil_json(action: str, site: str, change: Callable[[dict[str, object]], None]):
    """Alters one site's answers at one stage."""

    def spoil(doing: str, who: str, answer: RecordDict) -> RecordDict:
        if (doing, who) != (action, site):
            return answer
        body = unpack_body(answer)
        change(body)
        return with_body(answer, body)

    return spoil


def test_a_false_share_is_found_out_and_enough_good_ones_open_the_sum(grid: Sites) -> None:
    def falsify(body: dict[str, object]) -> None:
        own = body["own"]
        assert isinstance(own, dict)
        own.update({name: bytes(16).hex() for name in own})

    grid.spoil = spoil_json("open", "east", falsify)
    session = grid.session(least=4)
    session.begin()
    opened = session.step(grid.orders(1))
    assert from_ring(opened.values, clip_norm=CLIP) == pytest.approx(plain_sum(grid), abs=1e-6)
    strict = grid.session(least=6, steps=(3,))
    strict.begin()
    with pytest.raises(SecureSumError, match="one is false"):
        strict.step(grid.orders(3))


def test_a_site_that_claims_two_identities_is_left_out_by_the_server(grid: Sites) -> None:
    published: dict[str, RecordDict] = {}

    def copied(doing: str, site: str, answer: RecordDict) -> RecordDict:
        if doing != "keys":
            return answer
        published[site] = answer
        if site != "north":
            return answer
        body = unpack_body(answer)
        body["keys"] = unpack_body(published["east"])["keys"]
        return with_body(answer, body)

    grid.spoil = copied
    session = grid.session(least=4)
    session.begin()
    assert session.step(grid.orders(1)).survivors == ("northwest", "south", "southwest", "west")
    assert "same key" in session.traffic.lost["north"]


def test_a_site_refuses_keys_of_which_two_are_one(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    asked = next(it for action, site, it in grid.asked if (action, site) == ("shares", "east"))
    for spoil in ("twice", "changed", "stranger", "few"):
        fresh = grid.session(least=4)
        grid.spoil = lambda doing, _, it: None if doing == "shares" else it
        with pytest.raises(QuorumError):
            fresh.begin()
        body = unpack_body(
            [it for action, site, it in grid.asked if (action, site) == ("shares", "east")][-1]
        )
        keys = body["keys"]
        grid.memory["east"]["hushtune.secure"]["json"] = _without_keys(grid)  # type: ignore[index]
        if spoil == "twice":
            keys["north"] = keys["west"]
        elif spoil == "changed":
            keys["east"] = {**keys["east"], "seal": "ab" * 32}
        elif spoil == "stranger":
            keys["elsewhere"] = keys.pop("north")
        else:
            body["keys"] = {name: keys[name] for name in ("east", "west")}
        answer = refused(grid.answer("shares", "east", with_body(asked, body)))
        assert answer.code == "HT505", spoil
        assert "while it was going on" not in answer.reason, spoil


def _without_keys(grid: Sites) -> str:
    """The site's session as it was before it was asked for shares, its ledger's word included."""
    ledger = grid.sites["east"].ledger
    assert ledger is not None
    with closing(sqlite3.connect(ledger.path)) as db, db:
        db.execute("DELETE FROM decisions")
    raw = json.loads(str(grid.memory["east"].config_records["hushtune.secure"]["json"]))
    return json.dumps(
        {**raw, "keys": {}, "digest": "", "sealed": {}, "received": {}, "sharing": []}
    )


def test_a_replayed_message_is_answered_alike_or_refused(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    session.step(grid.orders(1))
    for action, site, content in list(grid.asked):
        before = next(it for doing, who, it in grid.sent if (doing, who) == (action, site))
        again = grid.answer(action, site, content)
        assert unpack_body(again) == unpack_body(before)
    assert grid.sites["east"].ledger.num_resent() == 1
    assert len(grid.sites["east"].ledger.entries()) == 1
    # In another session, or another step, the same messages are refused.
    other = grid.session(least=4, steps=(7,))
    other.begin()
    for action in STAGES[1:]:
        content = next(it for doing, who, it in grid.asked if (doing, who) == (action, "east"))
        assert refused(grid.answer(action, "east", content)).code == "HT505"


def test_a_replayed_answer_of_another_step_or_site_is_rejected(grid: Sites) -> None:
    kept: dict[tuple[str, str], RecordDict] = {}

    def replay(doing: str, site: str, answer: RecordDict) -> RecordDict:
        if doing != "masked":
            return answer
        first = kept.setdefault((doing, site), answer)
        return {"north": kept["masked", "east"], "west": first}.get(site, answer)

    grid.spoil = replay
    session = grid.session(least=4)
    session.begin()
    assert "north" not in session.step(grid.orders(1)).survivors
    survivors = session.step(grid.orders(2)).survivors
    assert survivors == ("east", "northwest", "south", "southwest")
    assert "another step" in session.traffic.lost["west"]


def test_the_charge_is_durable_before_a_masked_sum_leaves_and_without_budget_none_does(
    grid: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    east = grid.sites["east"]
    east.limit = replace(east.limit, max_rounds=1)
    session = grid.session(least=4, steps=(1, 2))
    session.begin()
    assert session.step(grid.orders(1)).survivors == NAMES
    assert session.step(grid.orders(2)).survivors == NAMES[1:]
    assert "HT401" in session.traffic.lost["east"]
    assert len(east.ledger.entries()) == 1
    event = east.ledger.entries()[0].event
    assert (event.sampling_probability, event.noise_multiplier, event.steps) == (0.1, 1.0, 1)


def test_an_update_of_another_size_or_without_its_charge_is_rejected(grid: Sites) -> None:
    def uncharged(body: dict[str, object]) -> None:
        body["charge"] = None

    grid.spoil = spoil_json("masked", "east", uncharged)
    session = grid.session(least=4)
    session.begin()
    assert session.step(grid.orders(1)).survivors == NAMES[1:]
    assert "charge" in session.traffic.lost["east"]


def test_a_site_that_lost_its_memory_has_dropped_out(grid: Sites) -> None:
    session = grid.session(least=4)
    session.begin()
    grid.memory["east"] = RecordDict()
    assert session.step(grid.orders(1)).survivors == NAMES[1:]
    assert "knows nothing of the session" in session.traffic.lost["east"]


def test_many_sites_with_a_sparse_graph_and_drop_outs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hushtune.common.secagg import cohort as cohorts

    monkeypatch.setattr(cohorts, "_SECURITY_BITS", 4)
    monkeypatch.setattr(cohorts, "_LEAST_DEGREE", 4)
    grid = Sites([f"s{place:02d}" for place in range(30)], tmp_path)
    sum_vectors(grid, monkeypatch)
    no_noise(monkeypatch)
    session = grid.session(least=26, steps=(1,))
    assert session.cohort.degree < 29
    gone = ("s03", "s11")
    grid.spoil = lambda doing, site, it: None if doing == "masked" and site in gone else it
    session.begin()
    opened = session.step(grid.orders(1))
    there = tuple(name for name in grid.names if name not in gone)
    assert opened.survivors == there
    assert from_ring(opened.values, clip_norm=CLIP) == pytest.approx(
        plain_sum(grid, there), abs=1e-6
    )


def test_a_site_masks_only_for_the_plan_that_began_the_session(grid: Sites) -> None:
    from dataclasses import replace

    session = grid.session(least=4)
    session.begin()
    asked = order("east", 1)
    weaker = replace(asked, plan=replace(asked.plan, noise_multiplier=0.06))
    (content,) = encode_steps([StepOrder(order=weaker, session=session.name, agreed={})])
    assert "another plan" in refused(grid.answer("masked", "east", content)).reason
    assert not grid.sites["east"].ledger.entries()


def open_order(session: str, step: int, survivors: tuple[str, ...]) -> RecordDict:
    return encode_open_order(
        OpenOrder(
            run=RUN, session=session, site="east", step=step, survivors=survivors, confirmed={}
        )
    )


def test_no_sum_is_opened_of_sites_whose_shares_were_held_back(grid: Sites) -> None:
    """Padded with names whose masks are in no sum, the survivors would be fewer than they seem."""
    session = grid.session(least=4)
    grid.spoil = lambda doing, site, it: (
        None if doing == "shares" and site in ("south", "west") else it
    )
    session.begin()
    orders = {name: order(name, 1) for name in NAMES}
    session.step(orders)
    assert "not this site and others" in ask_to_open(grid, session.name, 2, NAMES)


def test_a_site_opens_no_sum_that_it_is_not_in(grid: Sites) -> None:
    """Else a site could be cut off by calling its neighbours dropped, one after the other."""
    session = grid.session(least=4)
    session.begin()
    assert "not this site and others" in ask_to_open(grid, session.name, 1, NAMES[1:])


def test_a_site_that_relies_on_itself_alone_takes_part_in_no_secure_sum(grid: Sites) -> None:
    from dataclasses import replace

    east = grid.sites["east"]
    east.policy = replace(east.policy, trust=Trust.SITE)
    session = grid.session(least=4)
    session.begin()
    assert "HT404" in session.traffic.lost["east"]
    weak = replace(plan(), trust=Trust.SITE)
    content = encode_keys_order(
        KeysOrder(
            run=RUN, session="cd" * 16, site="east", cohort=session.cohort, plan=weak, steps=(1,)
        )
    )
    assert refused(grid.answer("keys", "east", content)).code == "HT404"


def test_a_site_adds_up_with_the_sites_of_the_run_alone_and_with_its_peers(grid: Sites) -> None:
    from dataclasses import replace

    east = grid.sites["east"]
    sound = east.policy

    def reason() -> str | None:
        session = grid.session(least=4)
        session.begin()
        return session.traffic.lost.get("east")

    east.policy = replace(sound, run_sites=(*NAMES, "zoo"))
    assert "not between the sites of this run" in str(reason())
    east.policy = replace(sound, run_sites=NAMES)
    assert reason() is None
    for peers, known in ((NAMES, True), (NAMES[1:], True), (NAMES[2:], False)):
        terms = sound.terms.model_copy(update={"peers": peers})
        east.policy = replace(sound, terms=terms)
        assert (reason() is None) is known
    assert "does not know" in str(reason())


def test_noise_whose_shares_cannot_be_drawn_is_refused_before_anything_is_charged(
    grid: Sites,
) -> None:
    cohort = grid.session().cohort
    for noise, fits in ((8e4, True), (8.1e4, False), (1e6, False)):
        asked = KeysOrder(
            run=RUN,
            session="cd" * 16,
            site="east",
            cohort=cohort,
            plan=plan(noise=noise),
            steps=(1,),
        )
        answer = unpack_body(grid.answer("keys", "east", encode_keys_order(asked)))
        assert ("refused" not in answer) is fits
        if fits:  # at any size
            assert cohort.share_std(noise, 2**60) <= MOST_STD
        grid.memory["east"] = RecordDict()


def test_a_plain_order_gets_no_update_that_only_a_sum_protects(grid: Sites) -> None:
    for unit in (Unit.EXAMPLE, Unit.CLIENT):
        terms = grid.sites["east"].policy.terms.model_copy(update={"unit": str(unit)})
        grid.sites["east"].policy = replace_terms(grid.sites["east"].policy, terms)
        plain = order("east", 1, of=plan(unit=unit))
        answer = app.answer(encode_order(plain), grid.sites["east"])
        assert "only a sum protects" in refused(answer).reason
    assert not grid.sites["east"].ledger.entries()


def replace_terms(policy: SitePolicy, terms: Terms) -> SitePolicy:
    from dataclasses import replace

    return replace(policy, terms=terms)


def refused(content: RecordDict) -> Refusal:
    """A site's refusal, where it refused."""
    assert unpack_body(content).get("refused"), "the site answered"
    return decode_refusal(content)


def ask_to_open(grid: Sites, session: str, step: int, survivors: tuple[str, ...]) -> str:
    """The reason for which a site refuses."""
    return refused(grid.answer("open", "east", open_order(session, step, survivors))).reason


def ask_to_confirm(grid: Sites, session: str, step: int, survivors: tuple[str, ...]) -> str:
    """The reason for which a site refuses."""
    order = ConfirmOrder(run=RUN, session=session, site="east", step=step, survivors=survivors)
    return refused(grid.answer("confirm", "east", encode_confirm_order(order))).reason


def with_changes(content: RecordDict, change: Callable[[dict[str, Any]], object]) -> RecordDict:
    """A message whose body is another."""
    body = unpack_body(content)
    change(body)
    return with_body(content, body)


def test_seeds_of_a_session_are_its_own() -> None:
    assert crypto.own_seed(bytes(16), "one", 1) != crypto.own_seed(bytes(16), "two", 1)
