"""What the server sees of its sites: when, how many bytes, and who was turned away and why."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

CONNECTED_SECONDS = 45.0
"""A site that has asked for work within this time is connected; it asks every few
seconds, and sends a sign of life every half a minute."""

_MOST_REJECTIONS = 100
_LOG_EVERY = 30.0

Tell = Callable[..., None]
"""``tell(event, **fields)`` writes a line of the log."""


@dataclass
class SiteTraffic:
    """Of one site, since the server was started."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    last_seen: float | None = None


@dataclass(frozen=True)
class Rejection:
    """Why a request was not let in.

    ``reason``: "no key", "unknown key", "clock", "signature", "too large", "too slow", "too many",
    "no answer of its own"; ``key``: the first half of the key's sha256; ``seconds``: how far the
    sender's clock is behind ours, or the request's age.
    """

    reason: str
    key: str | None = None
    site: str | None = None
    seconds: float | None = None

    def words(self) -> str:
        """What the sender is told."""
        if self.reason == "clock":
            how = "behind" if (self.seconds or 0) > 0 else "ahead"
            return (
                f"the clock of this node is {abs(self.seconds or 0):.0f} s {how} of the server's; "
                "set it by a time server"
            )
        return {
            "no key": "the request does not name one node",
            "unknown key": "this node's key is not enrolled here",
            "signature": "the request is not signed by the key that it names",
            "too large": "the request is larger than the server takes",
            "too slow": "the request did not arrive in time",
            "too many": "this node has as many requests open as the server takes at once",
            "no answer of its own": "the message is not this node's answer to an order",
        }[self.reason]


@dataclass
class Watch:
    """Counts since the start, for the status page and the metrics; the newest rejections by who."""

    started: float
    tell: Tell
    sites: dict[str, SiteTraffic] = field(default_factory=dict[str, SiteTraffic])
    rejected: OrderedDict[tuple[str, str], dict[str, Any]] = field(
        default_factory=OrderedDict[tuple[str, str], dict[str, Any]]
    )
    rejections: dict[str, int] = field(default_factory=dict[str, int])

    def saw(self, site: str, *, now: float, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """A request of a site, or a part of the answer to it."""
        traffic = self.sites.setdefault(site, SiteTraffic())
        fresh = traffic.last_seen is None or now - traffic.last_seen > CONNECTED_SECONDS
        if fresh and not bytes_out:
            self.tell("connected", site=site)
        traffic.requests += 0 if bytes_out else 1
        traffic.bytes_in += bytes_in
        traffic.bytes_out += bytes_out
        traffic.last_seen = now

    def refused(self, rejection: Rejection, *, peer: str, now: float) -> None:
        """A request that was not let in; the log has one line in half a minute for each sender."""
        who = rejection.site or rejection.key or peer
        place = (rejection.reason, who)
        before = self.rejected.pop(place, {"count": 0, "logged": 0.0})
        self.rejections[rejection.reason] = self.rejections.get(rejection.reason, 0) + 1
        row = {
            "reason": rejection.reason,
            "site": rejection.site,
            "key": rejection.key,
            "peer": peer,
            "seconds": None if rejection.seconds is None else round(rejection.seconds, 1),
            "count": before["count"] + 1,
            "last": now,
            "logged": before["logged"],
        }
        if now - before["logged"] >= _LOG_EVERY:
            row["logged"] = now
            told = ("reason", "site", "key", "peer", "seconds", "count")
            self.tell("rejected", level="WARNING", **{name: row[name] for name in told})
        self.rejected[place] = row
        while len(self.rejected) > _MOST_REJECTIONS:
            self.rejected.popitem(last=False)

    def snapshot(self, *, now: float) -> Mapping[str, Any]:
        """All of it as JSON."""
        return {
            "started": self.started,
            "time": now,
            "sites": {
                name: {
                    "requests": traffic.requests,
                    "bytes_in": traffic.bytes_in,
                    "bytes_out": traffic.bytes_out,
                    "last_seen": traffic.last_seen,
                    "connected": traffic.last_seen is not None
                    and now - traffic.last_seen <= CONNECTED_SECONDS,
                }
                for name, traffic in sorted(self.sites.items())
            },
            "rejected": [
                {name: value for name, value in row.items() if name != "logged"}
                for row in reversed(self.rejected.values())
            ],
            "rejections": dict(sorted(self.rejections.items())),
        }
