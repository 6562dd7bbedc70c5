"""The Brown Corpus' tags, reduced to the twelve universal parts of speech.

After Petrov, Das and McDonald, A Universal Part-of-Speech Tagset, 1104.2086. A Brown tag has a base
and marks: ``-tl`` in a title, ``-hl`` in a headline, ``-nc`` cited, ``$`` possessive, ``*`` with
"n't", ``fw-`` foreign, ``+`` two words written as one. Marks are dropped, foreign words are X, and
two words in one count as the first: "it's" (pps+bez) is a PRON.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_BY_CLASS: Final = {
    "NOUN": "nn nns np nps nr nrs",
    "VERB": "vb vbd vbg vbn vbz md be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz",
    "ADJ": "jj jjr jjs jjt ap od",
    "ADV": "rb rbr rbt rn ql qlp wql wrb *",
    "PRON": "pn ppl ppls ppo pps ppss pp$$ wpo wps",
    "DET": "at dt dti dts dtx abx pp$ wdt wp$",
    "ADP": "in cs",
    "CONJ": "cc",
    "NUM": "cd",
    "PRT": "to rp abl abn ex uh",
    "X": "nil",
    ".": ". , : ( ) ' ` '' `` --",
}

CLASSES: Final = tuple(sorted(_BY_CLASS))
"""The twelve universal tags."""

UNIVERSAL: Final[Mapping[str, str]] = MappingProxyType(
    {tag: name for name, tags in _BY_CLASS.items() for tag in tags.split()}
)
"""Universal tag by the base of a Brown tag."""


def universal(tag: str) -> str:
    """The universal tag of a Brown tag, in whichever case; KeyError if it is none."""
    tag = tag.lower()
    if tag in UNIVERSAL:  # punctuation has the very characters that are marks elsewhere
        return UNIVERSAL[tag]
    if tag.startswith("fw-"):
        return "X"
    base = tag.split("+")[0]
    for mark in ("-tl", "-hl", "-nc"):
        base = base.replace(mark, "")
    for end in ("", "*", "$"):
        if base.removesuffix(end) in UNIVERSAL:
            return UNIVERSAL[base.removesuffix(end)]
    raise KeyError(tag)
