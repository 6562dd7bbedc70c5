"""The statement of a federation: who took part, what each site says that it spent, and who signed.

``federation_statement`` makes the document that the coordinator signs; ``federation_markdown`` and
``federation_html`` make pages of it, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.handover_messages import Receipt
from hushtune.common.pages import page_environment
from hushtune.common.privacy.figures import at_most, epsilon_text, spans
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.privacy.statement_markdown import plain
from hushtune.common.privacy.statement_sentence import unit_word
from hushtune.common.privacy.statement_software import libraries
from hushtune.common.signed_files import KIND
from hushtune.common.version import source_commit

FEDERATION_STATEMENT = "federation statement"
"""The kind of the document."""
SIGNED, SHOWN, BY_SERVER = (
    "signed by the site",
    "charges shown to the server",
    "the server's own charges",
)
"""Where the figures of a site come from."""
SECRET = "not told: who was drawn for a round is a secret that the promise counts on"
_PROMISE = (
    "Each site's figures are of its own statement, made from its own ledger and signed by it: an "
    "upper bound of what everything that the site released in this run tells of one {unit} there."
)
_UNSIGNED = (
    "Of {sites} there is no receipt. What is told of {them} follows from the charges that the "
    "server was shown: what was charged and never reached the server is not in it, so the site may "
    "have spent more."
)
_NONE = "NO PRIVACY: at least one site released updates without protection, or without a bound."


@dataclass(frozen=True, kw_only=True)
class SiteEntry:
    """What the coordinator knows of one site.

    ``rounds``: in which its answer was used, None where that is a secret. ``receipt``: checked;
    None where there is none, and ``missing`` says why. ``epsilon_shown``: of the charges that the
    server was shown, None without a bound; ``charges_shown``: how many these are.
    """

    sign_key: str
    rounds: Sequence[int] | None
    num_refusals: int
    receipt: Receipt | None
    missing: str
    epsilon_shown: float | None
    charges_shown: int
    last_shown: str


@dataclass(frozen=True, kw_only=True)
class RunTold:
    """What is the same for all sites; hashes are sha256, of the settings' text and the model."""

    federation: str
    run: str
    config: str
    model: str
    rounds: int
    plan: PrivacyPlan
    group: str | None
    server: Mapping[str, Any] | None = None


def federation_statement(run: RunTold, sites: Mapping[str, SiteEntry]) -> dict[str, Any]:
    """The document, JSON-ready; epsilon is None where nothing is promised."""
    told = {name: _site(run, sites[name]) for name in sorted(sites)}
    guarantee = bool(told) and all(site["guarantee"] for site in told.values())
    return {
        KIND: FEDERATION_STATEMENT,
        "federation": run.federation,
        "run": run.run,
        "config": run.config,
        "model": run.model,
        "rounds": run.rounds,
        "trust": str(run.plan.trust),
        "unit": str(run.plan.unit),
        "group": run.group,
        "relation": str(run.plan.relation),
        "guarantee": guarantee,
        "epsilon": max(site["epsilon"] for site in told.values()) if guarantee else None,
        "delta": max((site["delta"] for site in told.values()), default=run.plan.delta),
        "sites": told,
        "without_receipt": [name for name, site in told.items() if site["receipt"] is None],
        "server": None if run.server is None else dict(run.server),
        "software": {"source_commit": source_commit(), **libraries()},
    }


def _site(run: RunTold, site: SiteEntry) -> dict[str, Any]:
    receipt = site.receipt
    if receipt is not None:
        figures = {
            "epsilon": receipt.epsilon,
            "delta": receipt.delta,
            "guarantee": receipt.guarantee and receipt.epsilon is not None,
            "source": SIGNED,
        }
    else:
        bound = site.epsilon_shown if run.plan.is_private else None
        figures = {
            "epsilon": bound,
            "delta": run.plan.delta,
            "guarantee": bound is not None,
            "source": BY_SERVER if run.server is not None else SHOWN,
        }
    return {
        **figures,
        "rounds": None if site.rounds is None else list(site.rounds),
        "num_refusals": site.num_refusals,
        "sign_key": site.sign_key,
        "receipt": None if receipt is None else receipt.to_dict(),
        "missing": site.missing,
        "shown": {
            "epsilon": site.epsilon_shown,
            "num_charges": site.charges_shown,
            "last": site.last_shown,
        },
    }


