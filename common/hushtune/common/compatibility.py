"""Which rule of aggregation goes with which protection; what does not is refused with its reason.

Noise at a site covers whatever is made of that site's update, so with ``site`` every rule is
post-processing. Noise on a sum, at a trusted server or in shares, covers what is a function of that
sum, and a secure sum gives the server nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ONE_SUM = ("ffa", "fedsvd", "rolora", "fedsb", "fedsgd", "fedsa", "fedit")
"""Rules whose next model is a function of the sum of the updates alone."""

_OF_EACH = {
    "fedex": "its residual is a function of each site's A and B, which the sum does not give",
    "flora": "it stacks each site's A and B in place of adding them up",
    "flexlora": "it decomposes the sum of the products B A, which is not a sum of what is sent",
    "hetlora": "it cuts each site's factors to a rank of its own",
}
_ROBUST = {
    "krum": "it picks single updates",
    "median": "it looks at each update's place among the others",
    "trimmed_mean": "it looks at each update's place among the others",
    "bulyan": "it picks single updates",
}
_WHY = {
    "server": "the noise at the server is on the sum of the updates, and this rule needs more: "
    "{reason}",
    "distributed": "secure aggregation gives the server the sum of the updates alone, and this "
    "rule needs more: {reason}",
}

REFUSED: Mapping[tuple[str, str], str | None] = MappingProxyType(
    {
        (rule, trust): None
        if rule in _ONE_SUM or trust == "site"
        else _WHY[trust].format(reason={**_OF_EACH, **_ROBUST}[rule])
        for rule in (*_ONE_SUM, *_OF_EACH, *_ROBUST)
        for trust in ("site", "server", "distributed")
    }
)
"""Why a rule and a trust model do not go together; None where they do."""


def why_not(rule: str, trust: str) -> str | None:
    """The reason for which a rule is refused under a trust model; None where it is not.

    What is not in the table is refused: nobody has said that it is covered.

    >>> why_not("ffa", "distributed") is None
    True
    >>> why_not("a new rule", "server")
    'nothing is known of this rule under this trust model'
    """
    if trust == "off":
        return None
    return REFUSED.get((rule, trust), "nothing is known of this rule under this trust model")
