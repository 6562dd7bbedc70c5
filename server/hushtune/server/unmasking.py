"""Masks come off a sum: those of survivors' own, and those shared with sites that dropped out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hushtune.common.errors import SecureSumError
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import Ring, mask
from hushtune.common.secagg.wire import SiteKeys
from hushtune.common.secagg.wire_step import OpenReply


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What is known of the masks of a session: the keys of all sites, and who ``sharing`` names,
    between whom masks are shared."""

    session: str
    cohort: Cohort
    keys: Mapping[str, SiteKeys]
    sharing: tuple[str, ...]

    def holders(self, site: str) -> list[str]:
        """Those who hold shares of what masks a site, in the order of the shares."""
        around = self.cohort.neighbours(site, session=self.session)
        return sorted((site, *(name for name in around if name in self.keys)))

    def partners(self, site: str) -> tuple[str, ...]:
        """Those with whom a site shares masks."""
        around = self.cohort.neighbours(site, session=self.session)
        return tuple(name for name in around if name in self.sharing)


def unmasked(
    total: Ring,
    masks: Masks,
    *,
    step: int,
    place: int,
    survivors: tuple[str, ...],
    opened: Mapping[str, OpenReply],
) -> Ring:
    """The sum of the survivors' vectors, from their masked sum and the shares of its masks.

    ``place``: of the step in the session. Raises SecureSumError where shares are too few or false.
    """
    labels = (masks.session, step)
    for site in survivors:
        seed = _open(
            site,
            {n: reply.own[site] for n, reply in opened.items() if site in reply.own},
            masks,
            fits=lambda seed, site=site: (
                crypto.commitment(seed, *labels) == masks.keys[site].own[place]
            ),
        )
        total = total - mask(crypto.own_seed(seed, *labels), total.size)
    for site in sorted(set(masks.sharing) - set(survivors)):
        seed = _open(
            site,
            {n: reply.pair[site] for n, reply in opened.items() if site in reply.pair},
            masks,
            fits=lambda seed, site=site: (
                crypto.public_bytes(crypto.private_key(seed, "pair", *labels))
                == masks.keys[site].pair[place]
            ),
        )
        private = crypto.private_key(seed, "pair", *labels)
        for other in masks.partners(site):
            if other not in survivors:
                continue
            theirs = masks.keys[other].pair[place]
            hidden = mask(crypto.pair_seed(private, theirs, other, site, *labels), total.size)
            # As the survivor has it: added where its name comes first.
            total = total - hidden if other < site else total + hidden
    return total


def _open(
    site: str, shares: Mapping[str, bytes], masks: Masks, *, fits: Callable[[bytes], bool]
) -> bytes:
    """The seed that a site has shared; SecureSumError where shares are too few or wrong."""
    threshold, holders = masks.cohort.share_threshold, masks.holders(site)
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
