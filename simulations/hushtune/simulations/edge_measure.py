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

from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Targets
from hushtune.common.tasks.objectives import Regression
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


@dataclass(frozen=True)
class Judge:
    """How answers of a kind of model are read from logits ``(1, ...)``, how good they are, and
    which of them are the same, ``(n,)``."""

    figure: str
    answer: Callable[[NDArray[np.float32]], Any]
    value: Callable[[Answers, Answers], float]
    same: Callable[[Answers, Answers], Answers] = np.equal


@dataclass(frozen=True)
class FormFigures:
    """``value`` and ``agreement`` (with the first form) are None where there are no rows."""

    form: str
    megabytes: float
    milliseconds: float  # the median of single answers
    value: float | None
    agreement: float | None


def _label(logits: NDArray[np.float32]) -> int:
    return int(logits[0].argmax())


def _share(left: Answers, right: Answers) -> float:
    return float(np.mean(left == right))


CLASSES = Judge("accuracy", _label, _share)
SAME_NUMBER = 0.01
"""Of the range of targets: numbers that are closer are the same answer."""


def judge_of(task: TaskConfig) -> Judge:
    """How a kind's answers are judged: classes; several labels; or numbers."""
    if task.of.targets is Targets.NUMBER:
        low, high = task.bounds
        regression = Regression(low, high)
        return Judge(
            "rmse",
            lambda logits: float(regression.answers(torch.from_numpy(logits))[0]),
            lambda given, targets: float(np.sqrt(np.mean((given - targets) ** 2))),
            lambda left, right: np.abs(left - right) <= SAME_NUMBER * (high - low),
        )
    if task.of.targets is Targets.CLASSES:
        return Judge(
            "label_accuracy",
            lambda logits: logits[0] > 0,
            _share,
            lambda left, right: (left == right).all(1),
        )
    return CLASSES


def compare(
    forms: Sequence[Form],
    singles: Sequence[Inputs],
    targets: Answers | None,
    *,
    judge: Judge = CLASSES,
) -> list[FormFigures]:
    """Ask every form for every row, one row at a time and the forms in turn, on one thread.

    In turn, so that what else the machine does falls on all forms alike. ``targets``: the right
    answers, or None where the rows are made up.
    """
    seconds = {form.name: list[float]() for form in forms}
    answers = {form.name: list[Any]() for form in forms}
    repeats = -(-FEWEST_CALLS // len(singles))
    with _one_thread(), torch.inference_mode():
        for form in forms:
            form.run(singles[0])  # the first call of a form takes longer
        for repeat in range(repeats):
            for inputs in singles:
                for form in forms:
                    begun = time.perf_counter()
                    logits = form.run(inputs)
                    seconds[form.name].append(time.perf_counter() - begun)
                    if not repeat:
                        answers[form.name].append(judge.answer(logits))
    first = np.asarray(answers[forms[0].name])
    found: list[FormFigures] = []
    for form in forms:
        given = np.asarray(answers[form.name])
        found.append(
            FormFigures(
                form.name,
                round(form.megabytes, 3),
                round(1e3 * float(np.median(seconds[form.name])), 4),
                None if targets is None else judge.value(given, targets),
                None if targets is None else float(np.mean(judge.same(given, first))),
            )
        )
    return found


def report(
    figures: Sequence[FormFigures],
    *,
    rows: int,
    why_no_rows: str,
    largest_difference: float,
    judge: Judge = CLASSES,
) -> Mapping[str, Any]:
    """What ``edge.json`` holds; ``warning`` is "" unless more than ``MOST_CHANGED`` changed."""
    last = figures[-1].agreement
    changed = None if last is None else round(1 - last, 12)  # 1 - 0.99 is more than 0.01
    warning = ""
    if changed is not None and changed > MOST_CHANGED:
        warning = (
            f"{figures[-1].form} answers {changed:.1%} of the test rows otherwise than the model "
            f"in {figures[0].form}: more than {MOST_CHANGED:.0%}"
        )
    return {
        "figure": judge.figure,
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
