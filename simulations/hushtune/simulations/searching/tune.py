"""Search for settings: runs, the choice among them, and what is released of it.

Two kinds of choice have a named cost, and any other is refused (docs/laboratory.md):

- ``public``: every run trains and is judged on data that are nobody's. The settings that come out
  say nothing of the sites' records, and cost them nothing.
- ``charged``: every run trains on the sites' records, the number of runs and all of their settings
  are drawn at random, and the best run alone is released. See ``privacy.selection``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.config_data import SOURCES
from hushtune.common.config_io import (
    CONFIG,
    config_hash,
    dump_toml,
    load_config,
    loads_config,
    replace,
)
from hushtune.common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FederationError,
    ModelError,
    OutputExistsError,
    PlanError,
)
from hushtune.common.files import check_writable, read_json, read_json_lines, write_text
from hushtune.common.kinds import higher_is_better
from hushtune.common.planning import site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.privacy.selection import CountLaw, RandomCount
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations.outputs import METRICS
from hushtune.simulations.searching import charged
from hushtune.simulations.searching.cost import Cost, check_covered, cost_of, epsilon_of_all
from hushtune.simulations.searching.payer import Choice, check_payer
from hushtune.simulations.searching.proposals import at_random, by_optuna
from hushtune.simulations.searching.record import (
    Record,
    Trial,
    best_of,
    read_record,
    write_record,
)
from hushtune.simulations.searching.released import release
from hushtune.simulations.searching.space import Parameter
from hushtune.simulations.study import run

TRIALS, BEST, SELECTED = "trials", "best.toml", "selected"
_NO_RESULT = (ConfigError, DataError, FederationError, ModelError, PlanError)
"""What a run may end with and be one that failed; a full disk, say, ends the search."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched: on which data, among which settings, how often, and who pays."""

    config: RunConfig
    space: tuple[Parameter, ...]
    choice: Choice
    trials: float
    law: CountLaw
    public: RunConfig | None = None


Told = Callable[[Trial], None]


def check_search(search: Search) -> Cost | None:
    """The cost of a charged choice, None of one on public data; refuses what has no known cost."""
    config, public = search.config, search.public
    check_payer(search.choice, has_public=public is not None)
    if search.choice is Choice.CHARGED:
        count = RandomCount(law=search.law, mean=search.trials)
        _check_validation(config)
        return cost_of(resolve(config), search.space, count)
    assert public is not None
    whole = math.isfinite(search.trials) and search.trials == int(search.trials) >= 1
    if search.law is not CountLaw.FIXED or not whole:
        raise ConfigError(
            "on public data the number of runs is fixed",
            given=f"--trials {search.trials:g} --count {search.law}",
            expected="a whole number, and --count fixed",
        )
    own, others = ([getattr(c.data, key) for key in SOURCES] for c in (config, public))
    if own == others:
        raise ConfigError(
            "the public data are the sites' own",
            given=", ".join(str(value) for value in others if value is not None),
            expected="other data, of which nothing is promised",
            remedy="name other data, or have the choice charged: --choice charged",
        )
    _check_validation(public)
    if find_spec("optuna") is None:
        raise ConfigError("a search needs optuna", remedy="pip install 'hushtune[lab]'")
    return None


def on_public_data(config: RunConfig, file: Path) -> RunConfig:
    """The configuration with the data that another one names, and all else as it is.

    But for the sites' own policies and ledgers, which runs on other data are nothing to.
    """
    other = load_config(file)
    apart = config.simulation.model_copy(update={"policies": None, "ledgers": None})
    joined = config.model_copy(update={"data": other.data, "simulation": apart})
    return loads_config(dump_toml(joined))  # checked as a whole


def _check_validation(config: RunConfig) -> None:
    if config.data.validation_fraction == 0:
        raise ConfigError(
            "there are no validation rows to choose by, and test rows choose nothing",
            given="data.validation_fraction = 0",
            remedy="raise data.validation_fraction",
        )


def tune(
    search: Search, out: Path | str, *, resume: bool = False, told: Told | None = None
) -> dict[str, Any]:
    """Search, and leave what was chosen in the folder ``out``; returns what ``--json`` prints.

    Of a choice on public data: ``best.toml``, to run with. Of a charged one: ``selected``, which
    alone may be released, and the charge of the whole search in the sites' ledgers. All else in
    the folder is the researcher's. Raises HushtuneErrors.
    """
    folder = Path(out).resolve()
    cost = check_search(search)
    base = search.config if search.public is None else search.public
    base = resolve(replace(base, {"simulation.baselines": False}))
    if cost is not None and not resume:
        charged.check_unspent(base, cost)
    record = _begin(search, folder, resume=resume)
    if cost is not None:
        write_text(folder / CONFIG, dump_toml(base))  # for who reads the ledgers
        charged.charge(base, folder, cost, search=record.name)
        # Each run's own charges are its server's matter, and would tell how many runs there were.
        base = replace(base, {"simulation.ledgers": None})
    up = higher_is_better(base.task.main_metric)
    propose: Callable[[Sequence[Parameter], Sequence[Trial]], dict[str, Any]] = at_random
    if cost is None:
        propose = partial(by_optuna, higher_is_better=up, seed=search.config.seed)
    while len(record.trials) < record.drawn or not all(trial.done for trial in record.trials):
        begun = next((trial for trial in record.trials if not trial.done), None)
        trial = begun or Trial(
            number=len(record.trials), settings=propose(search.space, record.trials)
        )
        record = record.having(trial)
        write_record(folder, record)  # before it runs: a draw is never drawn again
        trial = _run_trial(base, trial, folder, cost)
        record = record.having(trial)
        write_record(folder, record)
        if told is not None:
            told(trial)
    return _choose(search, base, record, folder, cost)


