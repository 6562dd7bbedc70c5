"""The statement of a run whose noise a trusted server added: one promise, about whole clients.

`server_statement` makes the content of `privacy.json`; `sections` says the same in words, for
`privacy.md` and `privacy.html` alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.pages import page_environment
from hushtune.common.privacy import accountant
from hushtune.common.privacy.figures import (
    at_least,
    at_most,
    bounded,
    epsilon_text,
    number_text,
    rounds_text,
    upwards,
)
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan, Relation
from hushtune.common.privacy.statement import (
    EVERY_CLIENT,
    NOT_COVERED,
    SELECTION,
    libraries,
)
from hushtune.common.privacy.statement_accounts import CURVE_DELTAS, GROUP_SIZES, events_told
from hushtune.common.privacy.statement_markdown import plain
from hushtune.common.version import source_commit

TRUSTED = (
    "Every client has to trust the server. Its updates reach the server in the clear and without "
    "noise; the server, and whoever gets into it or onto the way to it, can learn from them what "
    "the client's records are. Nothing here promises anything against the server itself."
)
MECHANISM = (
    "at the server: each client's update clipped over all trained tensors jointly, summed with "
    "equal weights, Gaussian noise on the sum, a public denominator that drop-outs leave as it is"
)
RELEASED = (
    "the global adapter after each round, sent to the clients and saved as the result",
    "everything computed from those: predictions, merged models, checkpoints' adapters",
)
CLIP_RELEASED = "the clip norm of each round, which follows a noised count of clients"
_OWN_OF_SITES = ("that the site took part", "the public numbers themselves")
NOT_OF_CLIENTS = (
    "the updates, which the server receives in the clear",
    "which clients answered, who failed and why, and how long a round took",
    "the list of the clients, their number and the settings: all of it is public",
    "what other runs released of the same clients: the server's ledger is this run's own. Their "
    "events add up, in any accountant",
)
SECRET_DRAWS = (
    "who was drawn for a round: the figures count on it that the server keeps this to itself. A "
    "client knows of its own draws, and of no other's"
)
SECRET_NOISE = (
    "the server's checkpoint while the run goes on: it holds noise that later rounds take back, "
    "and whoever reads it can take that off the model (the finished run's holds none)"
)


@dataclass(frozen=True, kw_only=True)
class ServerStatement:
    """What a server released in one run, and how.

    ``ledger``: its charges, chained. ``clip_norms``: of each round, in order. ``turns``: rounds
    from one of a client's turns to the next, None where all are drawn alike. ``sites``: each
    client's public number of records.
    """

    plan: PrivacyPlan
    ledger: Sequence[Mapping[str, Any]]
    sites: Mapping[str, int]
    rounds_planned: int
    clip_norms: Sequence[float]
    quantile: float | None
    turns: int | None
    noise_secure: bool
    noise_source: str


def server_statement(run: str, told: ServerStatement) -> dict[str, Any]:
    """Everything about the privacy of a run under trust = server, JSON-ready."""
    plan = told.plan
    events = [LedgerEntry.from_dict(row).release for row in told.ledger]
    delta, relation = plan.delta, plan.relation

    def spent(of: Relation = relation, at: float = delta) -> float | None:
        return bounded(accountant.epsilon(events, delta=at, relation=of))

    guarantee = told.noise_secure and spent() is not None
    epsilon = spent() if guarantee else None
    last = len(told.clip_norms)
    server = {
        "clients": len(told.sites),
        "epsilon": epsilon,
        "delta": delta,
        "epsilon_by_relation": {str(kind): spent(kind) for kind in Relation},
        "epsilon_by_clients": {
            str(count): bounded(accountant.epsilon_group(events, delta=delta, records=count))
            for count in GROUP_SIZES
        },
        "epsilon_rdp": bounded(accountant.epsilon_rdp(events, delta=delta)),
        "curve": [
            {"delta": at, "epsilon": spent(at=at)} for at in sorted({*CURVE_DELTAS, delta})[::-1]
        ],
        "planned_epsilon": plan.epsilon,
        "rounds": last,
        "rounds_planned": told.rounds_planned,
        "sampling": _sampling(told),
        "sampling_probability": plan.sampling_probability,
        "noise_multiplier": plan.noise_multiplier,
        "denominator": plan.denominator,
        "clip_norms": list(told.clip_norms),
        "clipping_quantile": told.quantile,
        "client_turns": told.turns,
        "noise": {"secure": told.noise_secure, "source": told.noise_source},
        "ledger": [dict(row) for row in told.ledger],
        "ledger_head": told.ledger[-1]["hash"] if told.ledger else "",
        "events": events_told(events),
    }
    return {
        "run": run,
        "trust": str(plan.trust),
        "unit": str(plan.unit),
        "group": None,
        "relation": str(relation),
        "accountant": accountant.ACCOUNTANT,
        "guarantee": guarantee,
        "mechanism": MECHANISM,
        "selection": SELECTION,
        "ended_early": None,
        "sentence": _sentence(told, epsilon, last),
        "trusted": TRUSTED,
        "server": server,
        "sites": {
            name: {"epsilon": epsilon, "delta": delta, "public_size": size, "guarantee": guarantee}
            for name, size in sorted(told.sites.items())
        },
        "federation": {"epsilon": epsilon, "delta": delta},
        "covered": [*RELEASED, *((CLIP_RELEASED,) if told.quantile is not None else ())],
        "not_covered": [
            *NOT_OF_CLIENTS,
            *((SECRET_DRAWS,) if plan.sampling_probability < 1 else ()),
            *((SECRET_NOISE,) if told.turns is not None else ()),
            *(line for line in NOT_COVERED if not line.startswith(_OWN_OF_SITES)),
        ],
        "source_commit": source_commit(),
        "libraries": libraries(),
    }


def _sampling(told: ServerStatement) -> str:
    rate = told.plan.sampling_probability
    if told.turns is not None:
        return f"fixed turns: each client in one round of {told.turns}, by its place in the list"
    if rate < 1:
        return f"Poisson, by the server in secret: each client with probability {at_most(rate)}"
    return EVERY_CLIENT


def _sentence(told: ServerStatement, epsilon: float | None, last: int) -> str:
    if not told.noise_secure:
        return (
            "NO PRIVACY: the noise of the server can be reproduced from a seed, so what it "
            "released is not protected."
        )
    if epsilon is None:
        return "NO PRIVACY: no bound is known for what the server released."
    if not told.ledger:
        return "Nothing was released by the server, so nothing about its clients was disclosed."
    change = {
        Relation.ADD_OR_REMOVE_ONE: "adding or removing all data of one client",
        Relation.REPLACE_ONE: "replacing all data of one client",
    }[told.plan.relation]
    return (
        f"For neighbouring federations that differ by {change} among the {len(told.sites)} of a "
        f"public list, everything that the server released in {rounds_text(1, last)} to the "
        f"clients and the public is ({upwards(epsilon)}, {at_most(told.plan.delta)})-DP. The "
        "clients have to trust the server, which receives their updates in the clear."
    )


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page: a paragraph, lines, and a table of two columns."""

    title: str
    text: str = ""
    lines: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()


