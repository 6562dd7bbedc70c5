"""What a round made of a checkpoint, whichever way the sites' answers were joined."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hushtune.common.adapter import AdapterState
from hushtune.server.aggregation.central_dp import Memory
from hushtune.server.aggregation.optimizers import AggState
from hushtune.server.checkpoint import Checkpoint, Row
from hushtune.server.spending import Rows


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What a round's exchange with the sites made of a checkpoint.

    ``accepted`` are the sites that are in the new ``state``, ``rejected`` says why others are not
    (both empty where who was drawn is a secret).
    ``noise`` says of each who added noise where it came from. ``exchanges``: messages that a site
    was sent. ``bias``: how far the rule's average is from that of the sites' models, by module;
    None where that is not known. ``seconds``: of training and of aggregation. With the noise at
    the server, ``central`` is what it remembers, and ``ledger`` its own charges.
    """

    state: AdapterState
    agg: AggState
    rejected: Mapping[str, str]
    noise: Mapping[str, str]
    charges: Rows
    refusals: Rows
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float]
    accepted: tuple[str, ...]
    exchanges: int = 1
    bias: Mapping[str, float] | None = None
    central: Memory | None = None
    ledger: tuple[Row, ...] = ()


def lost(now: Checkpoint, sites: Iterable[str]) -> Joined:
    """A round that was begun before the server stopped, and whose steps are not asked for again.

    What sites had charged for them stays charged.
    """
    return Joined(
        state=now.state,
        agg=now.agg,
        accepted=(),
        rejected=dict.fromkeys(sites, "the server stopped in this round, whose steps are lost"),
        noise={},
        charges=now.charges,
        refusals=now.refusals,
        bytes_down=0,
        bytes_up=0,
        exchanges=0,
        seconds={"training": 0.0, "aggregation": 0.0},
        central=now.central,
        ledger=now.ledger,
    )
