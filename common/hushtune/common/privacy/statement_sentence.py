"""The guarantee of a site in one sentence, and what a page calls the things that it counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hushtune.common.privacy.figures import at_most, rounds_text, upwards
from hushtune.common.privacy.plan import Relation, Trust, Unit
from hushtune.common.privacy.statement_site import SiteStatement


def unit_word(unit: str) -> str:
    """What one of the protected units is called.

    >>> [unit_word(unit) for unit in ("example", "group", "client")]
    ['record', 'group', 'client']
    """
    return {"group": "group", "client": "client"}.get(unit, "record")


def counted_word(unit: str) -> str:
    """What a site's public number counts: of a client that is protected whole, its records.

    >>> [counted_word(unit) for unit in ("example", "group", "client")]
    ['record', 'group', 'record']
    """
    return "group" if unit == "group" else "record"


def sentence(names: Sequence[str], site: SiteStatement, *, epsilon: float) -> str:
    """The guarantee of a site in one sentence, as a lawyer can quote it.

    `names`: the site's, or those of all sites to which the same applies, each for itself.
    """
    plan = site.plan
    where = f"site {names[0]}"
    if len(names) > 1:
        where = f"any one of the sites {', '.join(names)}"
    if not plan.is_private:
        return f"NO PRIVACY: what {where} released is not protected."
    if not site.noise_secure:
        return (
            f"NO PRIVACY: the noise of {where} can be reproduced from a seed, so what it "
            "released is not protected."
        )
    if epsilon == math.inf:
        return f"NO PRIVACY: no bound is known for what {where} released."
    if not site.events:
        return f"Nothing was released by {where}, so nothing about its records was disclosed."
    aside = ""
    if site.metrics.release == "public":
        aside = ", except its accuracy and loss on held-out rows, which no promise covers,"
    rounds = rounds_text(site.first_round, site.last_round)
    bound = f"({upwards(epsilon)}, {at_most(plan.delta)})-DP"
    if plan.trust is Trust.DISTRIBUTED:
        return (
            f"For neighbouring {_neighbours(site, where)}, everything that the sites sent in "
            f"{rounds}, and what the server made of it,{aside} is {bound} towards "
            f"{site.towards}, {_public(plan.unit)}.{site.provided}"
        )
    who = "this site" if len(names) > 1 else names[0]
    return (
        f"For neighbouring {_neighbours(site, where)}, everything that {who} released in {rounds} "
        f"to {site.towards}{aside} is {bound}, the number of its {counted_word(plan.unit)}s being "
        "public."
    )


def _neighbours(site: SiteStatement, where: str) -> str:
    plan = site.plan
    change = {
        Relation.ADD_OR_REMOVE_ONE: "adding or removing",
        Relation.REPLACE_ONE: "replacing",
    }[plan.relation]
    if plan.unit is Unit.CLIENT:
        whole = where.replace("any one of the sites", "any one of", 1)
        return f"federations that differ by {change} all data of one client, {whole}"
    plural = "" if site.max_records == 1 else "s"
    what = {
        Unit.EXAMPLE: "training record",
        Unit.GROUP: f"group with at most {site.max_records} record{plural}",
    }[plan.unit]
    return f"datasets that differ by {change} one {what} at {where}"


def _public(unit: Unit) -> str:
    if unit is Unit.CLIENT:
        return "the list of the clients and the numbers of their records being public"
    return f"the number of each site's {counted_word(unit)}s being public"