def sections(content: Mapping[str, Any]) -> list[Section]:
    """What both pages say, in order, from what `server_statement` returned."""
    server = content["server"]
    early = content["ended_early"]
    found = [
        Section(title="What is promised", text=content["sentence"]),
        *((Section(title="The run ended early", text=f"{early}."),) if early else ()),
        Section(title="Whom the clients trust", text=content["trusted"]),
        Section(title="How", rows=_how(content)),
    ]
    if content["guarantee"]:
        found += [
            Section(
                title="Epsilon read in other ways",
                rows=[
                    *(
                        (kind.replace("_", " "), epsilon_text(value))
                        for kind, value in server["epsilon_by_relation"].items()
                    ),
                    *(
                        (f"{count} clients together, added or removed", epsilon_text(value))
                        for count, value in server["epsilon_by_clients"].items()
                        if count != "1"
                    ),
                    ("adding or removing, by the Rényi bound", epsilon_text(server["epsilon_rdp"])),
                    *(
                        (f"at delta {at['delta']:g}", epsilon_text(at["epsilon"]))
                        for at in server["curve"]
                    ),
                ],
            ),
            Section(title="What the server released, and is covered", lines=content["covered"]),
            Section(title="What is not covered", lines=content["not_covered"]),
            Section(
                title="How to verify this",
                text="The command hushtune ledger verify DIR --head HASH, with DIR the run's "
                "folder and HASH the last hash above, checks the server's charges, which its "
                "checkpoint holds. privacy.json holds them too (server.ledger). Each one's hash is "
                "the SHA-256 of its other fields as JSON with sorted keys and no spaces, and holds "
                "the hash of the charge before it. Give the events to any accountant of "
                "differential privacy: each is so many steps of a Gaussian mechanism with that "
                "noise multiplier and sensitivity 1, on a Poisson sample of the clients with that "
                "probability, composed.",
                rows=[
                    (
                        f"{event['count']} times {event['steps']} step",
                        f"probability {event['sampling_probability']}, noise multiplier "
                        f"{event['noise_multiplier']}",
                    )
                    for event in server["events"]
                ],
            ),
        ]
    versions = [f"{name} {number or 'absent'}" for name, number in content["libraries"].items()]
    commit = f"source commit {content['source_commit'] or 'unknown: a release, or no checkout'}"
    return [*found, Section(title="Software", lines=[*versions, commit])]


