"""What fine-tuning did to the model on texts that it was not tuned for: a public probe.

The texts are passages of Python's own documentation, which comes with Python
(``pydoc_data.topics``): technical prose of several topics, far from most data that are tuned on.
Before and after, a passage is turned into the mean of its token states in the model's last block:

    drift       1 - mean cosine of a passage's features before and after
    accuracy    of telling a passage's topic by its 5 nearest others, by cosine

Drift alone is no loss: features may turn together. Accuracy that falls is one. Both follow from the
final adapter and public texts, so they cost no privacy. Another Python has other passages: figures
of one machine are compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.model import ANSWER_AT, AdaptedModel, Head
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.answer_rows import AnswerRows
from hushtune.common.tasks.kinds.texts import tokenize
from hushtune.common.tasks.workspace import Workspace

TOPICS = (
    *("debugger", "string-methods", "formatstrings", "comparisons"),
    *("import", "assignment", "execmodel", "typesseq"),
)
_OF_A_TOPIC, _FEWEST_WORDS, _MOST_CHARACTERS = 25, 12, 400
_NEIGHBOURS, _BATCH = 5, 32


def passages() -> list[tuple[str, str]]:
    """(topic, text), up to 200; none where Python came without its documentation."""
    try:
        pages: Mapping[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    found: dict[str, str] = {}
    for topic in TOPICS:
        texts = (" ".join(part.split()) for part in pages.get(topic, "").split("\n\n"))
        long = [text[:_MOST_CHARACTERS] for text in texts if len(text.split()) >= _FEWEST_WORDS]
        new = [text for text in dict.fromkeys(long) if text not in found]
        found |= dict.fromkeys(new[:_OF_A_TOPIC], topic)
    return [(topic, text) for text, topic in found.items()]


def forgetting(workspace: Workspace, final: AdapterState) -> dict[str, Any] | None:
    """The probe before and after; None where there are no passages to probe with, or the
    model reads no texts."""
    found = passages()
    most = _most_tokens(workspace)
    if not found or most is None:
        return None
    topics = np.unique([topic for topic, _ in found], return_inverse=True)[1]
    texts = [text for _, text in found]
    before = features(workspace, workspace.initial_state, texts, max_tokens=most)
    after = features(workspace, final, texts, max_tokens=most)
    return {
        "probe": "passages of Python's documentation, told apart by topic",
        "texts": len(texts),
        "topics": len(TOPICS),
        "drift": float(1.0 - (before * after).sum(1).mean()),
        "accuracy_before": nearest_accuracy(before, topics),
        "accuracy_after": nearest_accuracy(after, topics),
    }


@torch.no_grad()
def features(
    workspace: Workspace, state: AdapterState, texts: Sequence[str], *, max_tokens: int
) -> Tensor:
    """The unit-length mean of each text's token states in the last block, ``(n, d)``, float64."""
    model = workspace.task.model
    lora.install(model, state)
    model.frozen_mode()
    most = min(64, max_tokens)
    tokens, device = (
        tokenize(cast(PreTrainedTokenizerBase, workspace.encoder), texts, max_tokens=most),
        _device(model),
    )
    parts: list[Tensor] = []
    for start in range(0, len(texts), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(texts)), dtype=np.int64)
        inputs = {key: value.to(device) for key, value in tokens.inputs(rows).items()}
        if model.head_kind is Head.WORDS:  # of the words that it would write, one is enough
            inputs[ANSWER_AT] = torch.zeros(len(rows), 1, dtype=torch.long, device=device)
        states = _last_states(model, inputs).double()
        weights = inputs["attention_mask"].unsqueeze(-1).double()
        parts.append(((states * weights).sum(1) / weights.sum(1).clamp_min(1.0)).cpu())
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)


def _most_tokens(workspace: Workspace) -> int | None:
    """Of a text that the model reads in one pass; None for what reads none, or in two parts."""
    inputs = workspace.task.inputs
    tokens = inputs.tokens if isinstance(inputs, AnswerRows) else inputs
    return tokens.max_tokens if isinstance(tokens, TokenRows) else None


def _device(model: AdaptedModel) -> torch.device:
    return next(model.parameters()).device


def _last_states(model: AdaptedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the last block gives, ``(b, t, d)``, whatever head stands above it."""
    seen: list[Any] = []
    hook = model.blocks[-1].register_forward_hook(lambda _module, _given, out: seen.append(out))
    try:
        model(inputs)
    finally:
        hook.remove()
    states = seen[-1]
    return states[0] if isinstance(states, tuple) else states


def nearest_accuracy(points: Tensor, labels: np.ndarray[Any, Any]) -> float:
    """Leave-one-out accuracy of the most frequent label among the 5 nearest other points.

    ``points (n, d)`` of unit length; of equally frequent labels the one that is nearest counts.
    """
    likeness = (points @ points.T).numpy()
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, :_NEIGHBOURS]
    right = 0
    for place, others in enumerate(labels[nearest]):
        counts = {label: (others == label).sum() for label in others}  # in the order of nearness
        right += max(counts, key=counts.__getitem__) == labels[place]
    return right / len(labels)
