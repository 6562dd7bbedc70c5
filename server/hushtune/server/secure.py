"""The server's part in a secure sum: it passes keys and sealed shares on, adds up, and opens.

It never holds a site's vector: what it can compute is the sum of those that stayed, which carries
the noise of all of them. Each exchange goes on with those that answered, and fails with QuorumError
where they are fewer than the cohort needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hushtune.common.errors import HushtuneError, MessageError, QuorumError, SecureSumError
from hushtune.common.messages import RoundOrder
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import Ring, mask
from hushtune.common.secagg.wire import (
    KeysOrder,
    SharesOrder,
    SiteKeys,
    decode_keys,
    decode_shares,
    encode_keys_order,
    encode_shares_order,
)
from hushtune.common.secagg.wire_step import (
    OpenOrder,
    OpenReply,
    StepOrder,
    StepReply,
    decode_open_reply,
    decode_step_reply,
    encode_open_order,
    encode_step,
)
from hushtune.server.aggregation.check import check_charge
from hushtune.server.replies import content_bytes, countable, refusal_row, refusal_words, short
from hushtune.server.traffic import RefusedError, Traffic, content_of

_T = TypeVar("_T")


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
    ) -> None:
        self.name = os.urandom(16).hex()
        self.cohort, self.traffic = cohort, Traffic()
        self._run, self._plan, self._steps = run, plan, steps
        self._grid, self._nodes, self._timeout = grid, nodes, timeout
        self._keys: dict[str, SiteKeys] = {}
        self._sealed: dict[str, dict[str, bytes]] = {}

    def begin(self) -> None:
        """Exchange keys and sealed shares."""
        keys = self._ask(
            "keys",
            {
                site: encode_keys_order(
                    KeysOrder(
                        run=self._run,
                        session=self.name,
                        site=site,
                        cohort=self.cohort,
                        plan=self._plan,
                        steps=self._steps,
                    )
                )
                for site in self.cohort.sites
            },
            self._read_keys,
        )
        self._keys = self._distinct(keys)
        self._require(self._keys, "published keys")
        self._sealed = self._ask(
            "shares",
            {
                site: encode_shares_order(
                    SharesOrder(run=self._run, session=self.name, site=site, keys=self._keys)
                )
                for site in sorted(self._keys)
            },
            self._read_shares,
        )
        self._require(self._sealed, "shared what opens their masks")

    def step(self, orders: Mapping[str, RoundOrder]) -> OpenedSum:
        """One step: the masked sums of all that are there, added up and opened."""
        asked = {site: orders[site] for site in sorted(self._sealed)}
        number = next(iter(asked.values())).round
        replies = self._ask(
            "masked",
            {
                site: encode_step(
                    StepOrder(order=order, session=self.name, sealed=self._sealed_for(site))
                )
                for site, order in asked.items()
            },
            lambda site, content: self._read_step(asked[site], content),
        )
        self._require(replies, "sent a masked sum")
        survivors = tuple(sorted(replies))
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
                    )
                )
                for site in survivors
            },
            lambda site, content: self._read_opened(number, site, content),
        )
        self._require(opened, "opened the sum")
        total = np.zeros(next(iter(replies.values())).values.size, np.uint64)
        for site in survivors:
            total += replies[site].values
        total = self._unmasked(total, number, survivors, opened)
        return OpenedSum(total, survivors, {site: replies[site].noise for site in survivors})

    # -------------------------------------------------------------------- masks come off ----

    def _unmasked(
        self, total: Ring, number: int, survivors: tuple[str, ...], opened: Mapping[str, OpenReply]
    ) -> Ring:
        place = self._steps.index(number)
        labels = (self.name, number)
        for site in survivors:
            seed = self._open(
                site,
                {n: reply.own[site] for n, reply in opened.items() if site in reply.own},
                fits=lambda seed, site=site: (
                    crypto.commitment(seed, *labels) == self._keys[site].own[place]
                ),
            )
            total = total - mask(crypto.own_seed(seed, *labels), total.size)
        for site in sorted(set(self._sealed) - set(survivors)):
            seed = self._open(
                site,
                {n: reply.pair[site] for n, reply in opened.items() if site in reply.pair},
                fits=lambda seed, site=site: (
                    crypto.public_bytes(crypto.private_key(seed, "pair", *labels))
                    == self._keys[site].pair[place]
                ),
            )
            private = crypto.private_key(seed, "pair", *labels)
            for other in self._neighbours(site):
                if other not in survivors:
                    continue
                theirs = self._keys[other].pair[place]
                hidden = mask(crypto.pair_seed(private, theirs, other, site, *labels), total.size)
                # As the survivor has it: added where its name comes first.
                total = total - hidden if other < site else total + hidden
        return total

    def _open(
        self, site: str, shares: Mapping[str, bytes], *, fits: Callable[[bytes], bool]
    ) -> bytes:
        """The seed that a site has shared; SecureSumError where shares are too few or wrong."""
        threshold, holders = self.cohort.share_threshold, self._holders(site)
        known = {name: share for name, share in shares.items() if name in holders}
        if len(known) < threshold:
            raise SecureSumError(
                f"too few shares to open the masks of {site}, so the sum stays closed",
                given=len(known),
                expected=f"{threshold} or more",
            )
        # One false share among enough good ones is found by leaving each holder out in turn.
        spare = sorted(known) if len(known) > threshold else []
        for without in (None, *spare):
            chosen = {name: share for name, share in known.items() if name != without}
            seed = crypto.combine(chosen, threshold=threshold, holders=holders)
            if fits(seed):
                return seed
        raise SecureSumError(
            f"the shares of what masks {site} do not fit what it published: one is false",
            given=f"shares of {', '.join(sorted(known))}"[:300],
        )

    def _neighbours(self, site: str) -> tuple[str, ...]:
        around = self.cohort.neighbours(site, session=self.name)
        return tuple(name for name in around if name in self._sealed)

    def _holders(self, site: str) -> list[str]:
        around = self.cohort.neighbours(site, session=self.name)
        return sorted((site, *(name for name in around if name in self._keys)))

    def _sealed_for(self, site: str) -> dict[str, bytes]:
        return {sender: sealed[site] for sender, sealed in self._sealed.items() if site in sealed}

    # ---------------------------------------------------------------------- one exchange ----

    def _ask(
        self,
        action: str,
        contents: Mapping[str, RecordDict],
        read: Callable[[str, RecordDict], _T],
    ) -> dict[str, _T]:
        """What each site answers, by name and sorted; why others do not is noted."""
        messages = [
            Message(
                content,
                dst_node_id=self._nodes[site],
                message_type=f"train.{action}",
                group_id=self.name,
            )
            for site, content in contents.items()
            if site in self._nodes
        ]
        sites = {self._nodes[site]: site for site in contents if site in self._nodes}
        traffic, found = self.traffic, dict[str, _T]()
        traffic.exchanges += 1
        traffic.bytes_down += sum(content_bytes(message.content) for message in messages)
        for message in self._grid.send_and_receive(messages, timeout=self._timeout):
            site = sites.pop(message.metadata.src_node_id, None)
            if site is None:  # unasked, or a second answer
                continue
            if message.has_content():
                traffic.bytes_up += content_bytes(message.content)
            try:
                found[site] = read(site, content_of(message))
            except RefusedError as refused:
                traffic.lost[site] = refusal_words(refused.refusal)
                traffic.refusals[site] = refusal_row(refused.refusal, refused.refusal.round)
            except HushtuneError as error:
                traffic.lost[site] = short(f"rejected: {error.message}")
        for site in contents:
            if site not in found:
                absent = "no answer" if site in self._nodes else "not connected"
                traffic.lost.setdefault(site, absent)
        return dict(sorted(found.items()))

    def _require(self, there: Mapping[str, object], did: str) -> None:
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
        if {len(keys.pair), len(keys.own)} != {len(self._steps)}:
            raise MessageError("not a key for each step", given=len(keys.pair))
        return keys

    def _distinct(self, keys: Mapping[str, SiteKeys]) -> dict[str, SiteKeys]:
        """Without sites that publish a key of another: one who claims two names has but one."""
        owner: dict[bytes, set[str]] = {}
        for site, own in keys.items():
            for key in (own.seal, *own.pair):
                owner.setdefault(key, set()).add(site)
        twice = {site for sites in owner.values() if len(sites) > 1 for site in sites}
        for site in twice:
            self.traffic.lost[site] = "rejected: another site published the same key"
        return {site: own for site, own in keys.items() if site not in twice}

    def _read_shares(self, site: str, content: RecordDict) -> dict[str, bytes]:
        session, name, sealed = decode_shares(content)
        self._check_name(session, name, site)
        if set(sealed) != set(self._holders(site)) - {site}:
            raise MessageError("sealed shares are not for its neighbours, one for each")
        return sealed

    def _read_step(self, order: RoundOrder, content: RecordDict) -> StepReply:
        reply = decode_step_reply(content)
        if reply.charge is not None and countable(reply.charge, order):
            self.traffic.charges.append((order.site, reply.charge))
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
