"""The researcher's look at each round's model, on rows that only a simulation holds together."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import TooFewRowsError
from hushtune.common.files import write_errors, write_text
from hushtune.common.names import seen_by
from hushtune.common.planning import POOLED
from hushtune.common.run_context import RunContext
from hushtune.common.stopping import chosen_by, is_judged
from hushtune.common.tasks.base import Metrics
from hushtune.common.tasks.workspace import Workspace
from hushtune.server.strategy import RoundResult
from hushtune.simulations import outputs
from hushtune.simulations.fit import sampled, train_figures
from hushtune.simulations.observer import Observer
from hushtune.simulations.outputs import METRICS
from hushtune.simulations.own_models import global_metrics


def check_judged(config: RunConfig, workspace: Workspace) -> None:
    """TooFewRowsError where rounds are to be judged on validation rows and there are none."""
    by_rows = is_judged(config) and chosen_by(config) == "researcher"
    if by_rows and not len(workspace.rows(POOLED, "validation")):
        raise TooFewRowsError(
            "there are no validation rows to judge rounds by (train.patience, train.keep), and "
            "test rows choose nothing",
            given=f"data.validation_fraction = {config.data.validation_fraction:g} of few rows",
            remedy="raise data.validation_fraction, or leave train.patience and train.keep out",
        )


class Judge:
    """Evaluates the global model after each round and keeps metrics.jsonl.

    These figures are the researcher's, who holds all sites' rows in a simulation. That no site
    sends them is said of those that no site told without noise. They are taken on validation rows,
    or on test rows where there are none. Nothing is chosen by them but what train.patience and
    train.keep say, by those on validation rows.
    """

    def __init__(self, context: RunContext, workspace: Workspace, observer: Observer) -> None:
        self._context = context
        self._workspace = workspace
        self._observer = observer
        few = context.config.simulation.train_sample
        self._sample = sampled(context, workspace) if few else {}
        self._part = "validation" if len(workspace.rows(POOLED, "validation")) else "test"
        self.seconds = 0.0
        self.already = 0
        self._latest: tuple[str, Mapping[str, Metrics]] | None = None

    def begin(self, resume: bool) -> None:
        """Before the first round: keep the lines of the rounds that the checkpoint has."""
        rows = outputs.checkpointed_rows(self._context) if resume else ()
        lines = [outputs.metrics_line(row) for row in rows]
        write_text(self._context.out / METRICS, "".join(lines))
        self.already = len(lines)
        self._observer.started(self._context.config.train.rounds, self.already)

    def __call__(self, outcome: RoundResult) -> Mapping[str, Any]:
        extra: dict[str, Any] = {}
        rounds, every = self._context.config.train.rounds, self._context.config.simulation
        if outcome.round % every.evaluate_every == 0 or outcome.round == rounds:
            began = time.perf_counter()
            extra = self._evaluate(outcome)
            self.seconds += time.perf_counter() - began
        row = {**outcome.row, **extra}
        path = self._context.out / METRICS
        with write_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(outputs.metrics_line(row))
        self._observer.round_done(row)
        return extra

    def test_figures(self, state: AdapterState) -> Mapping[str, Metrics] | None:
        """What was found last, on each site's rows and on all, if it is of this model and of test
        rows: they need not be gone through again."""
        if self._latest is None or self._part != "test" or self._latest[0] != state.digest():
            return None
        return self._latest[1]

    def _evaluate(self, outcome: RoundResult) -> dict[str, Any]:
        judged = global_metrics(
            self._context, self._workspace, outcome.state, self._part, run=outcome.run
        )
        self._latest = outcome.state.digest(), judged
        figures = dict(judged)
        found: dict[str, Any] = {
            **figures.pop(POOLED),
            "sites": {name: dict(row) for name, row in figures.items()},
            "evaluated_on": self._part,
        }
        if self._sample:
            where = (self._context, self._workspace, outcome.state, self._sample)
            found["train"] = dict(train_figures(*where, run=outcome.run))
        return {**found, "seen_by": seen_by(found, outcome.row.get("released"))}
