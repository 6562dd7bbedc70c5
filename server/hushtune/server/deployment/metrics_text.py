"""A federation's status in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

Sample = tuple[Mapping[str, str], float]


def metrics_text(status: Mapping[str, Any]) -> str:
    """The metrics of what ``federation_status`` returned."""
    server, sites, run = status["server"], status["sites"], status["run"]
    until = server["certificate_until"]
    families: list[tuple[str, str, str, Sequence[Sample]]] = [
        ("server_up", "gauge", "Whether the server runs.", [({}, float(server["running"]))]),
        (
            "certificate_expiry_timestamp_seconds",
            "gauge",
            "When the first of the TLS certificates expires.",
            [] if until is None else [({}, datetime.fromisoformat(until).timestamp())],
        ),
        (
            "site_connected",
            "gauge",
            "Whether a site has asked for work lately.",
            _by_site(sites, "connected"),
        ),
        (
            "site_received_bytes_total",
            "counter",
            "Bytes received from a site since the server was started.",
            _by_site(sites, "bytes_in"),
        ),
        (
            "site_sent_bytes_total",
            "counter",
            "Bytes sent to a site since the server was started.",
            _by_site(sites, "bytes_out"),
        ),
        (
            "requests_rejected_total",
            "counter",
            "Requests that were not let in, by reason.",
            [({"reason": name}, float(n)) for name, n in sorted(status["rejections"].items())],
        ),
    ]
    if run is not None:
        name = {"run": str(run["name"])}
        loss = run["loss"]
        families += [
            ("run_round", "gauge", "Rounds that are over.", [(name, float(run["round"] or 0))]),
            ("run_rounds", "gauge", "Rounds of the run.", [(name, float(run["rounds"] or 0))]),
            (
                "run_status",
                "gauge",
                "1 for the status that the run has.",
                [({**name, "status": str(run["status"])}, 1.0)],
            ),
            (
                "run_loss",
                "gauge",
                "Mean held-out loss that the sites told last.",
                [] if loss is None else [(name, float(loss))],
            ),
            (
                "run_bytes_total",
                "counter",
                "Bytes of the run's messages.",
                [
                    ({**name, "direction": way}, float(run[f"bytes_{way}"]))
                    for way in ("down", "up")
                ],
            ),
            (
                "run_epsilon",
                "gauge",
                "Epsilon that a site has spent in the run.",
                _by_site(sites, "epsilon", name),
            ),
            (
                "run_refusals",
                "gauge",
                "Rounds in which a site's answer did not count.",
                _by_site([site for site in sites if site["in_run"]], "refusals", name),
            ),
        ]
    lines: list[str] = []
    for family, kind, help_text, samples in families:
        if samples:
            lines += [f"# HELP hushtune_{family} {help_text}", f"# TYPE hushtune_{family} {kind}"]
            lines += [
                f"hushtune_{family}{_labels(labels)} {value:.17g}" for labels, value in samples
            ]
    return "\n".join(lines) + "\n"


def _by_site(
    sites: Iterable[Mapping[str, Any]], key: str, labels: Mapping[str, str] | None = None
) -> list[Sample]:
    return [
        ({**(labels or {}), "site": str(site["name"])}, float(site[key]))
        for site in sites
        if site[key] is not None
    ]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    told = (f'{name}="{_escaped(value)}"' for name, value in sorted(labels.items()))
    return "{" + ",".join(told) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
