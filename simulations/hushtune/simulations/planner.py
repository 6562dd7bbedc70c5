"""What a run would cost each site, and what it could learn there, from public numbers alone.

Nothing here sees a record. Every plan is `make_plan`'s, every epsilon the accountant's.

**Signal to noise.** In a step a site releases the clipped, noised mean ``(sum of clipped gradients
+ noise) / L``, where L is the public expected batch (`PrivacyPlan.denominator`). With clip norm C
and a public size that is the true one, the expectation of the clipped mean is a vector of norm at
most C. The noise on it has standard deviation ``sigma C / L`` in each of the d trained values, so
its norm is ``sigma C sqrt(d) / L`` (root mean square). Hence the whole-vector ratio of one step is
at most ``L / (sigma sqrt(d))``. The mean over T steps has sqrt(T) times less noise and at best
about the same signal: at most ``L sqrt(T) / (sigma sqrt(d))``. In any one direction, the gradient's
own included, the noise has standard deviation ``sigma C / L``: there the ratio is sqrt(d) times the
whole vector's, and so it is in a single trained value, should all of the gradient lie in it.

The federation's mean weighs site k by its share p_k of the public sizes of the sites that take
part, as runs do by default; its signal is at most C too and its noise has standard deviation
``C sqrt(sum_k (p_k sigma_k / L_k)^2)``.

All of these are *upper bounds* of what to expect. They are reached only if each row's gradient is
as long as C and all point the same way. On the demo's sites, without noise, the mean clipped
gradient had 0.08 to 0.25 of the norm C at the start and 0.02 to 0.03 after 54 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from hushtune.common.errors import HushtuneError, PlanError
from hushtune.common.privacy.delta import LEAST_DELTA
from hushtune.common.privacy.plan import CLIP_NORMS, DpSgdEvent, PrivacyPlan, Relation
from hushtune.simulations.planner_outline import Outline, demo_trained_values

DROWNED = 1.0
"""Below this ratio over the run, noise is longer than the longest signal that there can be."""

FAINT = 10.0
"""Below this, noise is likely to be longer than the signal: the demo's mean gradients were at most
a quarter of the clip norm, and a twentieth or less for most of the run."""

MOST_VALUES = 10**12
"""More trained values than any model has."""

MOST_STEPS = 100_000
"""Beyond this the accountant needs minutes for four times as many."""

_FINITE = (-1e300, 1e300, "a finite number")
_COUNTED = (1, MOST_VALUES, f"1 to {MOST_VALUES}")
_BOUNDS: Mapping[str, tuple[float, float, str]] = {
    **dict.fromkeys(("rounds", "local_steps", "trained_values"), _COUNTED),
    "epsilon": (1e-300, 1e300, "a finite number above 0"),
    "clip_norm": (*CLIP_NORMS, f"{CLIP_NORMS[0]:g} to {CLIP_NORMS[1]:g}"),
}
"""Of each of an outline's numbers the least and the most, and both in words."""

_REMEDIES = {
    "epsilon": "--epsilon 3: 1 is strong, 3 usual, 10 weak",
    "clip_norm": "--clip-norm 1: it is the scale of gradients, and noise goes with it",
}
_SETTINGS = {
    "privacy.delta": "--delta",
    "train.batch_size": "--batch",
    "train.sampling_probability": "--sampling-probability",
}
"""Options of ``hushtune plan`` by the settings of a run, which remedies speak of."""
OTHER_ROUNDS = (0.25, 0.5, 2.0, 4.0)
_CURVE_POINTS = 16


def plan_run(sites: Mapping[str, int], outline: Outline) -> dict[str, Any]:
    """What a run would be at each site, as a JSON-ready dict.

    A site that cannot take part has `takes_part` false and the refusal of `make_plan` among its
    `warnings` (each with `code`, `message` and `remedy`); the others are planned all the same.
    Raises PlanError for rounds, steps or trained values below 1, more than `MOST_STEPS`, an epsilon
    or clip norm that is not above 0, both a batch and a rate, what is not finite, or a delta that
    nothing could be planned for.
    """
    check_outline(outline)
    steps = outline.rounds * outline.local_steps
    source = "as given"
    if outline.trained_values is None:
        number, source = demo_trained_values()
        outline = replace(outline, trained_values=number)
    plans: dict[str, PrivacyPlan] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, size in sites.items():
        rows[name] = {"rows": size, "takes_part": False, "warnings": []}
        try:
            if size < 1:
                raise PlanError(
                    "it has no training rows",
                    remedy="leave it out of --sites, or give the rows it has",
                )
            plans[name] = outline.plan(size)
        except HushtuneError as error:
            rows[name]["warnings"].append(_refusal(name, error))
        else:
            rows[name] |= _site(name, size, plans[name], outline)
    return {
        **asdict(outline),
        "relation": str(outline.relation),
        "trained_values_source": source,
        "steps": steps,
        "sites": rows,
        "federation": _federation({name: sites[name] for name in plans}, plans, outline),
    }


