"""Games at the level of examples: which canaries were in, guessed from what is released."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from hushtune.client import dp
from hushtune.client.site import Site
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.common.planning import site_plans
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Rows
from hushtune.common.tasks.workspace import Workspace
from hushtune.simulations.audit.bounds import Scores
from hushtune.simulations.audit.canaries import (
    WEIGHT,
    CanaryTask,
    Placed,
    num_coordinates,
    place,
)
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.federation import after, claimed, federated, watched
from hushtune.simulations.audit.wrap import Plant, noised_gradients_heard, planted, sites_with

STEPS, SERVER, MODEL = "each step", "each round", "the final model"
"""What is seen: every noised gradient, which is what the accountant counts as released; what a site
sends; the end."""


@dataclass(frozen=True)
class Seen:
    """Scores of canaries, higher where one looks as if it had been in, and whether it was.

    ``independent``: each score has sampling and noise of its own, if these are what they should be.
    """

    canary: str
    observer: str
    scores: Scores  # (n,)
    included: np.ndarray  # (n,), bool
    independent: bool

    @classmethod
    def joined(cls, games: list[Seen]) -> Seen:
        """The same of several games, each with units of its own."""
        scores = np.concatenate([game.scores for game in games])
        included = np.concatenate([game.included for game in games])
        return replace(games[0], scores=scores, included=included)


def together(
    games: Sequence[list[Seen]], claims: Sequence[Claim], *, delta: float
) -> tuple[list[Seen], Claim]:
    """What was seen in several games, each with units of its own, and what is claimed of them."""
    joined = [Seen.joined(list(same)) for same in zip(*games, strict=True)]
    events = dict.fromkeys(events for claim in claims for events in claim.sites)
    return joined, Claim(tuple(events), delta)


def split_up(count: int, sites: int, *, most: int) -> list[list[int]]:
    """How many canaries each site has in each game, as evenly as can be; at most ``most``.

    >>> split_up(7, 2, most=2)
    [[2, 2], [2, 1]]
    """
    games = math.ceil(count / (sites * most))
    shares = [len(part) for part in np.array_split(np.arange(count), games * sites)]
    return [shares[start : start + sites] for start in range(0, len(shares), sites)]


def gradient_games(
    config: RunConfig,
    workspace: Workspace,
    *,
    canaries: int,
    seed: int,
    fault: Plant | None,
) -> tuple[list[Seen], Claim]:
    """``canaries`` gradient canaries over all sites, in as many runs as they need.

    Of canaries in several runs each is in the data of one alone, so that what is promised of one
    run holds for all together.
    """
    room = num_coordinates(workspace.task.model)
    sites = sorted(config.data.public_sizes)
    found: list[list[Seen]] = []
    claims: list[Claim] = []
    for number, counts in enumerate(split_up(canaries, len(sites), most=room)):
        placed = {
            site: place(
                count,
                coordinates=room,
                first_row=len(workspace.data.labels),
                random=rng(seed, "gradient canaries", number, site),
            )
            for site, count in zip(sites, counts, strict=True)
        }
        seen, claim = _gradient_game(config, workspace, placed, fault=fault)
        found.append(seen)
        claims.append(claim)
    return together(found, claims, delta=config.privacy.delta)


def _gradient_game(
    config: RunConfig,
    workspace: Workspace,
    placed: Mapping[str, Placed],
    *,
    fault: Plant | None,
) -> tuple[list[Seen], Claim]:
    plans = site_plans(config)
    steps: dict[str, Scores] = {site: np.zeros(len(at.included)) for site, at in placed.items()}
    rounds: dict[str, Scores] = {site: np.zeros(len(at.included)) for site, at in placed.items()}
    at_work = [""]

    def with_canaries(site: Site) -> Site:
        at_work[0] = site.name
        ours = placed[site.name]
        task = CanaryTask(site.task, ours, clip_norm=plans[site.name].clip_norm)
        return replace(site, units=ours.units, task=task)

    def hear_step(gradients: dp.Gradients, plan: PrivacyPlan) -> None:
        site = at_work[0]
        steps[site] += evidence(_values(gradients[WEIGHT], placed[site]), plan)

    def hear_round(order: RoundOrder, update: ClientUpdate) -> None:
        # A canary that is in pulls its coordinate down, as training descends.
        rounds[order.site] -= _values(update.delta.tensors[WEIGHT], placed[order.site])

    with ExitStack() as stack:
        stack.enter_context(planted(fault))
        stack.enter_context(sites_with(with_canaries))
        stack.enter_context(noised_gradients_heard(hear_step))
        trained = federated(config, workspace, app=watched(hear_round))
    moved = trained.result.state.tensors[WEIGHT] - workspace.initial_state.tensors[WEIGHT]
    included = np.concatenate([at.included for at in placed.values()])
    scores = {
        STEPS: np.concatenate([steps[site] for site in placed]),
        SERVER: np.concatenate([rounds[site] for site in placed]),
        MODEL: np.concatenate([-_values(moved, at) for at in placed.values()]),
    }
    # In the model several sites' canaries may share a coordinate.
    seen = [Seen("gradient", who, told, included, who != MODEL) for who, told in scores.items()]
    return seen, claimed(config, trained)


def _values(tensor: Tensor, placed: Placed) -> Scores:
    return tensor.detach().double().flatten().numpy()[placed.coordinates]


def evidence(gradients: Scores, plan: PrivacyPlan) -> Scores:
    """The log-likelihood ratio of one step for each canary, in against out, as the plan has it.

    In, a coordinate of the noised sum in units of the clip norm is a mixture of a Gaussian around 1
    with weight q and around 0; out, it is around 0.
    """
    q, sigma = plan.sampling_probability, plan.noise_multiplier
    sums = gradients * plan.denominator / plan.clip_norm
    drawn = math.log(q) + (2 * sums - 1) / (2 * sigma**2)
    return drawn if q == 1 else np.logaddexp(math.log1p(-q), drawn)


def mislabelled_game(
    config: RunConfig,
    workspace: Workspace,
    *,
    canaries: int,
    seed: int,
    fault: Plant | None,
) -> tuple[list[Seen], Claim]:
    """Training rows under wrong labels, at most half of each site's; scored by how far training
    lowers the loss on the wrong label."""
    sites = sorted(config.data.public_sizes)
    share = math.ceil(canaries / len(sites))
    chosen: dict[str, tuple[Rows, np.ndarray]] = {}
    for site in sites:
        rows, random = workspace.rows(site, "train"), rng(seed, "mislabelled canaries", site)
        picked = np.sort(random.permutation(rows)[: min(share, len(rows) // 2)])
        chosen[site] = (picked, random.random(len(picked)) < 0.5)
    every = np.concatenate([rows for rows, _ in chosen.values()])
    classes, random = len(workspace.data.label_names), rng(seed, "wrong labels")
    wrong = (workspace.data.labels[every] + random.integers(1, classes, len(every))) % classes
    updates: dict[str, list[tuple[AdapterState, AdapterState]]] = defaultdict(list)

    def without_those_out(site: Site) -> Site:
        rows, included = chosen[site.name]
        stays = ~np.isin(site.units.rows, rows[~included])
        return replace(site, units=site.units.take(np.flatnonzero(stays)))

    def hear(order: RoundOrder, update: ClientUpdate) -> None:
        updates[order.site].append((order.adapter, after(order, update)))

    with workspace.task.relabelled(every, wrong.astype(np.int64)):
        with planted(fault), sites_with(without_those_out):
            trained = federated(config, workspace, app=watched(hear))

        def fall(before: AdapterState, now: AdapterState, rows: Rows) -> Scores:
            losses = [workspace.task.row_figures(state, rows)[1] for state in (before, now)]
            return (losses[0] - losses[1]).double().numpy()

        of_rounds = [
            sum((fall(*pair, rows) for pair in updates[site]), np.zeros(len(rows)))
            for site, (rows, _) in chosen.items()
        ]
        of_model = fall(workspace.initial_state, trained.result.state, every)
    included = np.concatenate([included for _, included in chosen.values()])
    scores = {SERVER: np.concatenate(of_rounds), MODEL: of_model}
    seen = [Seen("mislabelled", who, told, included, False) for who, told in scores.items()]
    return seen, claimed(config, trained)
