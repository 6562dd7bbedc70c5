"""The Flower ClientApp: decode -> policy -> ledger -> train -> charge -> encode."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from hushtune.client import metrics, opening, secure
from hushtune.client.charging import charged, unexpected
from hushtune.client.deployment import handover
from hushtune.client.rounds import own_model, updated
from hushtune.client.site import Site, open_site
from hushtune.common.errors import (
    DataError,
    HushtuneError,
    MissingFileError,
    SecureSumError,
)
from hushtune.common.messages import (
    METRICS_RUN,
    Refusal,
    RoundOrder,
    decode_order,
    encode_refusal,
    encode_update,
    name_of_order,
)
from hushtune.common.metrics_messages import (
    MetricsOrder,
    MetricsReport,
    decode_metrics_order,
    encode_report,
)
from hushtune.common.privacy.ledger import LedgerEntry
from hushtune.common.roll_call_messages import decode_hello, encode_site
from hushtune.common.secagg.wire_step import StepReply, decode_step, encode_step_reply

log = logging.getLogger(__name__)


_Order = TypeVar("_Order", RoundOrder, MetricsOrder, RecordDict)

_app = ClientApp()
app = _app


@_app.query()
def say_site(message: Message, context: Context) -> Message:
    """Answer which site this node is."""
    try:
        decode_hello(message.content)
        return Message(encode_site(open_site(context).name), reply_to=message)
    except HushtuneError as error:
        return _failed(error, message)


@_app.query("handover")
def take_over(message: Message, context: Context) -> Message:
    """Keep a finished run's model and this site's statement, and answer with a signed receipt."""
    try:
        return Message(handover.answer(message.content, context), reply_to=message)
    except Exception as caught:  # whatever it is, it gets an answer that tells nothing of the rows
        return _failed(caught if isinstance(caught, HushtuneError) else unexpected(caught), message)


@_app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round, or refuse with a reason."""
    return _at_site(message, context, answer)


@_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Tell how the global model does on this site's held-out rows, or refuse with a reason."""
    return _at_site(message, context, answer_metrics)


@_app.train("keys")
def publish_keys(message: Message, context: Context) -> Message:
    """Begin a session of secure sums: this site's public keys."""
    return _in_session(message, context, secure.answer_keys)


@_app.train("shares")
def share_secrets(message: Message, context: Context) -> Message:
    """Sealed shares of what opens this site's masks."""
    return _in_session(message, context, secure.answer_shares)


@_app.train("received")
def receive_shares(message: Message, context: Context) -> Message:
    """Take in sealed shares, and sign who has shared."""
    return _in_session(message, context, secure.answer_received)


@_app.train("masked")
def sum_masked(message: Message, context: Context) -> Message:
    """One step: this site's masked sum, charged."""
    return _in_session(message, context, answer_step)


@_app.train("confirm")
def confirm_survivors(message: Message, context: Context) -> Message:
    """Sign whose sums arrived."""
    return _in_session(message, context, opening.answer_confirm)


@_app.train("open")
def open_sum(message: Message, context: Context) -> Message:
    """The shares that open the sum of those who answered."""
    return _in_session(message, context, opening.answer_open)


def _in_session(
    message: Message,
    context: Context,
    answer: Callable[[RecordDict, Site, RecordDict], RecordDict],
) -> Message:
    """A session's messages share the node's own state."""

    def reply(content: RecordDict, site: Site) -> RecordDict:
        return _reply(content, site, lambda same: same, lambda it: answer(it, site, context.state))

    return _at_site(message, context, reply)


def _at_site(
    message: Message, context: Context, reply: Callable[[RecordDict, Site], RecordDict]
) -> Message:
    try:
        site = open_site(context)
    except HushtuneError as error:
        return _failed(error, message)
    return Message(reply(message.content, site), reply_to=message)


