"""W by ``hushtune simulate``, with a clock at the places that the others have one.

    python benchmarks/w_hushtune.py [--without eager] -- simulate --preset bench-w ...

What follows ``--`` is hushtune's own command line, and its own command runs it. ``--without`` takes
away an optimisation that no setting turns off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from w_work import tell, tell_steps, timed


def clocked(place: Any, name: str, part: str, more: Callable[[Any], Any] | None = None) -> None:
    """Put a clock around a function of a module or class; ``more``: what it tells beside."""
    function = getattr(place, name)

    def around(*arguments: Any, **named: Any) -> Any:
        with timed(part) as told:
            found = function(*arguments, **named)
            told.update({} if more is None else more(found))
        return found

    setattr(place, name, around)


def put_clocks() -> None:
    """Local training; the look at the 400 rows; and what is written when the rounds are over."""
    from hushtune.client import rounds, train
    from hushtune.simulations import engine, study
    from hushtune.simulations.judge import Judge

    tell_steps()
    clocked(rounds, "train_locally", "training")
    clocked(train, "sum_for", "waiting")
    clocked(engine, "clipped_sums", "together")
    of_all = ("loss", "accuracy")
    clocked(Judge, "_evaluate", "evaluation", lambda row: {key: row[key] for key in of_all})
    for name in ("compare", "final_figures", "samples"):
        clocked(study, name, "report")
    clocked(study.outputs, "write_all", "report")


def without_eager() -> None:
    """Attention as transformers chooses it: fused, on a CPU."""
    from hushtune.common.tasks import base_model

    load = base_model._from_pretrained

    def fused(name: str, head: Any, labels: Any, own: Any, options: Any) -> Any:
        return load(name, head, labels, own, {**options, "attn_implementation": "sdpa"})

    base_model._from_pretrained = fused


def without_kept_weights() -> None:
    """Frozen weights and their inputs are rounded as autocast does it: each time anew."""
    from hushtune.common import lora

    lora.keep_rounded = lambda *_, **__: None


def without_side_by_side() -> None:
    """Rows that are only looked at are judged in shapes of their own, as told ones are."""
    from hushtune.common.tasks.supervised import Supervised

    figures = Supervised.figures

    def apart(self: Supervised, state: Any, rows: Any, *, apart: bool = True) -> Any:
        return figures(self, state, rows)

    Supervised.figures = apart


def without_page_out() -> None:
    """Frozen weights that lie packed stay in memory as they were too."""
    from hushtune.common import rounded_weights

    rounded_weights.page_out = lambda _: None


WITHOUT = {
    "eager": without_eager,
    "kept-weights": without_kept_weights,
    "side-by-side": without_side_by_side,
    "page-out": without_page_out,
}


def main(arguments: Sequence[str]) -> None:
    """Run hushtune's command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="*", default=[], choices=WITHOUT)
    at = list(arguments).index("--")
    options = parser.parse_args(arguments[:at])
    from hushtune.simulations import cli

    put_clocks()
    for name in options.without:
        WITHOUT[name]()
    import time

    import torch

    torch.set_num_threads(1)
    tell("imported", began=time.time())
    sys.argv = ["hushtune", *arguments[at + 1 :]]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1:])
