"""Server optimisers on the pseudo-gradient ``-mean delta`` (Reddi et al., 2003.00295).

Each is a pair of pure functions. An update may be partial (the head alone in the warm-up, then
more): tensors that it lacks stay as they are, and a moment begins when its tensor first appears.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AggState:
    """The server's memory between rounds: rounds joined so far, and moments by name.

    ``averaged``: iterates in the average (:mod:`.averaging`), which is one of the moments.
    """

    step: int
    moments: Mapping[str, AdapterState]
    averaged: int = 0


@dataclass(frozen=True)
class ServerOptimizer:
    """``init(state) -> memory``; ``apply(memory, state, mean delta) -> (memory, new state)``."""

    init: Callable[[AdapterState], AggState]
    apply: Callable[[AggState, AdapterState, AdapterState], tuple[AggState, AdapterState]]


def sgd(learning_rate: float) -> ServerOptimizer:
    """``x <- x + learning_rate * delta``; with 1 this is plain averaging (FedAvg)."""
    _require("learning_rate", learning_rate, learning_rate > 0)

    def init(state: AdapterState) -> AggState:
        del state
        return AggState(step=0, moments={})

    def apply(
        memory: AggState, state: AdapterState, delta: AdapterState
    ) -> tuple[AggState, AdapterState]:
        moved = state.select(delta.keys) + learning_rate * delta
        return AggState(memory.step + 1, memory.moments), state.merge(moved)

    return ServerOptimizer(init, apply)


def momentum(learning_rate: float, *, beta: float = 0.9) -> ServerOptimizer:
    """FedAvgM (Hsu et al. 1909.06335): ``v <- beta v + delta``, ``x <- x + learning_rate v``."""
    _require("learning_rate", learning_rate, learning_rate > 0)
    _require("momentum", beta, 0 <= beta < 1)

    def init(state: AdapterState) -> AggState:
        return AggState(step=0, moments={"first": state.select(())})

    def apply(
        memory: AggState, state: AdapterState, delta: AdapterState
    ) -> tuple[AggState, AdapterState]:
        old = memory.moments["first"]
        velocity = beta * _begun(old, delta, start=0.0) + delta
        moved = state.select(delta.keys) + learning_rate * velocity
        return AggState(memory.step + 1, {"first": old.merge(velocity)}), state.merge(moved)

    return ServerOptimizer(init, apply)


def adam(
    learning_rate: float, *, betas: tuple[float, float] = (0.9, 0.99), epsilon: float = 1e-3
) -> ServerOptimizer:
    """FedAdam: ``v <- b2 v + (1 - b2) delta^2``."""
    first, second = betas

    def square(old: Tensor, delta: Tensor) -> Tensor:
        return second * old + (1 - second) * delta.square()

    _require("betas", betas, 0 <= first < 1 and 0 <= second < 1)
    return _adaptive(learning_rate, square, beta=first, epsilon=epsilon)


def yogi(
    learning_rate: float, *, betas: tuple[float, float] = (0.9, 0.99), epsilon: float = 1e-3
) -> ServerOptimizer:
    """FedYogi: ``v <- v - (1 - b2) delta^2 sign(v - delta^2)``."""
    first, second = betas

    def square(old: Tensor, delta: Tensor) -> Tensor:
        new = delta.square()
        return old - (1 - second) * new * (old - new).sign()

    _require("betas", betas, 0 <= first < 1 and 0 <= second < 1)
    return _adaptive(learning_rate, square, beta=first, epsilon=epsilon)


def adagrad(learning_rate: float, *, beta: float = 0.9, epsilon: float = 1e-3) -> ServerOptimizer:
    """FedAdagrad: ``v <- v + delta^2``."""

    def square(old: Tensor, delta: Tensor) -> Tensor:
        return old + delta.square()

    _require("beta", beta, 0 <= beta < 1)
    return _adaptive(learning_rate, square, beta=beta, epsilon=epsilon)


def _adaptive(
    learning_rate: float,
    square: Callable[[Tensor, Tensor], Tensor],
    *,
    beta: float,
    epsilon: float,
) -> ServerOptimizer:
    """Algorithm 2 of 2003.00295; ``epsilon`` is its degree of adaptivity tau.

    ``m <- beta m + (1 - beta) delta``, ``v <- square(v, delta)``,
    ``x <- x + learning_rate * m / (sqrt(v) + epsilon)``, from ``m = 0`` and ``v = epsilon^2``,
    without bias correction, as in the paper.
    """
    _require("learning_rate", learning_rate, learning_rate > 0)
    _require("epsilon", epsilon, epsilon > 0)

    def init(state: AdapterState) -> AggState:
        nothing = state.select(())
        return AggState(step=0, moments={"first": nothing, "second": nothing})

    def apply(
        memory: AggState, state: AdapterState, delta: AdapterState
    ) -> tuple[AggState, AdapterState]:
        first, second = memory.moments["first"], memory.moments["second"]
        mean = beta * _begun(first, delta, start=0.0) + (1 - beta) * delta
        squares = _begun(second, delta, start=epsilon**2).zip_with(delta, square)
        step = learning_rate * mean.zip_with(squares, lambda m, v: m / (v.sqrt() + epsilon))
        moments = {"first": first.merge(mean), "second": second.merge(squares)}
        moved = state.select(delta.keys) + step
        return AggState(memory.step + 1, moments), state.merge(moved)

    return ServerOptimizer(init, apply)


def gradient_step(
    optimizer: str, learning_rate: float, *, weight_decay: float = 0.0
) -> ServerOptimizer:
    """The step that torch's SGD or AdamW (1711.05101) takes along a gradient, ``-delta``.

    For steps of the whole federation, whose gradients nobody descends at the sites. Begins anew
    where other tensors are trained than before, as local optimisers do.
    """
    _require("learning_rate", learning_rate, learning_rate > 0)
    first, second, epsilon = 0.9, 0.999, 1e-8

    def init(state: AdapterState) -> AggState:
        nothing = state.select(())
        return AggState(step=0, moments={"first": nothing, "second": nothing})

    def apply(
        memory: AggState, state: AdapterState, delta: AdapterState
    ) -> tuple[AggState, AdapterState]:
        decayed = state.select(delta.keys) * (1.0 - learning_rate * weight_decay)
        if optimizer == "sgd":
            return AggState(memory.step + 1, memory.moments), state.merge(
                decayed + learning_rate * delta
            )
        goes_on = "first" in memory.moments and memory.moments["first"].keys == delta.keys
        old = memory if goes_on else init(state)
        step = old.step + 1
        mean = first * _begun(old.moments["first"], delta, start=0.0) + (1 - first) * delta
        square = second * _begun(old.moments["second"], delta, start=0.0) + (
            1 - second
        ) * delta.map(torch.square)

        def direction(mean: Tensor, square: Tensor) -> Tensor:
            size = (square / (1 - second**step)).sqrt() + epsilon
            return mean / (1 - first**step) / size

        moved = decayed + learning_rate * mean.zip_with(square, direction)
        return AggState(step, {"first": mean, "second": square}), state.merge(moved)

    return ServerOptimizer(init, apply)


def _begun(moment: AdapterState, delta: AdapterState, *, start: float) -> AdapterState:
    """The moment over the tensors of ``delta``, those that are new to it filled with ``start``."""
    fresh = delta.map(lambda tensor: torch.full_like(tensor, start))
    return fresh.merge(moment.select(key for key in delta.keys if key in moment.tensors))


def _require(name: str, given: object, holds: bool) -> None:
    numbers = given if isinstance(given, tuple) else (given,)
    if not holds or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ConfigError(
            f"{name} of the server's optimiser is out of range",
            given=given,
            remedy="`hushtune config new` prints the range of each setting of [aggregation]",
        )
