"""Forms of one model compared: their size, how long an answer takes, and whether they agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Targets, higher_is_better
from hushtune.common.tasks.objectives import Objective, Regression
from hushtune.common.tasks.objectives_tokens import IGNORED
from hushtune.simulations.edge_onnx import Inputs

MOST_CHANGED = 0.01
"""The share of answers that 8 bits may change before it is said aloud."""
FEWEST_CALLS = 30
"""A median of fewer answers says little; few rows are asked for more than once."""

Answers = NDArray[Any]
Run = Callable[[Inputs], NDArray[np.float32]]


@dataclass(frozen=True)
class Form:
    """One form of the model: its name, size in 10^6 bytes, and what answers for a batch."""

    name: str
    megabytes: float
    run: Run


Single = tuple[Inputs, Tensor | None]
"""One row's inputs, and its targets ``(1, ...)``; None of a row that is made up."""


@dataclass(frozen=True)
class Judge:
    """The answers in what a model puts out for a row, ``(a, ...)`` of outputs and targets, both
    ``(1, ...)``; which of them are the same, ``(a,)``; and what is counted, in words."""

    answers: Callable[[Tensor, Tensor], Answers]
    same: Callable[[Answers, Answers], Answers] = np.equal
    counted: str = "the test rows"


@dataclass(frozen=True)
class FormFigures:
    """``value`` and ``agreement`` (with the first form) are None where there are no rows."""

    form: str
    megabytes: float
    milliseconds: float  # the median of single answers
    value: float | None
    agreement: float | None


CLASSES = Judge(lambda outputs, _: outputs.argmax(1).numpy())
SAME_NUMBER = 0.01
"""Of the range of targets: numbers that are closer are the same answer."""


def judge_of(task: TaskConfig) -> Judge:
    """How a kind's answers are compared: a class, a set of labels or a number a row; a tag a word;
    the next token at each place of an answer."""
    match task.of.targets:
        case Targets.NUMBER:
            low, high = task.bounds
            regression = Regression(low, high)
            return Judge(
                lambda outputs, _: regression.answers(outputs).numpy(),
                lambda left, right: np.abs(left - right) <= SAME_NUMBER * (high - low),
            )
        case Targets.CLASSES:
            return Judge(
                lambda outputs, _: (outputs > 0).numpy(),
                lambda left, right: (left == right).all(1),
            )
        case Targets.TAGS:
            return Judge(_of_tokens, counted="the words of the test rows")
        case Targets.ANSWER:
            return Judge(_of_tokens, counted="the answer tokens of the test rows")
        case _:
            return CLASSES


def _of_tokens(outputs: Tensor, targets: Tensor) -> Answers:
    return outputs.argmax(-1)[targets != IGNORED].numpy()


def compare(
    forms: Sequence[Form],
    rows: int,
    single: Callable[[int], Single],
    *,
    objective: Objective | None = None,
    metric: str = "accuracy",
    judge: Judge = CLASSES,
) -> list[FormFigures]:
    """Ask every form for every row, one row at a time and the forms in turn, on one thread.

    In turn, so that what else the machine does falls on all forms alike. ``objective``: what
    answers are held against as in a run; None where the row is made up.
    """
    seconds = {form.name: list[float]() for form in forms}
    figures = {form.name: list[Tensor]() for form in forms}
    answers = {form.name: list[Answers]() for form in forms}
    repeats = -(-FEWEST_CALLS // rows)
    with _one_thread(), torch.inference_mode():
        for form in forms:
            form.run(single(0)[0])  # the first call of a form takes longer
        for repeat in range(repeats):
            for inputs, targets in map(single, range(rows)):
                for form in forms:
                    begun = time.perf_counter()
                    logits = form.run(inputs)
                    seconds[form.name].append(time.perf_counter() - begun)
                    if repeat or objective is None or targets is None:
                        continue
                    outputs = _outputs(logits, targets)
                    figures[form.name].append(objective.figures(outputs, targets))
                    answers[form.name].append(judge.answers(outputs, targets))
    found: list[FormFigures] = []
    for form in forms:
        value = agreement = None
        if objective is not None:
            given, first = (np.concatenate(answers[one.name]) for one in (form, forms[0]))
            value = objective.scores(torch.cat(figures[form.name]))[metric]
            agreement = float(np.mean(judge.same(given, first)))
        size, median = form.megabytes, float(np.median(seconds[form.name]))
        found.append(
            FormFigures(form.name, round(size, 3), round(1e3 * median, 4), value, agreement)
        )
    return found


def _outputs(logits: NDArray[np.float32], targets: Tensor) -> Tensor:
    """As an objective takes them: of an answer's tokens at their places, which are the last."""
    outputs = torch.from_numpy(logits)
    return outputs[:, -targets.shape[1] :] if outputs.dim() == 3 else outputs


def report(
    figures: Sequence[FormFigures],
    *,
    rows: int,
    why_no_rows: str,
    largest_difference: float,
    metric: str = "accuracy",
    judge: Judge = CLASSES,
) -> Mapping[str, Any]:
    """What ``edge.json`` holds; ``warning`` is "" unless more than ``MOST_CHANGED`` changed."""
    last = figures[-1].agreement
    changed = None if last is None else round(1 - last, 12)  # 1 - 0.99 is more than 0.01
    warning = ""
    if changed is not None and changed > MOST_CHANGED:
        warning = (
            f"{figures[-1].form} answers {changed:.1%} of {judge.counted} otherwise than the model "
            f"in {figures[0].form}: more than {MOST_CHANGED:.0%}"
        )
    return {
        "figure": metric,
        "higher_is_better": higher_is_better(metric),
        "forms": [asdict(one) for one in figures],
        "test_rows": rows,
        "why_no_test_rows": why_no_rows,
        "changed": changed,
        "most_changed": MOST_CHANGED,
        "warning": warning,
        "largest_difference": largest_difference,
        "threads": 1,
    }


@contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
