"""Objectives with a target for each token: tags of words, and the tokens of an answer.

``targets (b, t)`` are ``IGNORED`` where a token carries no loss. An example's loss is the mean over
its own tokens that do: a mean over the batch's tokens would let a long text speak for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hushtune.common.tasks.objectives import Metrics
from hushtune.common.tasks.spans import spans

IGNORED = -100


def _token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, ``(b, t)``; 0 where it carries none."""
    flat = nn.functional.cross_entropy(
        outputs.float().flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return flat.view(targets.shape)


def _example_losses(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    counted = targets != IGNORED
    losses = _token_losses(outputs, targets)
    if weights is not None:
        losses = losses * weights.to(losses.device)[targets.clamp_min(0)]
    return losses.sum(1) / counted.sum(1).clamp_min(1)


@dataclass(frozen=True, eq=False)
class TokenTags:
    """A tag for each word, at its first token; figures: loss, words, right ones, the spans that
    there are, that were told, and both, and for each tag how often it was told rightly, told
    wrongly, and missed.

    ``names``: of the tags, where they mark spans; none, and no spans are counted, where not.
    """

    weights: Tensor  # (tags,)
    names: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """One logit a tag."""
        return len(self.weights)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of an example's words, each times its tag's weight."""
        return _example_losses(outputs, targets, self.weights)

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``(b, 6 + 3 tags)``."""
        counted = targets != IGNORED
        predicted = outputs.argmax(-1)
        held = nn.functional.one_hot(targets.clamp_min(0), self.num_outputs)
        held = held * counted.unsqueeze(-1)
        told = nn.functional.one_hot(predicted, self.num_outputs) * counted.unsqueeze(-1)
        right = ((predicted == targets) & counted).sum(1, keepdim=True)
        hits = held * told
        tags = [(part).sum(1) for part in (hits, told - hits, held - hits)]
        losses = _example_losses(outputs, targets).unsqueeze(1)
        spanned = self._spans(predicted, targets, counted).to(losses.device)
        words = counted.sum(1, keepdim=True)
        return torch.cat([losses, words, right, spanned, *tags], dim=1).float()

    def _spans(self, predicted: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
        """Spans that there are, that were told, and both, ``(b, 3)``."""
        found = torch.zeros(len(targets), 3)
        predicted, targets, counted = predicted.cpu(), targets.cpu(), counted.cpu()
        for row in range(len(targets)) if self.names else ():
            words = counted[row]
            held, told = (
                spans([self.names[tag] for tag in tags[row][words].tolist()])
                for tags in (targets, predicted)
            )
            found[row] = torch.tensor([len(held), len(told), len(held & told)])
        return found

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """The share of an example's words that are tagged rightly, and its loss."""
        return figures[:, 2] / figures[:, 1].clamp_min(1), figures[:, 0]

    def scores(self, figures: Tensor) -> Metrics:
        """Accuracy over words, F1 by tag, its mean over the tags that occur, and where tags mark
        spans F1 over all spans: 1 where there are none, and none is told."""
        sums = figures.double().sum(0)
        right, wrong, missed = sums[6:].view(3, self.num_outputs)
        occurs = right + missed > 0
        f1 = 2 * right / (2 * right + wrong + missed).clamp_min(1)
        held, told, both = sums[3:6].tolist()
        span_f1 = 2 * both / (held + told) if held + told else 1.0
        return {
            **({"span_f1": span_f1} if self.names else {}),
            "loss": float(figures[:, 0].mean()),
            "token_accuracy": float(sums[2] / sums[1].clamp_min(1)),
            "macro_f1": float(f1[occurs].mean()) if occurs.any() else 0.0,
        }

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """The tags' shares as probabilities, whatever the word."""
        counts = torch.bincount(seen[seen != IGNORED], minlength=self.num_outputs)
        logits = (counts / counts.sum()).clamp_min(1e-9).log()
        return self.figures(logits.expand(*targets.shape, -1), targets)


@dataclass(frozen=True)
class NextToken:
    """The next token at each place of an answer; figures: loss, tokens, and right ones.

    Outputs ``(b, k, vocabulary)`` are at those places alone.
    """

    num_outputs: int

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of an example's answer tokens."""
        return _example_losses(outputs, targets)

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """``(b, 3)``."""
        counted = targets != IGNORED
        right = ((outputs.argmax(-1) == targets) & counted).sum(1)
        return torch.stack(
            [_example_losses(outputs, targets), counted.sum(1).float(), right.float()], dim=1
        )

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """The share of answer tokens that have the largest logit, and the loss."""
        return figures[:, 2] / figures[:, 1].clamp_min(1), figures[:, 0]

    def scores(self, figures: Tensor) -> Metrics:
        """Perplexity over all answer tokens, and the share of them that have the largest logit."""
        loss, tokens, right = figures.double().unbind(1)
        total = tokens.sum().clamp_min(1)
        return {
            "loss": float(loss.mean()),
            "perplexity": float(((loss * tokens).sum() / total).clamp_max(80.0).exp()),
            "token_accuracy": float(right.sum() / total),
        }

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """Each token by how often it occurs in answers, one added to every count."""
        counts = torch.bincount(seen[seen != IGNORED], minlength=self.num_outputs) + 1
        logs = (counts / counts.sum()).log()
        counted = targets != IGNORED
        losses = -logs[targets.clamp_min(0)] * counted
        right = ((targets == counts.argmax()) & counted).sum(1)
        tokens = counted.sum(1)
        return torch.stack(
            [losses.sum(1) / tokens.clamp_min(1), tokens.float(), right.float()], dim=1
        )
