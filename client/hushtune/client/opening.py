"""A site's part in opening a secure sum: it signs whose sums arrived, and gives out shares.

Of another site and step it reveals the seed of its own mask or that of the masks it shares, never
both, and only where enough sites have signed the same list of survivors: then no honest site gives
out the other of the two.
"""

from __future__ import annotations

from flwr.app import RecordDict

from hushtune.client.session import Session, current, hold
from hushtune.client.site import Site
from hushtune.common.errors import SecureSumError
from hushtune.common.secagg.wire_step import (
    Confirmed,
    ConfirmOrder,
    OpenOrder,
    OpenReply,
    decode_confirm_order,
    decode_open_order,
    encode_confirmed,
    encode_open_reply,
)


def answer_confirm(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """Sign whose masked sums of a step arrived; one list for each step."""
    order = decode_confirm_order(content)
    session = current(state, site, order.run, order.session)
    _fix_survivors(order, site, session)
    signature = session.signing().sign(session.arrived_text(order.step, order.survivors))
    return encode_confirmed(
        Confirmed(session=session.name, site=site.name, step=order.step, signature=signature)
    )


def answer_open(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """Give out the shares that open the sum of the survivors of a step; once for each step."""
    order = decode_open_order(content)
    session = current(state, site, order.run, order.session)
    place = session.place(order.step)
    _fix_survivors(order, site, session)
    # Survivors' signatures alone: of others that sign, nobody knows whether their masks are in it.
    signed = {name: it for name, it in order.confirmed.items() if name in order.survivors}
    if not session.agree(signed, session.arrived_text(order.step, order.survivors)):
        raise SecureSumError(
            "too few sites have confirmed whose sums of a step arrived: they were told otherwise",
            expected=f"{session.cohort.min_survivors} or more",
        )
    shares = {name: held[place] for name, held in session.received().items()}
    staying = set(order.survivors)
    return encode_open_reply(
        OpenReply(
            session=session.name,
            site=site.name,
            step=order.step,
            own={n: bytes.fromhex(own) for n, (own, _) in shares.items() if n in staying},
            pair={n: bytes.fromhex(pair) for n, (_, pair) in shares.items() if n not in staying},
        )
    )


def _fix_survivors(order: ConfirmOrder | OpenOrder, site: Site, session: Session) -> None:
    """Hold a step to its first list of survivors; SecureSumError for another or an unfit one."""
    _check_survivors(order, session)
    changed = "the survivors of a step were changed after it was answered"
    hold(site, session, f"survivors of {order.step}", order.survivors, changed=changed)


def _check_survivors(order: ConfirmOrder | OpenOrder, session: Session) -> None:
    """Raise SecureSumError for a step that is not the session's, or an unfit list."""
    session.place(order.step)
    least, names = session.cohort.min_survivors, order.survivors
    known = set(session.raw["sharing"])
    if session.site not in names or not set(names) <= known or list(names) != sorted(set(names)):
        raise SecureSumError(
            "the survivors of a step are not this site and others that have shared, each once"
        )
    if len(names) < least:
        raise SecureSumError(
            "too few sites are left: their sum would carry less noise than was promised",
            given=len(names),
            expected=f"{least} or more (privacy.min_survivors)",
        )