@dataclass(frozen=True)
class _Line:
    """A site's row of the table, in words."""

    name: str
    rounds: str
    epsilon: str
    delta: str
    source: str
    alarm: bool


def _lines(content: Mapping[str, Any]) -> list[_Line]:
    return [
        _Line(
            name=name,
            rounds="secret" if site["rounds"] is None else _spans(site["rounds"]),
            epsilon=epsilon_text(site["epsilon"]),
            delta=at_most(site["delta"]),
            source=site["source"] + ("" if site["receipt"] else f" ({site['missing']})"),
            alarm=site["receipt"] is None or not site["guarantee"],
        )
        for name, site in content["sites"].items()
    ]


def _spans(rounds: Sequence[int]) -> str:
    return spans(rounds) if rounds else "none"


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is the same for all sites, in words."""
    unit = content["unit"] + (f", column {content['group']}" if content["group"] else "")
    told = [
        ("run", content["run"]),
        ("rounds", str(content["rounds"])),
        ("trust model", content["trust"]),
        ("unit", unit),
        ("relation", content["relation"].replace("_", " ")),
        ("sha256 of the model", content["model"]),
        ("sha256 of the settings", content["config"]),
    ]
    if content["server"] is not None:
        told.append(
            ("last hash of the server's ledger", content["server"]["ledger_head"] or "none")
        )
    if any(site["rounds"] is None for site in content["sites"].values()):
        told.append(("rounds of each site", SECRET))
    return told


def _notes(content: Mapping[str, Any]) -> list[str]:
    """What is to be known beside the figures."""
    absent = content["without_receipt"]
    one = len(absent) == 1
    return [
        _PROMISE.format(unit=unit_word(content["unit"])),
        *(
            (_UNSIGNED.format(sites=", ".join(absent), them="it" if one else "each of them"),)
            if absent and content["server"] is None
            else ()
        ),
    ]


def _hashes(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Of each site with a receipt: its statement, its ledger's last charge, the number of them."""
    return [
        (name, told["statement"], told["ledger_head"] or "no ledger", str(told["num_charges"]))
        for name, site in content["sites"].items()
        if (told := site["receipt"])
    ]


def federation_markdown(content: Mapping[str, Any], *, signature: str, sign_key: str) -> str:
    """The page ``statement.md``."""

    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        lines = [heads, ["---"] * len(heads), *rows]
        return "\n".join(f"| {' | '.join(plain(cell) for cell in row)} |" for row in lines)

    lines = [
        [line.name, line.rounds, line.epsilon, line.delta, line.source] for line in _lines(content)
    ]
    most = [
        "**largest of any site**",
        "",
        epsilon_text(content["epsilon"]),
        at_most(content["delta"]),
        "",
    ]
    total = f"| {' | '.join(most)} |"
    parts = [
        f"# Statement of the federation {plain(content['federation'])}",
        *(() if content["guarantee"] else (f"> **{_NONE}**",)),
        *map(plain, _notes(content)),
        table(("Site", "Rounds", "Epsilon", "Delta", "By"), lines) + "\n" + total,
        "## The run\n\n" + table(("What", "Which"), _facts(content)),
        "## What the sites have signed\n\n"
        + table(
            ("Site", "sha256 of its statement", "Last charge of its ledger", "Charges"),
            _hashes(content),
        ),
        "## Signature\n\n" + plain(f"By the coordinator's key {sign_key}: {signature}"),
        "`hushtune verify DIR` checks this folder, each receipt and each signature in it.",
    ]
    return "\n\n".join(parts) + "\n"


def federation_html(content: Mapping[str, Any], *, signature: str, sign_key: str) -> str:
    """The page ``statement.html``: UTF-8, self-contained, nothing to fetch."""
    environment = page_environment("hushtune.common.privacy")
    return environment.get_template("statement_federation.html.j2").render(
        content,
        lines=_lines(content),
        facts=_facts(content),
        notes=_notes(content),
        hashes=_hashes(content),
        none=_NONE,
        most=(epsilon_text(content["epsilon"]), at_most(content["delta"])),
        signature=signature,
        sign_key=sign_key,
    )
