"""The inputs of language models, whose loss is on the tokens of an answer alone.

Logits, ``(b, t, vocabulary)``, are the largest tensor of such a model by far, so they are computed
at the places that carry loss and nowhere else. How many those are padded to follows from each row
alone, as its width does, and rows of other sizes are not computed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hushtune.common.model import ANSWER_AT, ANSWERS
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.units import Rows


@dataclass(frozen=True)
class _Answered:
    tokens: TokenRows
    answers: TokenRows  # the answer's tokens, padded with what carries no loss

    @cached_property
    def lengths(self) -> Rows:
        """Tokens of each row, ``(n,)``."""
        return self.tokens.lengths

    @cached_property
    def widths(self) -> Rows:
        """Tokens, and answer tokens, that each row is padded to, ``(n, 2)``."""
        return np.stack([self.tokens.widths, self.answers.widths], axis=1)


@dataclass(frozen=True)
class AnswerRows(_Answered):
    """Of a model that reads what it wrote: prompt and answer in one row of tokens.

    ``tokens``: the prompt, and the answer without its last token. The answer is told from the last
    places of each row, as many as it has tokens.
    """

    def inputs(self, rows: Rows) -> Mapping[str, Tensor]:
        """What ``TokenRows`` gives, and ``answer_at (b, k)``: where the answer's tokens are told.

        An answer that is shorter than ``k`` names its last place again, which carries no loss.
        """
        lengths, sizes = self.tokens.lengths[rows], self.answers.lengths[rows]
        places = np.arange(int(self.answers.widths[rows].max()))[None]  # (1, k)
        at = (lengths - sizes)[:, None] + np.minimum(places, sizes[:, None] - 1)
        return {**self.tokens.inputs(rows), ANSWER_AT: torch.from_numpy(at)}


@dataclass(frozen=True)
class SourceRows(_Answered):
    """Of a model that reads with one part and writes with another; ``tokens``: the source."""

    def inputs(self, rows: Rows) -> Mapping[str, Tensor]:
        """What ``TokenRows`` gives of the source, and ``answers (b, k)``, not yet shifted."""
        return {**self.tokens.inputs(rows), ANSWERS: self.answers.inputs(rows)["input_ids"]}
