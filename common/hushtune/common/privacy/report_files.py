"""A statement's files in a folder: as data, and as both pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hushtune.common.files import write_text
from hushtune.common.json_text import json_text
from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.statement_html import render_html
from hushtune.common.privacy.statement_markdown import render_markdown
from hushtune.common.privacy.statement_server import server_html, server_markdown

STATEMENT = "privacy.json"


def write_statement(folder: Path, privacy: Mapping[str, Any]) -> None:
    """The statement as ``privacy.json``, ``privacy.md`` and ``privacy.html``."""
    write_text(folder / STATEMENT, json_text(privacy, indent=2) + "\n")
    at_server = privacy["trust"] == Trust.SERVER
    markdown, page = (server_markdown, server_html) if at_server else (render_markdown, render_html)
    write_text(folder / "privacy.md", markdown(privacy))
    write_text(folder / "privacy.html", page(privacy))