def _how(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    server, norms = content["server"], content["server"]["clip_norms"] or [0.0]
    moved = f"{number_text(norms[0])} at first, {norms[-1]:.4g} in the last round"
    return [
        ("unit", "one client: all that it holds"),
        ("relation", content["relation"].replace("_", " ")),
        ("clients", f"{server['clients']} (public)"),
        ("epsilon", epsilon_text(server["epsilon"]) if content["guarantee"] else "none: no bound"),
        ("delta", at_most(server["delta"])),
        ("rounds, of those planned", f"{server['rounds']} of {server['rounds_planned']}"),
        ("mechanism", content["mechanism"]),
        ("who takes part in a round", server["sampling"]),
        ("noise multiplier", at_least(server["noise_multiplier"])),
        (
            "noise",
            "independent in each round"
            if server["client_turns"] is None
            else "correlated over rounds (2405.13763); one event for the whole run",
        ),
        (
            "clip norm",
            number_text(norms[0])
            if server["clipping_quantile"] is None
            else f"{moved}: it follows the quantile {server['clipping_quantile']:g}, by a noised "
            "count that the noise multiplier pays for too",
        ),
        ("denominator", number_text(server["denominator"])),
        ("noise source", server["noise"]["source"]),
        ("choice of the model", content["selection"]),
        ("accountant", content["accountant"]),
        ("last hash of the server's ledger", server["ledger_head"] or "none"),
    ]


def server_markdown(content: Mapping[str, Any]) -> str:
    """The page `privacy.md` of such a run."""
    parts = ["# Privacy statement"]
    if not content["guarantee"]:
        parts.append("> **NO PRIVACY.** The server released models without any protection.")
    for section in sections(content):
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(plain(section.text))
        if section.lines:
            parts.append("\n".join(f"- {plain(line)}" for line in section.lines))
        if section.rows:
            table = (f"| {plain(what)} | {plain(value)} |" for what, value in section.rows)
            parts.append("\n".join(("| | |", "|---|---|", *table)))
    return "\n\n".join(parts) + "\n"


def server_html(content: Mapping[str, Any]) -> str:
    """The page `privacy.html` of such a run: UTF-8, self-contained, nothing to fetch."""
    environment = page_environment("hushtune.common.privacy")
    template = environment.get_template("statement_server.html.j2")
    return template.render(content, sections=sections(content))
