"""The server's part in a secure sum: it passes keys and sealed shares on, adds up, and opens.

It never holds a site's vector: what it can compute is the sum of those that stayed, which carries
the noise of all of them. Each exchange goes on with those that answered, and fails with QuorumError
where they are fewer than the cohort needs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from hushtune.common.errors import MessageError, QuorumError
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.agreement import agreeing, arrived_text, keys_digest, shared_text
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import Ring
from hushtune.common.secagg.wire import (
    KeysOrder,
    Received,
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
    StepReply,
    decode_confirmed,
    decode_open_reply,
    decode_step_reply,
    encode_confirm_order,
    encode_open_order,
    encode_steps,
)
from hushtune.server.aggregation.check import check_charge
from hushtune.server.chains import NOTHING_SHOWN, Shown
from hushtune.server.exchange import Line
from hushtune.server.replies import countable, short
from hushtune.server.session_keys import check_keys, copied
from hushtune.server.traffic import Traffic
from hushtune.server.unmasking import Masks, unmasked

_T = TypeVar("_T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedSum:
    """The sum of ``survivors``, in the ring; where each one's noise came from."""

    values: Ring
    survivors: tuple[str, ...]
    noise: Mapping[str, str]


class SecureSession:
    """Keys agreed on for a few steps, among the sites of a cohort that answered."""

    def __init__(
        self,
        *,
        run: str,
        cohort: Cohort,
        plan: PrivacyPlan,
        steps: tuple[int, ...],
        grid: Grid,
        nodes: Mapping[str, int],
        timeout: float,
        shown: Shown = NOTHING_SHOWN,
    ) -> None:
        self.name = os.urandom(16).hex()
        self.cohort, self.traffic = cohort, Traffic()
        self._run, self._plan, self._steps, self._shown = run, plan, steps, shown
        self._line = Line(grid=grid, nodes=nodes, timeout=timeout, traffic=self.traffic)
        self._masks = Masks(session=self.name, cohort=cohort, keys={}, sharing=())
        self._agreed: dict[str, bytes] = {}
        self._told: set[str] = set()

    def begin(self) -> None:
        """Exchange keys and sealed shares, anew without those whose shares are false."""
        asked = self.cohort.sites
        while True:
            self.name = os.urandom(16).hex()
            false = self._begin(asked)
            if not false:
                return
            for site, reason in false.items():
                of = {"site": site}
                log.warning("secure sums go on without %s: %s", site, reason, extra=of)
            self._line.traffic.lost.update(false)
            asked = tuple(site for site in asked if site not in false)
            self._require(asked, "shared what opens their masks")

    def _begin(self, asked: tuple[str, ...]) -> dict[str, str]:
        """The exchanges that begin a session; whose masks too few could open, and why."""
        named = {"run": self._run, "session": self.name}
        keys = self._ask(
            "keys",
            {
                site: encode_keys_order(
                    KeysOrder(
                        **named, site=site, cohort=self.cohort, plan=self._plan, steps=self._steps
                    )
                )
                for site in asked
            },
            self._read_keys,
        )
        for site in copied(keys):
            self.traffic.lost[site] = "rejected: another site published the same key"
            del keys[site]
        self._require(keys, "published keys")
        self._masks = Masks(session=self.name, cohort=self.cohort, keys=keys, sharing=())
        sealed = self._ask(
            "shares",
            {
                site: encode_shares_order(SharesOrder(**named, site=site, keys=keys))
                for site in sorted(keys)
            },
            self._read_shares,
        )
        self._require(sealed, "shared what opens their masks")
        sharing = tuple(sealed)
        self._masks = replace(self._masks, sharing=sharing)
        received = self._ask(
            "received",
            {
                site: encode_received_order(
                    ReceivedOrder(
                        **named,
                        site=site,
                        sharing=sharing,
                        sealed={other: sealed[other][site] for other in self._masks.partners(site)},
                    )
                )
                for site in sharing
            },
            partial(self._read_received, shared_text(self.name, keys_digest(keys), sharing)),
        )
        self._require(received, "confirmed who has shared secrets")
        self._agreed = {site: reply.signature for site, reply in received.items()}
        self._told = set()
        return self._false(received)

    def _false(self, received: Mapping[str, Received]) -> dict[str, str]:
        """Those whose shares so many call false that the rest could not open their masks.

        One site's word alone expels nobody where others hold enough: it may be the false one.
        """
        found: dict[str, str] = {}
        for site in self._masks.sharing:
            against = sorted(name for name, reply in received.items() if site in reply.false)
            if not against:
                continue
            words, of = "what %s has shared is no share for %s", {"site": site}
            log.warning(words, site, ", ".join(against), extra=of)
            if len(self._masks.holders(site)) - len(against) < self.cohort.share_threshold:
                found[site] = short(
                    f"rejected: what it has shared is no share for {', '.join(against)}"
                )
        return found

    def step(self, orders: Mapping[str, RoundOrder]) -> OpenedSum:
        """One step: the masked sums of all that are there, added up and opened."""
        asked = {site: orders[site] for site in self._masks.sharing}
        number = next(iter(asked.values())).round
        steps = [
            StepOrder(order=order, session=self.name, agreed=self._agreed_for(site))
            for site, order in asked.items()
        ]
        replies = self._ask(
            "masked",
            dict(zip(asked, encode_steps(steps), strict=True)),
            lambda site, content: self._read_step(asked[site], content),
        )
        self._told |= set(replies)
        self._require(replies, "sent a masked sum")
        survivors = tuple(replies)
        confirmed = self._confirmed(number, survivors)
        opened = self._ask(
            "open",
            {
                site: encode_open_order(
                    OpenOrder(
                        run=self._run,
                        session=self.name,
                        site=site,
                        step=number,
                        survivors=survivors,
                        confirmed=confirmed,
                    )
                )
                for site in confirmed or survivors
            },
            lambda site, content: self._read_opened(number, site, content),
        )
        self._require(opened, "opened the sum")
        total = np.zeros(next(iter(replies.values())).values.size, np.uint64)
        for site in survivors:
            total += replies[site].values
        total = unmasked(
            total,
            self._masks,
            step=number,
            place=self._steps.index(number),
            survivors=survivors,
            opened=opened,
        )
        return OpenedSum(total, survivors, {site: replies[site].noise for site in survivors})

    def _confirmed(self, number: int, survivors: tuple[str, ...]) -> dict[str, bytes]:
        """The survivors' signatures under their list; none where none are needed."""
        if not self.cohort.needs_agreement:
            return {}
        masks = self._masks
        text = arrived_text(
            self.name, keys_digest(masks.keys), masks.sharing, step=number, survivors=survivors
        )
        confirmed = self._ask(
            "confirm",
            {
                site: encode_confirm_order(
                    ConfirmOrder(
                        run=self._run,
                        session=self.name,
                        site=site,
                        step=number,
                        survivors=survivors,
                    )
                )
                for site in survivors
            },
            partial(self._read_confirmed, text),
        )
        self._require(confirmed, "confirmed whose sums arrived")
        return confirmed

    def _agreed_for(self, site: str) -> Mapping[str, bytes]:
        """Signatures under who has shared: once for each site, and where they are needed."""
        return self._agreed if self.cohort.needs_agreement and site not in self._told else {}

    # ------------------------------------------------------------------------- exchanges ----

    def _ask(
        self,
        action: str,
        contents: Mapping[str, RecordDict],
        read: Callable[[str, RecordDict], _T],
    ) -> dict[str, _T]:
        return self._line.ask(action, contents, read, group=self.name)

    def _require(self, there: Collection[str], did: str) -> None:
        if len(there) >= self.cohort.min_survivors:
            return
        lost = "".join(f"\n  {site}: {why}" for site, why in sorted(self.traffic.lost.items()))
        raise QuorumError(
            f"too few sites {did}, so nothing is opened{lost}",
            given=f"{len(there)} of {len(self.cohort.sites)}",
            expected=f"{self.cohort.min_survivors} or more (privacy.min_survivors)",
            remedy="mend the sites and go on with --resume; a lower privacy.min_survivors, in a "
            "new run, survives more drop-outs and adds more noise",
        )

    # ---------------------------------------------------------------------- what comes in ----

    def _read_keys(self, site: str, content: RecordDict) -> SiteKeys:
        session, name, keys = decode_keys(content)
        self._check_name(session, name, site)
        check_keys(keys, steps=len(self._steps))
        return keys

    def _read_shares(self, site: str, content: RecordDict) -> dict[str, bytes]:
        session, name, sealed = decode_shares(content)
        self._check_name(session, name, site)
        if set(sealed) != set(self._masks.holders(site)) - {site}:
            raise MessageError("sealed shares are not for its neighbours, one for each")
        return sealed

    def _read_received(self, text: bytes, site: str, content: RecordDict) -> Received:
        reply = decode_received(content)
        self._check_name(reply.session, reply.site, site)
        self._check_signed(site, reply.signature, text)
        if not set(reply.false) <= set(self._masks.partners(site)):
            raise MessageError("it speaks of shares that it was not sent")
        return reply

    def _read_confirmed(self, text: bytes, site: str, content: RecordDict) -> bytes:
        reply = decode_confirmed(content)
        self._check_name(reply.session, reply.site, site)
        self._check_signed(site, reply.signature, text)
        return reply.signature

    def _check_signed(self, site: str, signature: bytes, text: bytes) -> None:
        known = {site: self._masks.keys[site].sign}
        if not agreeing({site: signature}, text, keys=known):
            raise MessageError("it has signed something else than it was told")

    def _read_step(self, order: RoundOrder, content: RecordDict) -> StepReply:
        reply = decode_step_reply(content)
        if reply.charge is not None and countable(reply.charge, order):
            broken = self._shown.objection(order.site, reply.charge)
            self._shown = self._shown.with_charge(order.site, reply.charge)
            self.traffic.charges.append((order.site, reply.charge))
            if broken is not None:
                raise MessageError(broken)
        self._check_name(reply.session, reply.site, order.site)
        if (reply.run, reply.round) != (order.run, order.round):
            raise MessageError("it answers another step", given=reply.round)
        size = sum(order.adapter.tensors[key].numel() for key in order.sent)
        if reply.values.size != size:
            raise MessageError("a masked sum of another size", given=reply.values.size)
        check_charge(reply.charge, order, order.plan.event(1))
        return reply

    def _read_opened(self, number: int, site: str, content: RecordDict) -> OpenReply:
        reply = decode_open_reply(content)
        self._check_name(reply.session, reply.site, site)
        if reply.step != number:
            raise MessageError("it opens another step", given=reply.step)
        if any(len(s) != crypto.SEED_BYTES for s in (*reply.own.values(), *reply.pair.values())):
            raise MessageError("a share has a wrong length")
        return reply

    def _check_name(self, session: str, name: str, site: str) -> None:
        if (session, name) != (self.name, site):
            raise MessageError("it answers for another session or site", given=name[:100])
