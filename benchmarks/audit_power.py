"""How often an audit finds each planted fault, by how many gradient canaries it has.

    python benchmarks/audit_power.py [--canaries 200 400 ...] [--repeats 40]
        [--doc docs/laboratory.md]

The scores of canaries are drawn as the mechanism gives them to who sees each step, without training
a model: so many canaries, of which each is in with probability one half, in the run of a site of
the preset tiny. What decides is the row that decides in an audit. With ``--doc`` the table replaces
what stands between its two markers there.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markers import put_between, table_of

from hushtune.common.config_io import load_config
from hushtune.common.planning import site_plans
from hushtune.common.presets import PRESETS
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.version import source_commit
from hushtune.simulations.audit.assess import assess
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.federation import audited
from hushtune.simulations.audit.games import Seen, evidence

BEGIN, END = "<!-- power:begin -->", "<!-- power:end -->"
TWENTY = ("train.rounds=20", "train.warmup_rounds=20", "privacy.delta=1e-5")


@dataclass(frozen=True)
class Case:
    """A fault: how much of the noise there is, and whether the last round alone is accounted."""

    title: str
    settings: tuple[str, ...] = TWENTY
    noise: float = 1.0
    last_alone: bool = False


CASES = (
    Case("sound"),
    Case("`no-noise` (`no-clip` is as plain)", noise=0.0),
    Case("`half-noise`", noise=0.5),
    Case("`reset-accountant`, three rounds as `tiny` has", settings=(), last_alone=True),
    Case("`reset-accountant`, twenty rounds", last_alone=True),
)


def main() -> None:
    """Draw, assess, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    counts = [200, 400, 800, 1500, 3000, 6000]
    parser.add_argument("--canaries", nargs="+", type=int, default=counts)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--doc", type=Path)
    options = parser.parse_args()
    rows = [["canaries", *(f"{count:,}" for count in options.canaries)]]
    for case in CASES:
        plan, rounds = planned(case)
        found = [
            sum(is_found(case, plan, rounds, count, seed) for seed in range(options.repeats))
            for count in options.canaries
        ]
        rows.append([case.title, *(f"{times / options.repeats:.0%}" for times in found)])
        print(*rows[-1], sep="  ", flush=True)
    told = f"Of {options.repeats} draws each. Source commit: {source_commit()}."
    text = f"{table_of(rows)}\n\n{told}"
    print(text)
    if options.doc is not None:
        put_between(options.doc, BEGIN, END, text)


def planned(case: Case) -> tuple[PrivacyPlan, int]:
    """The plan of the first site at epsilon 3, as an audit of it would have, and its rounds."""
    asked = ("privacy.epsilon=3", *case.settings)
    config = audited(load_config(preset="tiny", presets=PRESETS, overrides=asked))
    plans = site_plans(config)
    return plans[min(plans)], config.train.rounds


def is_found(case: Case, plan: PrivacyPlan, rounds: int, canaries: int, seed: int) -> bool:
    """Whether one audit refutes what is claimed."""
    random = np.random.default_rng([seed, canaries])
    included = random.random(canaries) < 0.5
    scores = np.zeros(canaries)
    for _ in range(plan.steps):
        drawn = included & (random.random(canaries) < plan.sampling_probability)
        noise = case.noise * plan.noise_multiplier * random.standard_normal(canaries)
        scores += evidence((drawn + noise) * plan.clip_norm / plan.denominator, plan)
    steps = plan.steps // rounds if case.last_alone else plan.steps
    claim = Claim(((plan.event(steps),),), plan.delta)
    return assess(Seen("gradient", "each step", scores, included, True), claim)[0].refutes


if __name__ == "__main__":
    main()
