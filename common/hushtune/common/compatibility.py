"""What goes with what: rules, estimates, server optimisers, averaging of iterates, protections.

Each table has a cell for each pair, with the reason why a pair is refused or None. What is in no
table is refused: nobody has said that it is sound.

- Noise at a site covers whatever is made of that site's update, so with ``site`` everything is
  post-processing. Noise on a sum, at a trusted server or in shares, covers what is a function of
  that sum, and a secure sum gives the server nothing else.
- A coordinate can be compared over sites, or remembered over rounds, where it means the same: where
  one of the factors A and B is trained at a time and the other is shared. ``(A, B)`` and
  ``(M A, B M^-1)`` are the same model.
- Whole updates can be compared wherever there is an inner product that means something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ONE_FACTOR = ("ffa", "rolora", "fedsb", "fedsgd")
"""Rules that train one factor at a time, in one basis through the run: sums of coordinates mean
something, over sites and over rounds."""
MOVING_BASIS = ("fedsvd",)
"""The basis of B is another one in every round, and the same at all sites within one."""
OWN_FACTOR = ("fedsa",)
"""Each site has a B of its own, so that a coordinate of A means something else at each of them."""
BOTH_FACTORS = ("fedit", "hetlora")
"""A and B are trained at once."""
MEAN_PRODUCT = ("fedex", "flora", "flexlora")
"""The next model is the mean of the sites' products B A, and nothing else."""
RULES = (*ONE_FACTOR, *MOVING_BASIS, *OWN_FACTOR, *BOTH_FACTORS, *MEAN_PRODUCT)

WHOLE_UPDATES = ("mean", "krum", "multi_krum", "geometric_median")
"""Estimates that give each site's update a share."""
COORDINATES = ("median", "trimmed_mean", "bulyan")
ESTIMATES = (*WHOLE_UPDATES, *COORDINATES, "norm_clipping")

REMEMBERING = ("momentum", "adam", "yogi", "adagrad")
OPTIMIZERS = ("sgd", *REMEMBERING)

TRUSTS = ("site", "server", "distributed", "off")
_OF_SUMS = ("server", "distributed")

_NEEDS_MORE = {
    "fedex": "its residual is a function of each site's A and B, which the sum does not give",
    "flora": "it stacks each site's A and B in place of adding them up",
    "flexlora": "it decomposes the sum of the products B A, which is not a sum of what is sent",
    "hetlora": "it cuts each site's factors to a rank of its own",
    "krum": "it picks single updates",
    "multi_krum": "it picks single updates",
    "bulyan": "it picks single updates",
    "median": "it looks at each update's place among the others",
    "trimmed_mean": "it looks at each update's place among the others",
    "geometric_median": "it weighs each update by its distance to the others",
    "norm_clipping": "it clips each update by the others' norms",
}
_ONLY_A_SUM = {
    "server": "the noise at the server is on the sum of the updates, and this {what} needs more: "
    "{reason}",
    "distributed": "secure aggregation gives the server the sum of the updates alone, and this "
    "{what} needs more: {reason}",
}


def _of_sum(name: str, trust: str, what: str) -> str | None:
    if trust not in _OF_SUMS or name not in _NEEDS_MORE:
        return None
    return _ONLY_A_SUM[trust].format(what=what, reason=_NEEDS_MORE[name])


def _of_coordinates(rule: str, estimate: str) -> str | None:
    if rule in BOTH_FACTORS and estimate in COORDINATES:
        return (
            "it takes coordinates of A and B one by one, which mean nothing by themselves where "
            "both are trained: (A, B) and (M A, B M^-1) are the same model"
        )
    if rule in OWN_FACTOR and estimate not in ("mean", "norm_clipping"):
        return (
            "it compares the sites' A, and each of them goes with a B of its site's own: one model "
            "may have quite another A beside another B"
        )
    if rule in MEAN_PRODUCT and estimate not in WHOLE_UPDATES:
        return (
            "this rule takes the mean of the sites' products B A, to which an estimate can only "
            "give each site's share"
        )
    return None


def _of_memory(rule: str, optimizer: str) -> str | None:
    if optimizer == "sgd":
        return None
    if rule in MOVING_BASIS:
        return (
            "it remembers coordinates of B over rounds, and this rule writes B in another basis in "
            "every round"
        )
    if rule in MEAN_PRODUCT:
        return (
            "this rule's next model is the mean of the sites' products, written as new factors: "
            "there is no step along a change of A and B"
        )
    return None


def _of_average(rule: str) -> str | None:
    if rule in OWN_FACTOR:
        return (
            "each site's own B goes with the A that it was trained beside, and not with an average "
            "of earlier ones"
        )
    if rule in MOVING_BASIS:
        return (
            "an average of iterates adds up coordinates of B, and this rule writes B in another "
            "basis in every round"
        )
    if rule in MEAN_PRODUCT:
        return (
            "an average of iterates adds up A and B of several rounds, and this rule writes its "
            "model as new factors in every round"
        )
    return None


def _of_rate(rule: str) -> str | None:
    if rule in MEAN_PRODUCT:
        return "this rule's next model is the mean of the sites' products itself, not a step to it"
    return None


