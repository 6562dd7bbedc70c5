"""Which Flower node is which site: asked once, before the first round."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from hushtune.common.errors import FederationError, MessageError, QuorumError
from hushtune.common.roll_call_messages import decode_site, encode_hello

_POLL_SECONDS = 0.5
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RollCall:
    """Nodes by site, sorted by name, and the reason for each site that is not there."""

    nodes: Mapping[str, int]
    missing: Mapping[str, str]


def call_roll(
    grid: Grid,
    expected: Collection[str],
    *,
    quorum: int,
    connect_timeout: float,
    answer_timeout: float,
) -> RollCall:
    """Wait for as many nodes as there are sites, and ask each which site it is.

    Goes on without sites that do not connect in ``connect_timeout`` seconds or that fail, as long
    as ``quorum`` sites are there; otherwise QuorumError. Two nodes of one site, or a site that the
    run does not know, raise FederationError.
    """
    nodes = _wait_for_nodes(grid, len(expected), connect_timeout)
    questions = [
        Message(encode_hello(), dst_node_id=node, message_type="query", group_id="roll call")
        for node in nodes
    ]
    found: dict[str, int] = {}
    failures: dict[int, str] = {}
    for reply in grid.send_and_receive(questions, timeout=answer_timeout) if questions else ():
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise MessageError(reply.error.reason or "failed without a reason")
            site = decode_site(reply.content)
        except MessageError as error:
            failures[node] = str(error)[:300]
            continue
        _check_known(site, expected)
        if found.setdefault(site, node) != node:
            raise FederationError(
                f"two nodes say that they are site {site}",
                given=f"nodes {found[site]} and {node}",
                remedy="give each node a site of its own",
            )
    failures |= {n: "no answer" for n in nodes if n not in failures and n not in found.values()}
    return _judge(found, expected, failures, quorum)


def _wait_for_nodes(grid: Grid, number: int, timeout: float) -> list[int]:
    deadline = time.monotonic() + timeout
    nodes = sorted(grid.get_node_ids())
    while len(nodes) < number and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        nodes = sorted(grid.get_node_ids())
    return nodes


def _check_known(site: str, expected: Collection[str]) -> None:
    if site not in expected:
        raise FederationError(
            "a node stands for a site that the run does not know",
            given=site[:100],
            expected=", ".join(sorted(expected)),
            remedy="add the site to data.public_sizes, or stop its node",
        )


def _judge(
    found: Mapping[str, int], expected: Collection[str], failures: Mapping[int, str], quorum: int
) -> RollCall:
    why = "; ".join(f"node {node}: {reason}" for node, reason in sorted(failures.items()))
    absent = sorted(set(expected) - set(found))
    if len(absent) == len(failures) == 1:  # then it is plain which site the node stands for
        why = next(iter(failures.values()))
    reason = f"not connected ({why})" if why else "not connected"
    missing = dict.fromkeys(absent, reason)
    if len(found) < quorum:
        raise QuorumError(
            "fewer sites are there than the quorum",
            given=f"{len(found)} of {len(expected)}; missing: {', '.join(missing)}"
            + (f"; {why}" if why else ""),
            expected=f"at least {quorum} (simulation.quorum)",
            remedy="mend what the sites say, and run again",
        )
    if missing:
        log.warning("going on without %s: %s", ", ".join(missing), reason)
    return RollCall({site: found[site] for site in sorted(found)}, missing)
