"""What noise at a trusted server leaves of clients' updates, from public numbers alone.

In a round the server releases ``(sum of clipped updates + noise) / L``, L the public number of
clients expected. With every update at the clip norm C and all of one direction the mean has norm C,
and the noise has standard deviation ``z C / L`` in each of the d trained values. So the ratios are
those of `planner.signal_to_noise`, upper bounds as there, with clients in place of rows: of a few
clients there are few to hide one another. With correlated noise the run's ratio is that of the sum
over all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from hushtune.common.errors import PlanError
from hushtune.common.privacy import correlated
from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit, make_plan
from hushtune.simulations.planner import DROWNED, FAINT, check_outline, signal_to_noise
from hushtune.simulations.planner_outline import Outline


def plan_clients(
    clients: int, outline: Outline, *, probability: float = 1.0, turns: int | None = None
) -> dict[str, Any]:
    """What a run over so many clients would be, JSON-ready.

    Raises PlanError where clients take turns and are drawn too, or where turns are further apart
    than there are clients or rounds, and what `make_plan` does.
    """
    check_outline(replace(outline, local_steps=1))
    if not 0 < probability <= 1:
        raise PlanError(
            "--client-sampling-probability is out of range",
            given=f"{probability:g}",
            expected="above 0, at most 1",
            remedy="leave it out: every client is then in every round",
        )
    if turns is not None and probability < 1:
        raise PlanError(
            "clients either take turns or are drawn at random",
            given=f"--client-turns {turns}, --client-sampling-probability {probability:g}",
            expected="one of the two",
            remedy="leave --client-sampling-probability out, or --client-turns",
        )
    if turns is not None and turns > min(clients, outline.rounds):
        raise PlanError(
            "turns are further apart than there are clients or rounds: some would never have one",
            given=f"--client-turns {turns}, {clients} clients, {outline.rounds} rounds",
            expected=f"at most {min(clients, outline.rounds)}",
            remedy="lower --client-turns, or have more clients and --rounds",
        )
    plan = make_plan(
        epsilon=outline.epsilon,
        delta=outline.delta,
        public_size=clients,
        batch_size=None,
        sampling_probability=probability,
        steps=outline.rounds if turns is None else 1,
        clip_norm=outline.clip_norm,
        unit=Unit.CLIENT,
        relation=outline.relation,
        trust=Trust.SERVER,
    )
    if turns is not None:
        plan = replace(plan, denominator=clients / turns)
    values = outline.values()
    return client_figures(plan, clients, rounds=outline.rounds, turns=turns, trained_values=values)


def client_figures(
    plan: PrivacyPlan, clients: int, *, rounds: int, turns: int | None, trained_values: int
) -> dict[str, Any]:
    """Noise and signal of a plan over clients; ``needed``: how many would do, all else equal."""
    deviation = plan.noise_multiplier / plan.denominator
    if turns is not None:
        band = correlated.best_band(rounds=rounds, every=turns)
        whole = correlated.prefix_error(band, rounds=rounds, every=turns)[-1]
        deviation *= float(whole) / math.sqrt(rounds)
    ratios = signal_to_noise(deviation, trained_values=trained_values, steps=rounds)
    return {
        "clients": clients,
        "clients_per_round": plan.denominator,
        "rounds": rounds,
        "trained_values": trained_values,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": plan.epsilon,
        "delta": plan.delta,
        "signal_to_noise": ratios,
        "needed": math.ceil(clients * FAINT / ratios["run"]),
    }


def show_clients(console: Console, figures: Mapping[str, Any]) -> None:
    """In plain words: what is left, and whether it makes sense with so few."""
    ratios = figures["signal_to_noise"]
    console.print(
        f"clients: {figures['clients']}, about {figures['clients_per_round']:.4g} a round; noise "
        f"multiplier {figures['noise_multiplier']:.3f} at epsilon {figures['epsilon']:g}, delta "
        f"{figures['delta']:g}, over {figures['rounds']} rounds\n"
        f"signal to noise on all {figures['trained_values']} trained values: at most "
        f"{ratios['step']:.2g} in a round and {ratios['run']:.2g} over the run, if all clients' "
        "updates were at the clip norm and of one direction",
        highlight=False,
        markup=False,
    )
    if ratios["run"] >= FAINT:
        return
    console.print("[bold yellow]warning[/] ", end="")
    console.print(
        "noise at the server makes no sense with so few clients: the noise on their mean is longer "
        "than the longest mean that there can be"
        if ratios["run"] < DROWNED
        else "with so few clients noise is likely to be longer than the signal: updates are mostly "
        "far from one direction",
        highlight=False,
        markup=False,
    )
    console.print(
        f"  do: have about {figures['needed']} clients or more, a higher epsilon, fewer trained "
        'values (train.warmup_rounds, adapter.rank), or privacy.trust = "site" with '
        'privacy.unit = "example" or "group"',
        highlight=False,
        markup=False,
    )
