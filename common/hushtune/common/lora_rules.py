"""Which LoRA factors a federation trains, and what stays at a site; a value for each rule.

With ``W = W0 + s B A`` at every site, the exact average of the sites' models has the product
``sum_k p_k s_k B_k A_k``. Averaging both factors apart does not give it; a rule says what is done.
What the server makes of the sites' factors is in ``hushtune.server.aggregation.lora_rules``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from hushtune.common.errors import FederationError
from hushtune.common.tensor_keys import a_key, b_key, head_key, r_key

if TYPE_CHECKING:
    from hushtune.common.adapter import AdapterSpec

_B, _AB = frozenset("B"), frozenset("AB")


@dataclass(frozen=True, kw_only=True)
class LoraRule:
    """A rule: its name, its paper (arXiv), and what a site trains.

    ``turns``: the factors ("A", "B", "R") that are trained in the first round after the warm-up, in
    the second one, and so on, over again. ``kept``: those of them that stay at the site. ``inner``:
    R stands between B and A. ``changes_base``: the server may change the frozen weights.
    ``gradient``: a site answers with one gradient, and the server takes the optimiser's step.
    ``any_ranks``: sites may have adapters of different ranks.
    """

    name: str
    paper: str
    turns: tuple[frozenset[str], ...]
    doc: str
    kept: frozenset[str] = frozenset()
    inner: bool = False
    changes_base: bool = False
    gradient: bool = False
    any_ranks: bool = False


FEDIT = LoraRule(
    name="fedit",
    paper="2305.05644",
    turns=(_AB,),
    doc="A and B are averaged apart; exact where all sites' A (or all B) are equal.",
)
FFA = LoraRule(
    name="ffa",
    paper="2403.12313",
    turns=(_B,),
    doc="A stays as drawn, so the average is exact, and noise is not multiplied by noise in B A.",
)
FEDSVD = LoraRule(
    name="fedsvd",
    paper="2505.12805",
    turns=(_B,),
    doc="as ffa, and after each round A becomes the leading directions of B A.",
)
ROLORA = LoraRule(
    name="rolora",
    paper="2409.02346",
    turns=(_B, frozenset("A")),
    doc="B in one round and A in the next; every round is exact.",
)
FEDEX = LoraRule(
    name="fedex",
    paper="2410.09432",
    turns=(_AB,),
    changes_base=True,
    doc="A and B are averaged apart, and what that loses is added to the frozen weights.",
)
FLORA = LoraRule(
    name="flora",
    paper="2409.05976",
    turns=(_AB,),
    changes_base=True,
    any_ranks=True,
    doc="the sites' factors are stacked and added to the frozen weights; adapters begin anew.",
)
FLEXLORA = LoraRule(
    name="flexlora",
    paper="2402.11505",
    turns=(_AB,),
    any_ranks=True,
    doc="the mean of the products is decomposed, and each site gets the best of its own rank.",
)
HETLORA = LoraRule(
    name="hetlora",
    paper="2401.06432",
    turns=(_AB,),
    any_ranks=True,
    doc="factors are padded with zeros, averaged apart, and cut to each site's rank.",
)
FEDSA = LoraRule(
    name="fedsa",
    paper="2410.01463",
    turns=(_AB,),
    kept=_B,
    doc="A is shared, each site's B is its own and never leaves it.",
)
FEDSB = LoraRule(
    name="fedsb",
    paper="2502.15436",
    turns=(frozenset("R"),),
    inner=True,
    doc="A and B stay as drawn; the small R between them is trained and averaged, exactly.",
)
FEDSGD = LoraRule(
    name="fedsgd",
    paper="1602.05629",
    turns=(_AB,),
    gradient=True,
    doc="sites send gradients at one shared point, step by step: the pooled step, exactly.",
)

RULES: Mapping[str, LoraRule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            *(FEDIT, FFA, FEDSVD, ROLORA, FEDEX, FLORA),
            *(FLEXLORA, HETLORA, FEDSA, FEDSB, FEDSGD),
        )
    }
)
"""The rules by the name that a configuration gives them."""

_KEYS = {"A": a_key, "B": b_key, "R": r_key}


def trainable_keys(
    rule: LoraRule,
    spec: AdapterSpec,
    *,
    turn: int | None,
    modules: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Keys of the tensors that a site trains, sorted: the head, and the factors of a turn.

    ``turn`` counts the rounds after the warm-up from 0; in the warm-up, None, the head alone is
    trained, on frozen features. ``modules``: those of the targets whose factors are trained, None
    for all. Raises FederationError where that leaves nothing.

    >>> from hushtune.common.adapter import AdapterSpec
    >>> spec = AdapterSpec("", rank=1, alpha=1.0, rslora=False, targets=("q",), head=("weight",))
    >>> trainable_keys(FFA, spec, turn=0)
    ('head.weight', 'q.lora_B')
    >>> trainable_keys(ROLORA, spec, turn=1)
    ('head.weight', 'q.lora_A')
    """
    head = [head_key(name) for name in spec.head]
    factors = frozenset[str]() if turn is None else rule.turns[turn % len(rule.turns)]
    chosen = [name for name in spec.targets if modules is None or name in modules]
    keys = head + [_KEYS[kind](module) for kind in sorted(factors) for module in chosen]
    if not keys:
        raise FederationError(
            "there is nothing to train",
            given="an adapter without a head, in the warm-up"
            if turn is None
            else "an empty adapter",
            remedy="set train.warmup_rounds = 0" if turn is None else None,
        )
    return tuple(sorted(keys))


def kept_keys(rule: LoraRule, spec: AdapterSpec) -> frozenset[str]:
    """Keys of what a site trains and never sends."""
    return frozenset(_KEYS[kind](module) for kind in rule.kept for module in spec.targets)


def sent_keys(rule: LoraRule, spec: AdapterSpec, trainable: tuple[str, ...]) -> tuple[str, ...]:
    """Of what a site trains, the keys of what it sends, sorted."""
    return tuple(sorted(set(trainable) - kept_keys(rule, spec)))


def all_trainable(rule: LoraRule, spec: AdapterSpec) -> frozenset[str]:
    """Whatever a rule trains in any round."""
    turns = (None, *range(len(rule.turns))) if spec.head else tuple(range(len(rule.turns)))
    return frozenset(key for turn in turns for key in trainable_keys(rule, spec, turn=turn))
