"""The page `privacy.md`: a run's privacy statement as Markdown."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from hushtune.common.privacy.figures import at_least, at_most, epsilon_text, upwards


def render_markdown(content: Mapping[str, Any]) -> str:
    """The page `privacy.md` for what `statement` returned."""
    parts = [
        "# Privacy statement",
        *(() if content["guarantee"] else (_WARNING,)),
        f"Trust model `{content['trust']}`, unit `{content['unit']}`, relation "
        f"`{content['relation']}`. Accountant: {content['accountant']}.",
        f"Mechanism: {content['mechanism']}." if content["trust"] != "off" else "Mechanism: none.",
        *(_render_site(name, site) for name, site in content["sites"].items()),
    ]
    if content["guarantee"]:
        parts += [
            "## What is covered\n\n" + _bullets(content["covered"]),
            "## What is not covered\n\n" + _bullets(content["not_covered"]),
            "A site's figure is about the records of that site. Someone with records at two sites "
            "adds the two figures up.",
        ]
    versions = (f"{name} {number or 'absent'}" for name, number in content["libraries"].items())
    parts.append("## Software\n\n" + _bullets(versions))
    return "\n\n".join(parts) + "\n"


_WARNING = (
    "> **NO PRIVACY.** At least one site below released updates without any protection. Treat what "
    "came out of this run as if it contained that site's training records."
)


def _render_site(name: str, site: Mapping[str, Any]) -> str:
    rows = [
        ("epsilon", "none" if site["epsilon"] is None else upwards(site["epsilon"])),
        ("delta", at_most(site["delta"])),
        ("steps charged, of those planned", f"{site['steps']} of {site['planned']['steps']}"),
        ("sampling probability (Poisson)", at_most(site["sampling_probability"])),
        ("noise multiplier", at_least(site["noise_multiplier"])),
        ("clip norm", "none" if site["clip_norm"] is None else f"{site['clip_norm']:g}"),
        ("denominator", f"{site['denominator']:g}"),
        ("public number of records", f"{site['public_size']} ({site['public_size_source']})"),
        ("noise", site["noise"]["source"]),
        ("rounds charged whose update is not in the model", str(site["num_aborted"])),
        ("rounds answered again, not charged again", str(site["num_resent"])),
        ("last hash of the ledger", site["ledger_head"] or "none"),
    ]
    if site["guarantee"]:
        rows[1:1] = [
            *(
                (f"epsilon, {kind}", epsilon_text(e))
                for kind, e in site["epsilon_by_relation"].items()
            ),
            ("epsilon of all charges in this ledger", epsilon_text(site["epsilon_lifetime"])),
            *_limit(site["lifetime"]),
            *(
                (f"epsilon for one with {count} records", epsilon_text(e))
                for count, e in site["epsilon_by_records"].items()
            ),
        ]
        rows += [
            (f"epsilon at delta {at['delta']:g}", epsilon_text(at["epsilon"]))
            for at in site["curve"]
        ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    parts = [f"## Site {_plain(name)}", _plain(site["sentence"]), f"| | |\n|---|---|\n{table}"]
    if site["refusals"]:
        parts.append("Refused:\n\n" + _bullets(map(_plain, site["refusals"])))
    return "\n\n".join(parts)


def _limit(lifetime: Mapping[str, Any]) -> list[tuple[str, str]]:
    if lifetime["limit_epsilon"] is None:
        return []
    return [
        (
            f"of this data set's budget, at delta {at_most(lifetime['delta'])}",
            f"{epsilon_text(lifetime['epsilon'])} of {lifetime['limit_epsilon']:g}",
        )
    ]


def _plain(text: str) -> str:
    """A site's words on one line, and no markup of their own: they must not forge the page."""
    return html.escape(" ".join(text.split()), quote=False)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
