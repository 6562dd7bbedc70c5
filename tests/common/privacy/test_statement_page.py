"""privacy.html in a browser: it loads alone, fits a phone and a desk, and prints."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.statement import statement
from hushtune.common.privacy.statement_html import render_html

from ...browsers import browser as browser  # noqa: PLC0414
from ...browsers import requests
from .statements import full_site, plan, private_content

HOSTILE = "</bdi><script>document.title='taken'</script>" + "A" * 120


def hostile() -> dict[str, Any]:
    told = full_site(plan(), refusals=[HOSTILE], public_size_source=HOSTILE)
    return statement(sites={HOSTILE: told}, run=HOSTILE)


PAGES = {
    "private": private_content,
    "no privacy": lambda: statement(
        sites={"north": full_site(plan(trust=Trust.OFF))}, run="4cce0b137d159893"
    ),
    "hostile": hostile,
}


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a page."""
    path = tmp_path / "privacy.html"
    path.write_text(render_html(PAGES[request.param]()), encoding="utf-8")
    return path.as_uri()


def test_it_loads_alone_and_without_a_word_of_complaint(browser: Any, page: str) -> None:
    requests(browser)  # what went before
    browser.get(page)
    # Chromium asks itself for pictures of its own at moments of its own choosing: chrome://...
    own = ("data:", "chrome://")
    assert [url for url in requests(browser) if not url.startswith(own)] == [page]
    assert browser.get_log("browser") == []
    assert browser.title.startswith(("Privacy statement", "NO PRIVACY"))


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Any, page: str, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    inner = browser.execute_script("return window.innerWidth")
    assert inner == width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('*')].filter(each =>"
        " each.getBoundingClientRect().right > window.innerWidth + 1"
        " || (each.tagName == 'TD' && each.scrollWidth > each.clientWidth + 1))"
        ".map(each => each.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.body.scrollHeight") > 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Any, page: str, scheme: str) -> None:
    """WCAG 2.1, 1.4.3: a contrast of at least 4.5 to 1."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page)
    pairs = browser.execute_script(
        "const ground = each => { for (; each; each = each.parentElement) {"
        "  const found = getComputedStyle(each).backgroundColor;"
        "  if (!found.startsWith('rgba(0, 0, 0, 0')) return found; } return 'none'; };"
        "return [...document.querySelectorAll('h1, h2, h3, p, li, th, td, dt, dd, caption, text,"
        " figcaption, small, code, blockquote')].map(each => { const style ="
        " getComputedStyle(each); return [each.tagName == 'text' ? style.fill : style.color,"
        " ground(each)]; })"
    )
    grounds = {ground for _, ground in pairs}
    light = luminance(browser.execute_script("return getComputedStyle(document.body)['color']"))
    assert (light > 0.5) is (scheme == "dark")
    assert "none" not in grounds
    for ink, ground in {tuple(pair) for pair in pairs}:
        low, high = sorted((luminance(ink), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as WCAG 2.1 defines it."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (
        share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_prints_on_a_few_sheets(browser: Any, page: str) -> None:
    browser.get(page)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    sheets = re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))
    sites = browser.execute_script("return document.querySelectorAll('.site').length")
    assert 2 <= len(sheets) <= 5 + 2 * sites
