"""The page `privacy.md`: a run's privacy statement as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hushtune.common.privacy import statement_secure, statement_verify
from hushtune.common.privacy.figures import at_least, at_most, epsilon_text, number_text, upwards
from hushtune.common.privacy.statement_sentence import counted_word, unit_word

_SEVERAL = (
    "A site's figure is about the records of that site. Someone with records at two sites adds the "
    "two figures up."
)


def render_markdown(content: Mapping[str, Any]) -> str:
    """The page `privacy.md` for what `statement` returned."""
    common = shared_origin(content)
    parts = [
        "# Privacy statement",
        *(() if content["guarantee"] else (_WARNING,)),
        *((f"**{plain(content['ended_early'])}.**",) if content["ended_early"] else ()),
        f"Trust model `{content['trust']}`, unit `{content['unit']}`, relation "
        f"`{content['relation']}`. Accountant: {content['accountant']}."
        if content["trust"] != "off"
        else "Trust model `off`: no noise was added, and nothing was accounted for.",
        f"Mechanism: {content['mechanism']}.",
        *((f"Choice of the model: {content['selection']}.",) if content["guarantee"] else ()),
        *(
            (f"A group: all training records with one value of `{plain(content['group'])}`.",)
            if content["group"]
            else ()
        ),
        *(plain(alike["sentence"]) for alike in content["sentences"]),
        *((lost,) if (lost := statement_secure.lost(content["lost_rounds"])) else ()),
        *(
            (statement_secure.told(content["secure_sum"], content["unit"]),)
            if content["secure_sum"]
            else ()
        ),
        *(
            ()
            if common is None
            else (f"Public numbers of {counted_word(content['unit'])}s: {plain(common)}.",)
        ),
        *_render_sites(content["sites"], unit=content["unit"], origin=common is None),
    ]
    if content["guarantee"]:
        parts += [
            "## What is covered\n\n" + _bullets(content["covered"]),
            "## What is not covered\n\n" + _bullets(map(plain, content["not_covered"])),
            statement_secure.several(content["unit"]) if content["secure_sum"] else _SEVERAL,
            _verify(content),
        ]
    border = crossing(content)
    parts.append(
        "## What crosses a site's border\n\n"
        f"Out, beside the update: {'; '.join(border.out)}.\n\n"
        f"In, beside the adapter: {'; '.join(border.into)}."
    )
    versions = (f"{name} {number or 'absent'}" for name, number in content["libraries"].items())
    commit = f"source commit {content['source_commit'] or 'unknown: a release, or no checkout'}"
    parts.append("## Software\n\n" + _bullets([*versions, commit]))
    return "\n\n".join(parts) + "\n"


def shared_origin(content: Mapping[str, Any]) -> str | None:
    """Where the public numbers come from, to be told once; None where it differs between sites."""
    origins = {site["public_size_source"] for site in content["sites"].values()}
    return origins.pop() if len(origins) == 1 else None


class Crossing(NamedTuple):
    """What crosses any site's border: `out` beside an update, `into` beside an adapter."""

    out: Sequence[str]
    into: Sequence[str]


def crossing(content: Mapping[str, Any]) -> Crossing:
    """Of all sites together, each line once."""
    sites = content["sites"].values()
    return Crossing(
        list(dict.fromkeys(line for site in sites for line in site["released"]["declared"])),
        list(dict.fromkeys(line for site in sites for line in site["ordered"])),
    )


_MOST_SECTIONS = 12
"""With more sites than this, a page does not have a section for each."""
_WARNING = (
    "> **NO PRIVACY.** At least one site below released updates without any protection. Treat what "
    "came out of this run as if it contained that site's training records."
)


def _render_sites(sites: Mapping[str, Mapping[str, Any]], *, unit: str, origin: bool) -> list[str]:
    """A section each; of many sites one of what is the same at all, and one of what is not."""
    tables = {name: _table(site, unit, origin=origin) for name, site in sites.items()}
    if len(sites) <= _MOST_SECTIONS:
        return [
            "\n\n".join(
                (
                    f"## Site {plain(name)}",
                    _two_columns(tables[name]),
                    f"Figures of its rows: {site['released']['metrics']}.",
                    *_refused(site),
                )
            )
            for name, site in sites.items()
        ]
    for name, site in sites.items():
        tables[name]["figures of its rows"] = site["released"]["metrics"]
    labels = list(dict.fromkeys(label for table in tables.values() for label in table))
    first = next(iter(tables.values()))
    shared = {
        label: first[label]
        for label in labels
        if all(label in table and table[label] == first[label] for table in tables.values())
    }
    own = [label for label in labels if label not in shared]
    lines = [
        _row([name, *(table.get(label, "") for label in own)]) for name, table in tables.items()
    ]
    head = [_row(["site", *own]), "|---" * (1 + len(own)) + "|"]
    return [
        f"## What is the same at all {len(sites)} sites\n\n{_two_columns(shared)}",
        "## What differs between sites\n\n" + "\n".join((*head, *lines)),
        *(
            "\n\n".join((f"## Site {plain(name)}", *_refused(site)))
            for name, site in sites.items()
            if site["refusals"]
        ),
    ]