Table = Mapping[tuple[str, str], str | None]

REFUSED: Table = MappingProxyType(
    {(rule, trust): _of_sum(rule, trust, "rule") for rule in RULES for trust in TRUSTS}
)
"""Why a rule and a trust model do not go together; None where they do."""
ESTIMATE_UNDER_TRUST: Table = MappingProxyType(
    {(name, trust): _of_sum(name, trust, "estimate") for name in ESTIMATES for trust in TRUSTS}
)
RULE_WITH_ESTIMATE: Table = MappingProxyType(
    {(rule, name): _of_coordinates(rule, name) for rule in RULES for name in ESTIMATES}
)
RULE_WITH_OPTIMIZER: Table = MappingProxyType(
    {(rule, name): _of_memory(rule, name) for rule in RULES for name in OPTIMIZERS}
)
RULE_WITH_AVERAGE: Mapping[str, str | None] = MappingProxyType(
    {rule: _of_average(rule) for rule in RULES}
)
"""Why a rule and an average of its iterates do not go together; None where they do."""
RULE_WITH_RATE: Mapping[str, str | None] = MappingProxyType(
    {rule: _of_rate(rule) for rule in RULES}
)
"""Why a rule takes no learning rate at the server but 1; None where it takes any."""


def why_not(rule: str, trust: str) -> str | None:
    """The reason for which a rule is refused under a trust model; None where it is not.

    >>> why_not("ffa", "distributed") is None
    True
    >>> why_not("a new rule", "server")
    'nothing is known of these together'
    """
    if trust == "off":
        return None
    return _look(REFUSED, rule, trust)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Which setting of [aggregation] is at fault, beside which one, why, and what would do.

    ``remedy`` is what to set or leave out.
    """

    key: str
    given: str
    expected: str
    beside: str
    reason: str

    @property
    def remedy(self) -> str:
        """What to do: leave the setting out, or change the one beside it."""
        if self.beside.startswith("privacy.trust"):
            other = 'privacy.trust = "site"'
        else:
            other = "another aggregation.rule, such as ffa"
        if self.key == "rule":
            return f'set aggregation.rule = "ffa", or {other}'
        return f"leave aggregation.{self.key} out, or set {other}"


def refusal(
    *,
    rule: str,
    trust: str,
    estimate: str = "mean",
    optimizer: str = "sgd",
    learning_rate: float = 1.0,
    average: float = 0.0,
) -> Refusal | None:
    """The first reason for which an aggregation is refused; None where it is sound.

    >>> refusal(rule="fedit", trust="site", estimate="median").key
    'estimate'
    >>> refusal(rule="ffa", trust="site", estimate="median") is None
    True
    """
    this_rule, this_trust = f"aggregation.rule = {rule!r}", f"privacy.trust = {trust!r}"
    estimates = [n for n in ESTIMATES if not (_by_trust(n, trust) or _by_rule(rule, n))]
    one_of = estimates[0] if len(estimates) == 1 else f"one of {', '.join(estimates)}"
    checks = (
        ("rule", rule, "a rule of sums, such as ffa or fedit", this_trust, why_not(rule, trust)),
        ("estimate", estimate, one_of, this_trust, _by_trust(estimate, trust)),
        ("estimate", estimate, one_of, this_rule, _by_rule(rule, estimate)),
        ("optimizer", optimizer, "sgd", this_rule, _look(RULE_WITH_OPTIMIZER, rule, optimizer)),
        (
            "learning_rate",
            f"{learning_rate:g}",
            "1",
            this_rule,
            None if learning_rate == 1 else _look(RULE_WITH_RATE, rule),
        ),
        (
            "average",
            f"{average:g}",
            "0",
            this_rule,
            None if average == 0 else _look(RULE_WITH_AVERAGE, rule),
        ),
    )
    for key, given, expected, beside, reason in checks:
        if reason is not None:
            return Refusal(key=key, given=given, expected=expected, beside=beside, reason=reason)
    return None


def legal_combinations(trust: str = "site") -> tuple[tuple[str, str, str], ...]:
    """All (rule, estimate, optimizer) that go together under a trust model, in the tables' order.

    >>> ("fedex", "krum", "sgd") in legal_combinations()
    True
    >>> len(legal_combinations("server"))
    31
    """
    return tuple(
        (rule, estimate, optimizer)
        for rule in RULES
        for estimate in ESTIMATES
        for optimizer in OPTIMIZERS
        if refusal(rule=rule, trust=trust, estimate=estimate, optimizer=optimizer) is None
    )


_UNKNOWN = "nothing is known of these together"


def _look(table: Mapping[Any, str | None], *cell: str) -> str | None:
    (key,) = cell if len(cell) == 1 else (cell,)
    return table.get(key, _UNKNOWN)


def _by_trust(estimate: str, trust: str) -> str | None:
    return _look(ESTIMATE_UNDER_TRUST, estimate, trust)


def _by_rule(rule: str, estimate: str) -> str | None:
    return _look(RULE_WITH_ESTIMATE, rule, estimate)
