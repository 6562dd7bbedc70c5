"""What the server makes of the sites' factors, rule by rule; all of it on factors.

``A_k (r_k, d_in)`` and ``B_k (d_out, r_k)`` are a site's factors after its training, ``s_k`` its
scale, ``p_k`` its share. A rule either averages the changes of factors (with any estimate and
server optimiser) or aims at the mean of the products, ``dW* = sum_k p_k s_k B_k A_k``, which takes
the sites' shares and nothing else. Papers are named in ``hushtune.common.lora_rules``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from hushtune.common.adapter import (
    HEAD_PREFIX,
    AdapterState,
    a_key,
    b_key,
    base_keys,
)
from hushtune.common.errors import FederationError, MessageError
from hushtune.common.lora import orthonormal
from hushtune.common.low_rank import (
    Product,
    gathered,
    inners,
    leading,
    product,
    rounded,
    svd,
)
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.estimates import Gram, euclidean_gram
from hushtune.server.aggregation.trained import (
    Trained,
    modules_of,
    scaled_product,
    weight_shape,
)

Updates = Sequence[ClientUpdate]
Factors = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class ServerRule:
    """A rule's part at the server, as pure functions.

    ``give(state, rank)``: what a site of that rank starts from. ``lift(state, update)``: the change
    of the global factors that an update amounts to. ``finish(state)``: what follows the server's
    step. ``from_products(state, products, round, seed)``: where the rule aims at the mean of the
    products: the new factors of each module, from each site's share and product.
    ``by_products``: whether updates are compared by their products. ``new_coordinates``: after each
    round a number of the factors means something else.
    """

    give: Callable[[AdapterState, int], AdapterState]
    lift: Callable[[AdapterState, ClientUpdate], ClientUpdate]
    finish: Callable[[AdapterState], AdapterState]
    from_products: Callable[[AdapterState, Trained, int, int], Factors] | None = None
    by_products: bool = False
    new_coordinates: bool = False


def trained(rule: ServerRule, state: AdapterState, update: ClientUpdate) -> AdapterState:
    """A site's adapter after its training: what it was given, and the change that it sent."""
    start = rule.give(state, update.delta.spec.rank)
    return start.merge(start.select(update.delta.keys) + update.delta)


def all_trained(
    rule: ServerRule, state: AdapterState, updates: Updates, shares: Sequence[float]
) -> Trained:
    """``trained`` of each update, with the sites' shares; both sorted by site."""
    given = {rank: rule.give(state, rank) for rank in {u.delta.spec.rank for u in updates}}
    starts = tuple(given[update.delta.spec.rank] for update in updates)
    for start, update in zip(starts, updates, strict=True):
        if update.delta.spec != start.spec:
            raise MessageError(
                "an update does not fit the adapter that its site was given", given=update.site
            )
    return Trained(starts, tuple(update.delta for update in updates), tuple(shares))


def trains_factors(update: ClientUpdate) -> bool:
    """Whether an update changes more than the head."""
    return any(not key.startswith(HEAD_PREFIX) for key in update.delta.keys)


# ------------------------------------------------------------------- what a site is given ----


def whole(state: AdapterState, rank: int) -> AdapterState:
    """The global adapter as it is, for rules under which all sites have its rank."""
    if rank != state.spec.rank:
        raise FederationError(
            "under this rule all sites have adapters of one rank",
            given=rank,
            expected=str(state.spec.rank),
        )
    return state


def cut(state: AdapterState, rank: int) -> AdapterState:
    """The first rows of A and columns of B, at a site's rank.

    The site's scale is undone in B, so that ``s_k B_k A_k`` is that part of ``s B A``.
    """
    if rank == state.spec.rank:
        return state
    spec = replace(state.spec, rank=rank)
    tensors = dict(state.tensors)
    for module in spec.targets:
        a, b = state.factors(module)
        tensors[a_key(module)] = a[:rank].contiguous()
        tensors[b_key(module)] = b[:, :rank] * (state.spec.scale / spec.scale)
    return AdapterState(spec, tensors)