def _two_columns(table: Mapping[str, str]) -> str:
    return "\n".join(("| | |", "|---|---|", *(_row(pair) for pair in table.items())))


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"


def _refused(site: Mapping[str, Any]) -> list[str]:
    refusals = site["refusals"]
    return ["Refused:\n\n" + _bullets(map(plain, refusals))] if refusals else []


def _table(site: Mapping[str, Any], unit: str, *, origin: bool) -> dict[str, str]:
    """What a site's section says, by what it is of."""
    size = str(site["public_size"])
    again = ", not charged again" if site["noise_multiplier"] else ""
    rows = [
        ("sampling probability (Poisson)", at_most(site["sampling_probability"]))
        if site["sampler"] == "Poisson"
        else ("who takes part", site["sampler"]),
        ("denominator", number_text(site["denominator"])),
        (
            f"public number of {counted_word(unit)}s",
            f"{size} ({site['public_size_source']})" if origin else size,
        ),
        ("noise", site["noise"]["source"]),
        (f"rounds answered again{again}", str(site["num_resent"])),
    ]
    if site["noise_multiplier"]:
        rows[3:3] = [
            ("noise multiplier", at_least(site["noise_multiplier"])),
            ("clip norm", "none" if site["clip_norm"] is None else number_text(site["clip_norm"])),
        ]
        charged = "rounds charged whose update is not in the model"
        rows += [
            (charged, str(site["num_aborted"])),
            ("last hash of the ledger", site["ledger_head"] or "none"),
        ]
    rows[:0] = _spent(site, unit) if site["guarantee"] else _unprotected(site)
    if site["guarantee"]:
        rows += [
            (f"epsilon at delta {at['delta']:g}", epsilon_text(at["epsilon"]))
            for at in site["curve"]
        ]
    return dict(rows)


def _spent(site: Mapping[str, Any], unit: str) -> list[tuple[str, str]]:
    one = unit_word(unit)

    def several(count: str) -> str:
        return f"1 {one}" if count == "1" else f"{count} {one}s together"

    return [
        ("epsilon", upwards(site["epsilon"])),
        *((f"epsilon, {kind}", epsilon_text(e)) for kind, e in site["epsilon_by_relation"].items()),
        ("epsilon of all runs together", epsilon_text(site["epsilon_lifetime"])),
        *_limit(site["lifetime"]),
        *(
            (f"epsilon, {several(count)} added or removed", epsilon_text(e))
            for count, e in site["epsilon_by_records"].items()
        ),
        ("delta", at_most(site["delta"])),
        ("steps charged, of those planned", f"{site['steps']} of {site['planned']['steps']}"),
    ]


def _unprotected(site: Mapping[str, Any]) -> list[tuple[str, str]]:
    steps = f"{site['steps']} of {site['planned']['steps']}"
    return [("epsilon", "none: no bound"), ("steps, of those planned", steps)]


def _limit(lifetime: Mapping[str, Any]) -> list[tuple[str, str]]:
    if lifetime["limit_epsilon"] is None:
        return []
    return [
        (
            f"of the site's lifetime budget, at delta {at_most(lifetime['delta'])}",
            f"{epsilon_text(lifetime['epsilon'])} of {number_text(lifetime['limit_epsilon'])}",
        )
    ]


def plain(text: str) -> str:
    """Somebody's words on one line, and no markup of their own: they must not forge the page.

    >>> plain("a|b <c>")
    'a\\\\|b &lt;c&gt;'
    """
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _verify(content: Mapping[str, Any]) -> str:
    answers = (f"| {answer} | {meaning} |" for answer, meaning in statement_verify.ANSWERS.items())
    return "\n\n".join(
        (
            "## How to verify this",
            statement_verify.ASKED,
            _bullets(f"`{line}`" for line in statement_verify.commands(content)),
            "\n".join(("| answer | meaning |", "|---|---|", *answers)),
            _bullets(statement_verify.STEPS),
        )
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