def _failed(error: HushtuneError, message: Message) -> Message:
    """An error reply; what was given, a value or a path, stays at the site."""
    log.error("this site cannot take part: %s", error)
    return Message(Error(code=0, reason=what_leaves(error)), reply_to=message)


def what_leaves(error: HushtuneError) -> str:
    """The code and message of an error, as another may read them.

    Of what is wrong with data the code alone: which label is rare, or which row is empty, is
    theirs. A file that is not there is no data yet.
    """
    of_data = isinstance(error, DataError) and not isinstance(error, MissingFileError)
    told = "the site's data cannot be used; its own log says why" if of_data else error.message
    return f"{error.code} {told}"


def answer(content: RecordDict, site: Site) -> RecordDict:
    """The reply to an order: an update that is charged, or a refusal."""
    return _reply(
        content,
        site,
        decode_order,
        lambda order: encode_update(updated(order, site, asked=name_of_order(content))),
    )


def answer_metrics(content: RecordDict, site: Site) -> RecordDict:
    """The reply to an order for metrics: figures, charged unless they are public, or a refusal."""
    return _reply(
        content,
        site,
        decode_metrics_order,
        lambda order: encode_report(_report(order, site, asked=name_of_order(content))),
    )


def answer_step(content: RecordDict, site: Site, state: RecordDict) -> RecordDict:
    """The reply to an order for one step of a secure sum: masked, noised, and charged."""
    asked = decode_step(content)
    order, ledger = asked.order, site.ledger
    site.policy.check(order)
    if ledger is None:
        raise SecureSumError("a site without a ledger takes part in no secure sum")
    compute = secure.masked(asked, site, state)
    num_charges = len(ledger.entries(site.dataset))
    told, entry = charged(
        order.plan.event(1),
        lambda: compute(order, num_charges),
        run=order.run,
        round=order.round,
        asked=name_of_order(content),
        site=site,
        ledger=ledger,
    )
    return encode_step_reply(
        StepReply(
            run=order.run,
            round=order.round,
            site=site.name,
            session=asked.session,
            charge=entry,
            noise=secure.described(site.noise),
            values=np.frombuffer(told, "<u8").astype(np.uint64),
        )
    )


def _reply(
    content: RecordDict,
    site: Site,
    decode: Callable[[RecordDict], _Order],
    obey: Callable[[_Order], RecordDict],
) -> RecordDict:
    """What an order asks for, or the refusal that says why not."""
    order: _Order | None = None
    try:
        order = decode(content)
        return obey(order)
    except Exception as caught:
        # Whatever an order does to this site, it gets an answer that tells nothing of the rows.
        error = caught if isinstance(caught, HushtuneError) else unexpected(caught)
        run, number = getattr(order, "run", ""), getattr(order, "round", 0)
        log.warning("site %s refuses round %d: %s", site.name, number, error)
        # What was given may be a value or a path, which stays here; the log has it.
        refusal = Refusal(
            run=run, round=number, site=site.name, code=error.code, reason=error.message
        )
        return encode_refusal(refusal)


def _report(order: MetricsOrder, site: Site, *, asked: str) -> MetricsReport:
    site.policy.check_metrics(order)

    def measure() -> bytes:
        found = metrics.figures(
            site.task,
            own_model(order.adapter, site, run=order.run),
            site.held_out,
            public_units=site.public_held_out,
            noise_multiplier=order.noise_multiplier,
            noise=site.noise,
        )
        return json.dumps(found).encode()

    entry: LedgerEntry | None = None
    if site.ledger is None or order.noise_multiplier is None:
        told = measure()
    else:
        # A name of its own: a round is charged for its training and for its figures.
        told, entry = charged(
            metrics.event(order.noise_multiplier),
            measure,
            run=f"{order.run}{METRICS_RUN}",
            round=order.round,
            asked=asked,
            site=site,
            ledger=site.ledger,
        )
    return MetricsReport(
        run=order.run, round=order.round, site=site.name, charge=entry, **json.loads(told)
    )
