"""The settings of the next run: at random, or by what earlier ones on public data gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hushtune.simulations.searching.record import Trial
from hushtune.simulations.searching.space import Parameter


def at_random(space: Sequence[Parameter], _: Sequence[Trial]) -> dict[str, Any]:
    """Settings as the theorem has them: from the system's entropy, whatever came before.

    A sequence that a seed gives would tell which run was chosen, and so how many there were.
    """
    import numpy as np

    random = np.random.default_rng()
    return {parameter.key: parameter.draw(random) for parameter in space}


def by_optuna(
    space: Sequence[Parameter], trials: Sequence[Trial], *, higher_is_better: bool, seed: int
) -> dict[str, Any]:
    """What Optuna's tree of Parzen estimators asks for after the trials there were."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds = {parameter.key: _distribution(parameter) for parameter in space}
    study = optuna.create_study(
        direction="maximize" if higher_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32),
    )
    for trial in trials:
        failed = trial.value is None
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(trial.settings),
                distributions=kinds,
                value=trial.value,
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
            )
        )
    return dict(study.ask(kinds).params)


def _distribution(parameter: Parameter) -> Any:
    from optuna import distributions

    if parameter.choices:
        return distributions.CategoricalDistribution(parameter.choices)
    if parameter.whole:
        return distributions.IntDistribution(
            int(parameter.low), int(parameter.high), log=parameter.log
        )
    return distributions.FloatDistribution(parameter.low, parameter.high, log=parameter.log)
