"""One exchange of a secure sum: the same question to many sites, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hushtune.common.errors import HushtuneError
from hushtune.server.replies import content_bytes, each_once, refusal_row, refusal_words, short
from hushtune.server.traffic import RefusedError, Traffic, content_of

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Line:
    """The way to the sites: their nodes by name, seconds to wait, and where traffic is noted."""

    grid: Grid
    nodes: Mapping[str, int]
    timeout: float
    traffic: Traffic

    def ask(
        self,
        action: str,
        contents: Mapping[str, RecordDict],
        read: Callable[[str, RecordDict], _T],
        *,
        group: str,
    ) -> dict[str, _T]:
        """What each site answers, by name and sorted; why others do not is noted."""
        messages = [
            Message(
                content,
                dst_node_id=self.nodes[site],
                message_type=f"train.{action}",
                group_id=group,
            )
            for site, content in contents.items()
            if site in self.nodes
        ]
        sites = {self.nodes[site]: site for site in contents if site in self.nodes}
        traffic, found = self.traffic, dict[str, _T]()
        traffic.exchanges += 1
        traffic.bytes_down += sum(content_bytes(message.content) for message in messages)
        answers = list(self.grid.send_and_receive(messages, timeout=self.timeout))
        for message in each_once(answers):
            site = sites.pop(message.metadata.src_node_id, None)
            if site is None:  # unasked, or a second answer
                continue
            if message.has_content():
                traffic.bytes_up += content_bytes(message.content)
            try:
                found[site] = read(site, content_of(message))
            except RefusedError as refused:
                traffic.lost[site] = refusal_words(refused.refusal)
                traffic.refusals[site] = refusal_row(refused.refusal, refused.refusal.round)
            except HushtuneError as error:
                traffic.lost[site] = short(f"rejected: {error.message}")
        for site in contents:
            if site not in found:
                absent = "no answer" if site in self.nodes else "not connected"
                traffic.lost.setdefault(site, absent)
        return dict(sorted(found.items()))
