"""Sites that attack the run, in a simulation: how much a federation loses to them can be measured.

An attacker is the real ClientApp with another one around it, so that it takes part in everything
(roll call, ledger, secure sums) and spends its budget as an honest site does. With ``d`` its honest
update and ``s`` = ``simulation.attack_scale`` it does one of these:

- ``label_flip`` trains on the label after the right one, in turn, in all of its training rows
  (Tolpegin et al. 2007.08432). Its held-out rows are left alone, and so is every evaluation.
- ``sign_flip`` sends ``-s d``; s = 1 is the sign flip of Li et al. 1811.03761.
- ``scale`` sends ``s d``: with s = 1 / (its weight in the mean) it replaces the model by its own
  (Bagdasaryan et al. 1807.00459).
- ``collude`` sends ``s |d| u`` with one unit vector u for all attackers and all rounds, drawn from
  the seed. As in "a little is enough" (Baruch et al. 1902.06156) the attackers support one another,
  which is what rules of distances are weak against; unlike there they need not know one another's
  updates, which processes on Ray cannot. The smaller s, the better it hides.
- ``nan`` sends NaN in place of every number.

No site that is not simulated runs any of this: neither the client nor the server knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from rich.console import Console

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig, SimulationConfig
from hushtune.common.config_federation import SCALED_ATTACKS
from hushtune.common.messages import ClientUpdate, decode_reply, encode_update
from hushtune.common.run_context import read_run_config
from hushtune.common.seeds import generator, rng
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.simulations.engine import around

NONE, LABEL_FLIP = "none", "label_flip"
_ROUNDING = 1e-9
_MOST_NAMES = 6


def attackers(config: RunConfig) -> tuple[str, ...]:
    """The sites that attack, sorted: drawn by name from the seed; a larger share only adds some."""
    if config.simulation.attack == NONE:
        return ()
    names = sorted(config.data.public_sizes)
    # 0.29 * 100 is a little less than 29.
    count = max(1, math.floor(config.simulation.attackers * len(names) + _ROUNDING))
    drawn = rng(config.seed, "attackers").permutation(len(names))[:count]
    return tuple(sorted(names[place] for place in drawn))


def attack_of(config: RunConfig) -> dict[str, Any] | None:
    """What a run's reports say of an attack: ``kind``, ``sites`` and ``scale``; None without one.

    ``scale`` is None for an attack that multiplies nothing.
    """
    simulation = config.simulation
    if simulation.attack == NONE:
        return None
    scale = simulation.attack_scale if simulation.attack in SCALED_ATTACKS else None
    return {"kind": simulation.attack, "sites": list(attackers(config)), "scale": scale}


def attacking(client_app: ClientApp) -> ClientApp:
    """The same app for simulated nodes of which those attack that the run's configuration says."""

    def call(message: Message, context: Context) -> Message:
        config = read_run_config(context.run_config).config
        site = _site(context, config)
        of_training = message.metadata.message_type.startswith("train")
        if site not in attackers(config) or not of_training:
            return client_app(message, context)
        if config.simulation.attack == LABEL_FLIP:
            with flipped_labels(open_workspace(config), site):
                return client_app(message, context)
        return _spoiled(client_app(message, context), message, config)

    return around(call)


def flipped_labels(workspace: Workspace, site: str) -> AbstractContextManager[None]:
    """A block in which each training row of a site has the next label; the last has the first."""
    rows, data = workspace.rows(site, "train"), workspace.data
    following = (data.labels[rows] + 1) % len(data.label_names)
    return workspace.task.relabelled(rows, following.astype(np.int64))


def spoil(delta: AdapterState, simulation: SimulationConfig, *, seed: int) -> AdapterState:
    """What an attacker sends in place of its honest update.

    ``seed``: the run's, which every attacker knows.
    """
    scale = simulation.attack_scale
    if not delta.num_values():  # of what stays at the site nothing is sent
        return delta
    match simulation.attack:
        case "sign_flip":
            return delta * -scale
        case "scale":
            return delta * scale
        case "collude":
            common = _direction(delta, seed=seed)
            return common * (scale * delta.norm() / common.norm())
        case "nan":
            return delta.map(lambda tensor: torch.full_like(tensor, math.nan))
        case _:
            return delta


def show_attack(console: Console, attack: Mapping[str, Any] | None) -> None:
    """A loud line where sites attack."""
    if attack is not None:
        line = f"ATTACK: {told(attack)}"
        console.print(line, style="bold red", highlight=False, markup=False)


def told(attack: Mapping[str, Any]) -> str:
    """An attack in words; many attackers are counted and not all named."""
    sites, scale = attack["sites"], attack["scale"]
    named = ", ".join(sites[:_MOST_NAMES])
    more = f" and {len(sites) - _MOST_NAMES} more" if len(sites) > _MOST_NAMES else ""
    many = "1 site attacks" if len(sites) == 1 else f"{len(sites)} sites attack"
    how = attack["kind"] if scale is None else f"{attack['kind']}, scale {scale:g}"
    return f"{many} in this simulation ({how}): {named}{more}"


def _site(context: Context, config: RunConfig) -> str | None:
    """The site that a node stands for, as a site itself finds it; None for a node that is none."""
    place = context.node_config.get("partition-id")
    return next((n for k, n in enumerate(sorted(config.data.public_sizes)) if k == place), None)


def _spoiled(reply: Message, message: Message, config: RunConfig) -> Message:
    """The reply with another update in it; one that has none, such as a refusal, as it is."""
    if reply.has_error():
        return reply
    update = decode_reply(reply.content)
    if not isinstance(update, ClientUpdate):
        return reply
    delta = spoil(update.delta, config.simulation, seed=config.seed)
    # NaN has no int8; as float32 it is refused by the server, by name.
    encoding = "float32" if not delta.is_finite() else update.encoding
    return Message(encode_update(replace(update, delta=delta, encoding=encoding)), reply_to=message)


def _direction(like: AdapterState, *, seed: int) -> AdapterState:
    """One direction for all attackers, tensor by tensor, so that phases agree on what they share.

    It does not turn from round to round: pushes along it add up.
    """
    drawn = {
        key: torch.randn(tensor.shape, generator=generator(seed, "collude", key))
        for key, tensor in like.tensors.items()
    }
    return AdapterState(like.spec, drawn)
