"""What a run's figures by round say: whether the gap between losses grew, and when it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_GREW_BY, _OF_LOSS = 0.02, 0.1
"""A gap counts as grown where it is larger than the smallest before by this much, and by this part
of the loss on held-out rows: figures on a few hundred rows move by less from round to round."""


def fit_of(history: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last round's losses on training and held-out rows, and whether their gap grows.

    None where no round was judged on both. ``gap``: what the loss is higher by on held-out rows;
    ``smallest_gap``: the least of any round up to the last, which was that of ``smallest_round``.
    """
    judged = [row for row in history if "train" in row and "loss" in row]
    if not judged:
        return None
    gaps = {row["round"]: row["loss"] - row["train"]["loss"] for row in judged}
    last = judged[-1]
    least = min(gaps, key=lambda number: (gaps[number], number))
    grown = gaps[last["round"]] - gaps[least]
    return {
        "train_loss": last["train"]["loss"],
        "held_out_loss": last["loss"],
        "held_out": last["evaluated_on"],
        "gap": gaps[last["round"]],
        "smallest_gap": gaps[least],
        "smallest_round": least,
        "grows": grown >= max(_GREW_BY, _OF_LOSS * last["loss"]),
    }


def fit_line(fit: Mapping[str, Any] | None) -> str | None:
    """A line on a gap that grows; None where there is nothing to say."""
    if fit is None or not fit["grows"]:
        return None
    return (
        f"loss {fit['train_loss']:.3f} on training rows and {fit['held_out_loss']:.3f} on "
        f"{fit['held_out']} rows: the gap grew from {fit['smallest_gap']:.3f} (round "
        f"{fit['smallest_round']}) to {fit['gap']:.3f}. Fewer rounds, train.weight_decay or "
        "train.label_smoothing are against overfitting"
    )


def stopped_line(stopped: Mapping[str, Any] | None) -> str | None:
    """A line on when a run stopped and whose round's model it is; None where nothing was judged."""
    if stopped is None:
        return None
    who = {"told": "figures that sites told with noise", "researcher": "the researcher's figures"}
    done, planned, kept = stopped["after"], stopped["planned"], stopped["kept_round"]
    ran = f"stopped after round {done} of {planned}" if done < planned else f"ran {done} rounds"
    return f"{ran}; the model is that of round {kept}, by {who[stopped['by']]}"


def forgetting_line(found: Mapping[str, Any] | None) -> str | None:
    """A line on the probe of other texts; None where there was none."""
    if found is None:
        return None
    return (
        f"on {found['texts']} public texts of another kind ({found['probe']}): accuracy "
        f"{found['accuracy_before']:.3f} before training and {found['accuracy_after']:.3f} after; "
        f"features moved by {found['drift']:.4f} (1 - cosine)"
    )