def _begin(search: Search, folder: Path, *, resume: bool) -> Record:
    """The record to go on with, or a new one with the number of runs drawn."""
    about = {
        "config": config_hash(search.config),
        "public": None if search.public is None else config_hash(search.public),
        "space": [repr(parameter) for parameter in search.space],
        "choice": search.choice.value,
        "count": search.law.value,
        "trials": search.trials,
    }
    old = read_record(folder)
    if resume:
        if old is None or dict(old.about) != about:
            raise CheckpointError(
                "there is no such search to go on with",
                given=str(folder),
                expected="the folder of a search that began with the same settings",
                remedy="leave --resume out, and name a new folder",
            )
        return old
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(
            "the output folder is not empty",
            given=str(folder),
            expected="a new folder",
            remedy="--resume goes on with the search in it; a charged choice that is begun anew is "
            "charged anew",
        )
    check_writable(folder)
    charged = search.choice is Choice.CHARGED
    count = RandomCount(law=search.law, mean=search.trials).draw() if charged else None
    record = Record(about=about, drawn=int(search.trials) if count is None else count)
    write_record(folder, record)
    return record


def _run_trial(base: RunConfig, trial: Trial, folder: Path, cost: Cost | None) -> Trial:
    """A trial with its value on validation rows, or with why it has none."""
    place = folder / TRIALS / f"{trial.number:04}"
    try:
        config = replace(base, trial.settings)
        summary = run(config, place, resume=(place / CONFIG).is_file())
        if cost is not None:
            for site, events in charges(config, place).items():
                check_covered(events, cost.kinds[site], site=site)
    except _NO_RESULT as error:
        if cost is not None and isinstance(error, PlanError):
            raise
        return Trial(
            number=trial.number,
            settings=trial.settings,
            done=True,
            error=f"{error.code} {error.message}",
        )
    return Trial(
        number=trial.number,
        settings=trial.settings,
        done=True,
        value=validation_value(place, summary),
        digest=str(summary["adapter_digest"]),
    )


def charges(config: RunConfig, place: Path) -> dict[str, list[DpSgdEvent]]:
    """What each site was charged in a run, by its ledger."""
    return {
        site: [entry.release for entry in Ledger(path).entries()]
        for site, path in charged.ledgers_of(config, place).items()
    }


def validation_value(place: Path, summary: Mapping[str, Any]) -> float | None:
    """The main metric of a run's model on all sites' validation rows; None where it is no number.

    Raises DataError of a run that was not judged by validation rows.
    """
    stopped = summary.get("stopped")
    kept = summary["rounds"] if stopped is None else stopped["kept_round"]
    rows = read_json_lines(place / METRICS, remedy="remove the folder and go on with --resume")
    row = next((row for row in rows if row["round"] == kept), {})
    if row.get("evaluated_on") != "validation":
        raise DataError(
            "a run has no figure on validation rows to be chosen by",
            given=f"round {kept}: {row.get('evaluated_on', 'not evaluated')}",
            remedy="raise data.validation_fraction",
        )
    return row[summary["metric"]]


def _choose(
    search: Search, base: RunConfig, record: Record, folder: Path, cost: Cost | None
) -> dict[str, Any]:
    up = higher_is_better(base.task.main_metric)
    best = best_of(record.trials, higher_is_better=up)
    told: dict[str, Any] = {
        "choice": search.choice.value,
        "metric": base.task.main_metric,
        "out": str(folder),
        "settings": None if best is None else dict(best.settings),
        "value": None if best is None else best.value,
        "trials": len(record.trials),
        "failed": sum(trial.value is None for trial in record.trials),
    }
    if cost is None:
        if best is not None:
            write_text(folder / BEST, dump_toml(replace(search.config, best.settings)))
        return told
    own = resolve(search.config)
    told["epsilon"] = {site: each.epsilon for site, each in cost.sites.items()}
    told["epsilon_of_all_trials"] = _of_all(base, record, folder, cost)
    told["ledgers"] = {site: str(path) for site, path in charged.ledgers_of(own, folder).items()}
    if best is not None:
        place = folder / TRIALS / f"{best.number:04}"
        heads = charged.charged(own, folder, cost, search=record.name)
        release(base, place, folder / SELECTED, cost, search.space, heads)
        told["test_value"] = read_json(place / "summary.json", remedy="run it again")["value"]
    return told


def _of_all(config: RunConfig, record: Record, folder: Path, cost: Cost) -> dict[str, float]:
    """By site, what every run there was costs towards who sees all of them; by the ledgers."""
    relation = {plan.relation for plan in site_plans(config).values()}.pop()
    spent: dict[str, list[DpSgdEvent]] = {site: [] for site in cost.sites}
    for trial in record.trials:
        place = folder / TRIALS / f"{trial.number:04}"
        if (place / "ledger").is_dir():
            for site, events in charges(config, place).items():
                spent[site] += events
    return {
        site: epsilon_of_all(events, delta=cost.sites[site].delta, relation=relation)
        for site, events in spent.items()
    }