def check_outline(outline: Outline) -> None:
    """PlanError for what no plan can be made of, whatever the sites or clients."""
    for name, value in asdict(outline).items():
        least, most, expected = _BOUNDS.get(name, _FINITE)
        if isinstance(value, int | float) and not least <= value <= most:
            raise PlanError(
                f"{_option(name)} is out of range",
                given=str(value),
                expected=expected,
                remedy=_REMEDIES.get(name, "`hushtune plan --help` lists the options"),
            )
    if not LEAST_DELTA <= outline.delta < 1:
        raise PlanError(
            "--delta is out of range",
            given=f"{outline.delta:g}",
            expected=f"{LEAST_DELTA:g} or more, and below 1 / rows of the smallest site",
            remedy="--delta 1e-5: noise that is Gaussian keeps no promise with a delta of 0, as "
            "a small share of its mass is beyond any epsilon",
        )
    if outline.batch_size is not None and outline.sampling_probability is not None:
        raise PlanError(
            "--batch and --sampling-probability say the same thing twice",
            given=f"{outline.batch_size} and {outline.sampling_probability:g}",
            expected="exactly one of the two, or neither",
            remedy="leave one of them out",
        )
    steps = outline.rounds * outline.local_steps
    if steps > MOST_STEPS:
        raise PlanError(
            "more steps than can be planned",
            given=f"{outline.rounds} rounds of {outline.local_steps}",
            expected=f"at most {MOST_STEPS} steps",
            remedy="lower --rounds or --local-steps",
        )


def check_any(figures: Mapping[str, Any]) -> None:
    """PlanError where no site of what `plan_run` returned can take part; names every site."""
    sites = figures["sites"]
    if not any(site["takes_part"] for site in sites.values()):
        first = next(w["message"] for site in sites.values() for w in site["warnings"])
        rest = list(sites)[1:]
        raise PlanError(
            "no site can take part in this run",
            given=first + (f"; nor can {', '.join(rest)}" if rest else ""),
            remedy="see the warning of each site; change delta, the batch or the number of rounds, "
            "raise epsilon, or plan with other sites",
        )


def signal_to_noise(deviation: float, *, trained_values: int, steps: int) -> dict[str, float]:
    """The three ratios of the module's docstring, all upper bounds.

    `deviation`: standard deviation of the noise on a step's mean, in each trained value, in units
    of the clip norm (``sigma / L``; the federation's is given there). `step`: whole vector, one
    step. `run`: whole vector, mean over all `steps`. `run_one_direction`: the same in the one
    direction in which all gradients point.

    >>> signal_to_noise(2.0 / 400, trained_values=100, steps=16)
    {'step': 20.0, 'run': 80.0, 'run_one_direction': 800.0}
    """
    step = 1 / (deviation * math.sqrt(trained_values))
    run = step * math.sqrt(steps)
    return {"step": step, "run": run, "run_one_direction": run * math.sqrt(trained_values)}


def epsilon_curve(figures: Mapping[str, Any], name: str) -> list[tuple[int, float | None]]:
    """A site's epsilon by number of rounds at the planned noise, from 1 to four times as many."""
    site, most = figures["sites"][name], int(max(OTHER_ROUNDS) * figures["rounds"])
    # Squares, as the curve is steepest where it begins.
    points = {math.ceil(most * (place / _CURVE_POINTS) ** 2) for place in range(_CURVE_POINTS + 1)}
    points = points - {0} | {1, figures["rounds"]}
    return [
        (
            rounds,
            _epsilon(
                site["sampling_probability"],
                site["noise_multiplier"],
                rounds * figures["local_steps"],
                delta=figures["delta"],
                relation=Relation(figures["relation"]),
            ),
        )
        for rounds in sorted(points)
    ]


