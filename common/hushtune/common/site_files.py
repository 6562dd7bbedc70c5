"""What the files of one site are called: a site's name is any text, a file's name is not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

STATEMENT_FILE, RECEIPTS = "statement.json", "receipts"
"""In a coordinator's folder of a run: the federation's statement, and a signed receipt a site."""
MOST_CHARACTERS = 120
"""Of a stem, all of them ASCII: with endings and a temporary file's own letters it stays below
143 bytes, the least that file systems in use (eCryptfs) allow a name."""


def site_stem(site: str) -> str:
    """The name, without ending, of a site's files in a folder that other sites share.

    Distinct sites have distinct stems, none begins with a dot or holds a separator. A short one is
    percent-encoded and can be read back with ``urllib.parse.unquote``; of a long one the beginning
    is kept, and "+" and a digest of the whole name follow, which no short stem holds.

    >>> site_stem("north ward"), site_stem("../evil"), site_stem("n" * 300)[53:59]
    ('north ward', '%2E.%2Fevil', 'nn+230')
    """
    stem = _encoded(site)
    if len(stem) <= MOST_CHARACTERS:
        return stem
    digest = hashlib.sha256(site.encode()).hexdigest()
    kept = site[:MOST_CHARACTERS]
    while len(_encoded(kept)) > MOST_CHARACTERS - 1 - len(digest):
        kept = kept[:-1]  # by characters: half an encoded one could not be read back
    return f"{_encoded(kept)}+{digest}"


def receipt_file(out: Path, site: str) -> Path:
    """Where a site's receipt is kept in a coordinator's folder of a run."""
    return out / RECEIPTS / f"{site_stem(site)}.json"


def _encoded(text: str) -> str:
    encoded = quote(text, safe=" ")
    return f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded
