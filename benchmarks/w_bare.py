"""W as a plain loop of PyTorch, peft and Opacus, with FedAvg written out: the floor of w.py.

    python benchmarks/w_bare.py WORK.json

As a user would write it who knows these libraries: shuffled batches, padded to the longest row in
each, Opacus' hooks, clipping, noise, a new AdamW at each site and round. ``build``, ``train`` and
``evaluate`` serve the other contenders too, which differ in what is around them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from opacus import GradSampleModule
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from w_work import Row, Work, tell_steps, timed

State = dict[str, Tensor]


class Classifier(nn.Module):
    """A sentence encoder with LoRA, the mean of its states, and a linear head."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        base = AutoModel.from_pretrained(
            work.model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        depth = base.config.num_hidden_layers
        lora = LoraConfig(
            r=work.rank,
            lora_alpha=work.alpha,
            target_modules=list(work.targets),
            layers_to_transform=list(range(depth - work.layers, depth)) if work.layers else None,
        )
        self.encoder = get_peft_model(base, lora)
        self.head = nn.Linear(base.config.hidden_size, work.labels)
        self.scale, self.autocast = work.feature_scale, work.autocast

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits ``(b, labels)`` of tokens ``(b, t)``."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        states = out.last_hidden_state.float()
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        return self.head(nn.functional.normalize(mean, dim=-1) * self.scale)


class Batches:
    """Rows as batches of tokens, padded to the longest row in each."""

    def __init__(self, work: Work) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(work.model)
        self._max_tokens = work.max_tokens

    def of(self, rows: Sequence[Row]) -> tuple[dict[str, Tensor], Tensor]:
        """``input_ids`` and ``attention_mask`` ``(b, t)``, and labels ``(b,)``."""
        found = self._tokenizer(
            [text for text, _ in rows],
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        inputs = {key: found[key] for key in ("input_ids", "attention_mask")}
        return inputs, torch.tensor([label for _, label in rows])

    def all(self, rows: Sequence[Row], size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """All rows in their order."""
        for start in range(0, len(rows), size):
            yield self.of(rows[start : start + size])


def build(work: Work) -> Classifier:
    """The model, with random A of the seed."""
    disable_progress_bar()
    torch.manual_seed(work.seed)
    return Classifier(work)


def trained_state(model: nn.Module) -> State:
    """A copy of what is trained."""
    return {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def install(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put what is trained into the model."""
    own = dict(model.named_parameters())
    for key, value in state.items():
        own[key].copy_(value)


def train(model: nn.Module, rows: Sequence[Row], batches: Batches, work: Work, seed: int) -> None:
    """One site's private steps of one round (DP-SGD, 1607.00133), in the model itself."""
    order = list(rows)
    random.Random(seed).shuffle(order)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=work.rate, weight_decay=0.0)
    private = GradSampleModule(model, strict=False, loss_reduction="sum")
    private.train()
    for step in range(work.steps):
        start = step * work.batch % len(order)
        inputs, labels = batches.of(order[start : start + work.batch])
        loss = nn.functional.cross_entropy(private(**inputs), labels, reduction="sum")
        loss.backward()
        samples = [p.grad_sample.float() for p in parameters]
        squares = [sample.flatten(1).square().sum(1) for sample in samples]
        factors = (work.clip / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        for parameter, sample in zip(parameters, samples, strict=True):
            total = torch.einsum("b,b...->...", factors, sample)
            if work.noise:
                total += torch.randn_like(total) * (work.noise * work.clip)
            parameter.grad = total / work.batch
            parameter.grad_sample = None
        optimizer.step()
        optimizer.zero_grad()
    private.remove_hooks()


@torch.no_grad()
def evaluate(
    model: nn.Module, rows: Sequence[Row], batches: Batches, size: int
) -> dict[str, float]:
    """Mean loss and accuracy."""
    model.eval()
    losses, right = 0.0, 0
    for inputs, labels in batches.all(rows, size):
        logits = model(**inputs)
        losses += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        right += int((logits.argmax(1) == labels).sum())
    return {"loss": losses / len(rows), "accuracy": right / len(rows)}


def average(states: Sequence[State], weights: Sequence[float]) -> State:
    """FedAvg (1602.05629)."""
    total = sum(weights)
    return {
        key: sum(w / total * state[key] for w, state in zip(weights, states, strict=True))
        for key in states[0]
    }


def federate(model: nn.Module, batches: Batches, work: Work) -> list[dict[str, float]]:
    """All rounds; loss and accuracy after each."""
    state, history = trained_state(model), []
    for number in range(work.rounds):
        states = []
        for place, site in enumerate(sorted(work.train)):
            install(model, state)
            with timed("training"):
                train(model, work.train[site], batches, work, work.seed + 97 * number + place)
            states.append(trained_state(model))
        state = average(states, [len(work.train[site]) for site in sorted(work.train)])
        install(model, state)
        with timed("evaluation") as told:
            history.append(evaluate(model, work.judged, batches, work.batch))
            told.update(history[-1])
    return history


def main(arguments: Sequence[str]) -> Any:
    """Do what a file says."""
    torch.set_num_threads(1)
    tell_steps()
    work = Work.read(arguments[0])
    return federate(build(work), Batches(work), work)


if __name__ == "__main__":
    main(sys.argv[1:])