def _site(name: str, size: int, plan: PrivacyPlan, outline: Outline) -> dict[str, Any]:
    return {
        "takes_part": True,
        "batch": plan.denominator,
        "sampling_probability": plan.sampling_probability,
        "steps": plan.steps,
        "noise_multiplier": plan.noise_multiplier,
        "epsilon": plan.epsilon,
        "epsilon_spent": _spent(plan, plan.steps),
        "delta": plan.delta,
        "signal_to_noise": (ratios := _ratios(plan, outline)),
        "other_rounds": [
            _other(size, plan, replace(outline, rounds=rounds)) for rounds in _others(outline)
        ],
        "warnings": _faint(name, ratios["run"]),
    }


def _others(outline: Outline) -> Iterable[int]:
    """A quarter, half, two and four times the rounds: whole, different, and not those planned."""
    rounds = {max(1, round(outline.rounds * factor)) for factor in OTHER_ROUNDS}
    return sorted(rounds - {outline.rounds})


def _other(size: int, plan: PrivacyPlan, outline: Outline) -> dict[str, Any]:
    """One other number of rounds: its epsilon at the plan's noise, its noise at the epsilon."""
    steps = outline.rounds * outline.local_steps
    found: dict[str, Any] = {
        "rounds": outline.rounds,
        "steps": steps,
        "epsilon": _spent(plan, steps),
        "noise_multiplier": None,
        "signal_to_noise": None,
    }
    try:
        other = outline.plan(size)
    except HushtuneError:  # no noise is enough for so many rounds
        return found
    ratios = _ratios(other, outline)
    return found | {"noise_multiplier": other.noise_multiplier, "signal_to_noise": ratios}


def _ratios(plan: PrivacyPlan, outline: Outline) -> dict[str, float]:
    assert outline.trained_values is not None  # filled in by plan_run
    return signal_to_noise(
        plan.noise_multiplier / plan.denominator,
        trained_values=outline.trained_values,
        steps=plan.steps,
    )


def _federation(
    sizes: Mapping[str, int], plans: Mapping[str, PrivacyPlan], outline: Outline
) -> dict[str, Any] | None:
    """The mean of the sites that take part, weighed by size; None if there are none."""
    if not plans:
        return None
    assert outline.trained_values is not None  # filled in by plan_run
    total = sum(sizes.values())
    deviation = math.hypot(
        *(sizes[k] / total * plan.noise_multiplier / plan.denominator for k, plan in plans.items())
    )
    steps = outline.rounds * outline.local_steps
    return {
        "sites": len(plans),
        "rows": total,
        "batch": sum(plan.denominator for plan in plans.values()),
        "epsilon": max(plan.epsilon for plan in plans.values()),
        "signal_to_noise": signal_to_noise(
            deviation, trained_values=outline.trained_values, steps=steps
        ),
    }


def _spent(plan: PrivacyPlan, steps: int) -> float | None:
    return _epsilon(
        plan.sampling_probability,
        plan.noise_multiplier,
        steps,
        delta=plan.delta,
        relation=plan.relation,
    )


def _epsilon(
    q: float, sigma: float, steps: int, *, delta: float, relation: Relation
) -> float | None:
    """None in place of infinity, which JSON does not have."""
    from hushtune.common.privacy import accountant  # takes a second to import

    event = DpSgdEvent(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    found = accountant.epsilon([event], delta=delta, relation=relation)
    return found if math.isfinite(found) else None


def _refusal(name: str, error: HushtuneError) -> dict[str, Any]:
    details = f" (given: {error.given})" if error.given else ""
    message = f"{name} cannot take part: {error.message}{details}"
    remedy = error.remedy or f"give what is expected: {error.expected}"
    for setting, option in _SETTINGS.items():
        remedy = remedy.replace(setting, option)
    return {"code": error.code, "message": message, "remedy": remedy}


def _option(name: str) -> str:
    """What a field of an outline is called at the command line."""
    special = {"trained_values": "--tensor-size", "batch_size": "--batch"}
    return special.get(name, "--" + name.replace("_", "-"))


def _faint(name: str, ratio: float) -> list[dict[str, Any]]:
    if ratio >= FAINT:
        return []
    message = (
        f"{name}: noise drowns the signal: over the whole run it is longer than even gradients at "
        "the clip norm that all point one way"
        if ratio < DROWNED
        else f"{name}: noise is likely to be longer than the signal, as gradients are mostly far "
        "shorter than the clip norm"
    )
    return [
        {
            "code": "drowned" if ratio < DROWNED else "faint",
            "message": f"{message} (signal to noise at most {ratio:.2g})",
            "remedy": "more rows, a larger batch, a higher epsilon or fewer trained values; the "
            "federation's line shows what the sites have together",
        }
    ]