# ------------------------------------------------------------- what an update amounts to ----


def as_sent(state: AdapterState, update: ClientUpdate) -> ClientUpdate:
    """The change itself."""
    del state
    return update


def of_head(state: AdapterState, update: ClientUpdate) -> ClientUpdate:
    """The change of the head, whatever the site's rank."""
    head = {key: t for key, t in update.delta.tensors.items() if key.startswith(HEAD_PREFIX)}
    return replace(update, delta=AdapterState(state.spec, head))


def padded(state: AdapterState, update: ClientUpdate) -> ClientUpdate:
    """HetLoRA: the site's factors, filled up with zeros to the global rank, less the global ones.

    B at the global scale, so that the padded product is the site's.
    """
    if not trains_factors(update):
        return of_head(state, update)
    if update.delta.spec == state.spec:
        return update
    site = trained(HETLORA, state, update)
    lacking = state.spec.rank - site.spec.rank
    ratio = site.spec.scale / state.spec.scale
    tensors = dict(of_head(state, update).delta.tensors)
    for module in modules_of(update.delta):
        (a, b), (global_a, global_b) = site.factors(module), state.factors(module)
        tensors[a_key(module)] = pad(a, (0, 0, 0, lacking)) - global_a
        tensors[b_key(module)] = pad(b * ratio, (0, lacking)) - global_b
    return replace(update, delta=AdapterState(state.spec, tensors))


# ------------------------------------------------------------------- after the server's step ----


def as_it_is(state: AdapterState) -> AdapterState:
    """Nothing more to do."""
    return state


def realigned(state: AdapterState) -> AdapterState:
    """FedSVD: ``U S V^T = svd(B A)``, then ``A <- V^T`` and ``B <- U S``.

    The product stays, and A has orthonormal rows. Where B is zero there is nothing to go by.
    """
    tensors = dict[str, Tensor]()
    for module in state.spec.targets:
        a, b = state.factors(module)
        if bool(b.any()):
            u, values, v = svd(product(b, a), state.spec.rank)
            tensors[a_key(module)] = v.float().contiguous()
            tensors[b_key(module)] = (u * values).float().contiguous()
    return state.merge(AdapterState(state.spec, tensors))


# ------------------------------------------------------------------ from the mean product ----


def residual(state: AdapterState, sites: Trained, round: int, seed: int) -> Factors:
    """FedEx: A and B averaged apart, ``W0 <- W0 + s (sum_k p_k B_k A_k - B A)``.

    The last term is ``s sum_k p_k (B_k - B_K) (A_k - A)`` over all sites but the last one, K, since
    ``sum_k p_k (A_k - A)`` is zero: of rank (K - 1) r at most.
    """
    del round, seed
    found = dict[str, Tensor]()
    for module in sites.modules():
        pairs = sites.factors(module)
        mean_a = sum_of([(p, a) for p, (a, _) in zip(sites.shares, pairs, strict=True)])
        mean_b = sum_of([(p, b) for p, (_, b) in zip(sites.shares, pairs, strict=True)])
        found[a_key(module)], found[b_key(module)] = mean_a.float(), mean_b.float()
        last = pairs[-1][1].double()
        all_but_last = list(zip(sites.shares[:-1], pairs[:-1], strict=True))
        lost = (  # in place, since each tensor written takes as long as the arithmetic on it
            Product(b.double().sub_(last).mul_(p * state.spec.scale), a.double().sub_(mean_a))
            for p, (a, b) in all_but_last
        )
        found |= _changed_base(state, module, lost, rank=len(all_but_last) * state.spec.rank)
    return found


def stacked(state: AdapterState, sites: Trained, round: int, seed: int) -> Factors:
    """FLoRA: ``W0 <- W0 + dW*`` by stacking the factors; A begins anew at random, B at zero."""
    found = dict[str, Tensor]()
    for module in sites.modules():
        a, b = state.factors(module)
        found |= _changed_base(state, module, sites.products(module), rank=sites.rank())
        found[a_key(module)] = orthonormal(tuple(a.shape), seed, a_key(module), round)
        found[b_key(module)] = torch.zeros_like(b)
    return found


