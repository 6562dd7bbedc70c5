"""What a check found as one page for a browser: no script, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hushtune.common.pages import page_environment


def render(report: Mapping[str, Any]) -> str:
    """The page of what ``check`` returned."""
    environment = page_environment("hushtune.simulations.datacheck")
    return environment.get_template("page.html.j2").render(report)
