"""report.html in a browser: it loads alone, shows its pictures, fits a phone and a desk, prints."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from hushtune.simulations import report

from ..browsers import browser as browser  # noqa: PLC0414
from ..browsers import requests
from . import studies

pytestmark = pytest.mark.pictures

HOSTILE = "</bdi><script>document.title='taken'</script>" + "A" * 80


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of a study with hostile names and a failed run."""
    folder = tmp_path_factory.mktemp("page") / "study"
    sites = (HOSTILE, "<img src=x onerror=document.title='taken'>", "news")
    rows = [
        studies.done(
            f"{HOSTILE}{number}",
            {"privacy.epsilon": epsilon, "train.x": name},
            seed,
            studies.summary(0.6 + 0.01 * number, epsilon=epsilon, sites=sites),
        )
        for number, (epsilon, name, seed) in enumerate(
            (epsilon, name, seed)
            for epsilon in (1.0, 3.0)
            for name in ("a", HOSTILE)
            for seed in (0, 1)
        )
    ]
    rows.append(studies.failed("bad", {"privacy.epsilon": 9.0, "train.x": "a"}, HOSTILE * 3))
    return report(studies.write(folder, rows)).page.as_uri()


def test_it_loads_alone_with_all_its_pictures(browser: Any, page: str) -> None:
    requests(browser)  # what went before
    browser.get(page)
    own = ("data:", "chrome://")
    assert [url for url in requests(browser) if not url.startswith(own)] == [page]
    assert browser.get_log("browser") == []
    assert browser.title == "Study study"
    seen = browser.execute_script(
        "return [...document.images].map(each => [each.complete, each.naturalWidth, each.alt])"
    )
    assert len(seen) >= 6
    assert all(complete and width > 300 and alt for complete, width, alt in seen)


@pytest.mark.parametrize("width", [390, 1280])
def test_only_wide_tables_scroll_and_nothing_else(browser: Any, page: str, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('h1, h2, p, li, figure, img, .wide, figcaption')]"
        ".filter(each => each.getBoundingClientRect().right > window.innerWidth + 1)"
        ".map(each => each.outerHTML.slice(0, 120))"
    )
    assert wide == []


def test_it_prints_with_no_picture_cut_in_two(browser: Any, page: str) -> None:
    browser.get(page)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    sheets = re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed["data"]))
    assert 4 <= len(sheets) <= 14
    avoided = browser.execute_script(
        "return [...document.querySelectorAll('figure')]"
        ".every(each => getComputedStyle(each).breakInside == 'avoid')"
    )
    assert avoided


def test_the_page_is_one_file(page: str) -> None:
    text = Path(page.removeprefix("file://")).read_text(encoding="utf-8")
    assert "://" not in re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", text)
    assert "<script" not in text