def decomposed(state: AdapterState, sites: Trained, round: int, seed: int) -> Factors:
    """FlexLoRA: the best A and B of the global rank for ``dW*``, by its singular values."""
    del round, seed
    found = dict[str, Tensor]()
    for module in sites.modules():
        u, values, v = leading(sites.mean_product(module), state.spec.rank)
        if not values.any():
            continue
        a, _ = state.factors(module)
        a, lacking = a.clone(), state.spec.rank - len(values)
        a[: len(values)] = v.float()  # rows beyond the product's own rank stay as they were
        found[a_key(module)] = a
        found[b_key(module)] = pad((u * values / state.spec.scale).float(), (0, lacking))
    return found


def _changed_base(
    state: AdapterState, module: str, terms: Iterable[Product], *, rank: int
) -> Factors:
    before = state.base_change(module)
    kept = [] if before is None else [product(before[1], before[0])]
    rank += sum(term.rank for term in kept)
    if not rank:
        return {}
    a, b = base_keys(module)
    left, right = rounded(
        itertools.chain(kept, terms), rank=rank, shape=weight_shape(state, module)
    )
    return {a: right, b: left}


def sum_of(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    """``sum_k p_k x_k`` in float64, in the order given."""
    result = torch.zeros_like(terms[0][1], dtype=torch.float64)
    for share, tensor in terms:
        result.add_(tensor.double(), alpha=share)
    return result


# ------------------------------------------------------------------------- all the rules ----

_AVERAGE = ServerRule(give=whole, lift=as_sent, finish=as_it_is)
_PRODUCTS = ServerRule(give=cut, lift=of_head, finish=as_it_is, by_products=True)
HETLORA = ServerRule(give=cut, lift=padded, finish=as_it_is, by_products=True)

SERVER_RULES: Mapping[str, ServerRule] = MappingProxyType(
    {
        "fedit": replace(_AVERAGE, by_products=True),
        "ffa": _AVERAGE,
        "fedsvd": replace(_AVERAGE, finish=realigned, new_coordinates=True),
        "rolora": _AVERAGE,
        "fedex": replace(_PRODUCTS, give=whole, from_products=residual),
        "flora": replace(_PRODUCTS, from_products=stacked),
        "flexlora": replace(_PRODUCTS, from_products=decomposed),
        "hetlora": HETLORA,
        "fedsa": _AVERAGE,
        "fedsb": _AVERAGE,
        "fedsgd": _AVERAGE,
    }
)
"""The rules by name, as ``lora_rules.RULES`` has them."""


def gram_of_products(rule: ServerRule, state: AdapterState, updates: Updates) -> Gram:
    """Inner products of the sites' changes of the model, (n, n): of ``s_k B_k A_k - s B A`` module
    by module, and of the head's tensors. ``updates`` sorted by site.

    Not of A and B: (A, B) and (M A, B M^-1) are one model, at any distance from each other. Made of
    products of matrices, whose last bits may differ with the number of threads, as those of every
    rule that decomposes a matrix do; never with the order of arrival.
    """
    n = len(updates)
    gram = euclidean_gram([of_head(state, update) for update in updates])
    sites = all_trained(rule, state, updates, [1.0] * n)
    ranks = [start.spec.rank for start in sites.starts] + [state.spec.rank]
    for module in state.spec.targets:
        terms = itertools.chain(sites.products(module), [scaled_product(state, module)])
        whole = gathered(terms, rank=sum(ranks), shape=weight_shape(state, module))
        found = inners(whole, ranks).numpy()
        with_before = found[:n, n]  # <X_k - X, X_l - X> = <X_k, X_l> - <X_k, X> - <X, X_l> + <X, X>
        gram += found[:n, :n] - (with_before[:, None] + with_before[None, :]) + found[n, n]
    return gram
