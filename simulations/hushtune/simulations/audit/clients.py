"""The game at the level of clients: which of them took part, guessed from what a server releases.

Every client is a canary, as in Andrew et al. (2302.03098): it sends a vector of a direction of its
own, far longer than any clip norm, or, by a fair coin, does not answer in any round. Directions are
random, and orthogonal where there is room, so that they do not get in one another's way.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from flwr.app import Context, Error, Message

from hushtune.client.app import app as client_app
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import ClientUpdate, RoundOrder, decode_order, encode_update
from hushtune.common.run_steps import trainable_of
from hushtune.common.seeds import rng
from hushtune.common.tasks.workspace import Workspace
from hushtune.server.strategy import RoundResult
from hushtune.simulations.audit.bounds import Scores
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.federation import claimed, federated
from hushtune.simulations.audit.games import MODEL, SERVER, Seen, together
from hushtune.simulations.audit.wrap import Plant, planted
from hushtune.simulations.engine import around

_LOUDNESS = 100.0


def client_games(
    config: RunConfig,
    workspace: Workspace,
    *,
    canaries: int,
    seed: int,
    fault: Plant | None,
) -> tuple[list[Seen], Claim]:
    """At least ``canaries`` canaries, all clients of a run in each of as many runs as it takes."""
    games: list[list[Seen]] = []
    claims: list[Claim] = []
    for number in range(math.ceil(canaries / len(config.data.public_sizes))):
        random = rng(seed, "client canaries", number)
        seen, claim = _client_game(config, workspace, random, fault=fault)
        games.append(seen)
        claims.append(claim)
    return together(games, claims, delta=config.privacy.delta)


def _client_game(
    config: RunConfig,
    workspace: Workspace,
    random: np.random.Generator,
    *,
    fault: Plant | None,
) -> tuple[list[Seen], Claim]:
    start = workspace.initial_state
    keys = trainable_of(config, start.spec, round=1)
    clients = sorted(config.data.public_sizes)
    like = start.select(keys)
    ways = directions(len(clients), like.num_values(), random)
    included = random.random(len(clients)) < 0.5
    places = {client: number for number, client in enumerate(clients)}

    def call(message: Message, context: Context) -> Message:
        if message.metadata.message_type != "train":
            return client_app(message, context)
        order = decode_order(message.content)
        place = places[order.site]
        if not included[place]:
            return Message(Error(code=0, reason="left out"), reply_to=message)
        length = _LOUDNESS * order.plan.clip_norm
        update = _update(order, _shaped(length * ways[place], like))
        return Message(encode_update(update), reply_to=message)

    models = [start]

    def hear(result: RoundResult) -> None:
        models.append(result.state)

    with planted(fault):
        trained = federated(config, workspace, app=around(call), on_round=hear)
    changes = [
        _flat(now.select(keys) - before.select(keys)) for before, now in itertools.pairwise(models)
    ]
    scores = {
        SERVER: np.sum([ways @ change for change in changes], axis=0),
        MODEL: ways @ _flat(trained.result.state.select(keys) - like),
    }
    seen = [Seen("client", who, told, included, True) for who, told in scores.items()]
    return seen, claimed(config, trained)


def directions(count: int, width: int, random: np.random.Generator) -> Scores:
    """Random unit vectors ``(count, width)``, orthogonal where there are no more than values."""
    drawn = random.standard_normal((count, width))
    if count <= width:
        return np.ascontiguousarray(np.linalg.qr(drawn.T)[0].T)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def _flat(state: AdapterState) -> Scores:
    return torch.cat([state.tensors[key].double().flatten() for key in state.keys]).numpy()


def _shaped(values: Scores, like: AdapterState) -> AdapterState:
    tensors: dict[str, torch.Tensor] = {}
    start = 0
    for key in like.keys:
        size = like.tensors[key].numel()
        part = torch.from_numpy(values[start : start + size]).float()
        tensors[key] = part.reshape(like.tensors[key].shape)
        start += size
    return AdapterState(like.spec, tensors)


def _update(order: RoundOrder, delta: AdapterState) -> ClientUpdate:
    return ClientUpdate(
        run=order.run,
        round=order.round,
        site=order.site,
        delta=delta,
        num_examples=order.num_examples,
        charge=None,
        noise="none",
        encoding=order.encoding,
    )
