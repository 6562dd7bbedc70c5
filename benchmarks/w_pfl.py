"""W by pfl-research, with its own DP: of whole updates, noised centrally after each round.

    python benchmarks/w_pfl.py WORK.json

pfl has no DP-SGD, so that its steps clip no single example and are cheaper for it. ``pip install
pfl==0.6.0`` wants an older dp-accounting than hushtune has: ``python benchmarks/w.py --setup-pfl``
makes an environment of its own for it, on top of the one that is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from torch import Tensor, nn
from w_bare import Batches, Classifier, build
from w_work import Row, Work, tell_steps, timed

CENTRAL_NOISE = 1e-3
"""The noise multiplier of central DP here. It changes no seconds, and four sites' updates under one
that promises anything would leave nothing of the model."""


class PflClassifier(nn.Module):
    """The model as pfl wants it: with its loss and its metrics."""

    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits; cut to the longest row of the batch, as dynamic padding would."""
        width = int(attention_mask.sum(1).max())
        return self.inner(input_ids[:, :width], attention_mask[:, :width])

    def loss(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch."""
        self.train()
        return nn.functional.cross_entropy(self(input_ids, attention_mask), labels)

    @torch.no_grad()
    def metrics(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """Loss and accuracy of a batch."""
        self.eval()
        logits, size = self(input_ids, attention_mask), len(labels)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        right = (logits.argmax(1) == labels).sum()
        return {
            "loss": Weighted(float(loss), size),
            "accuracy": Weighted(float(right), size),
        }


class TimedModel(PyTorchModel):
    """Tells what takes how long."""

    def do_multiple_epochs_of(self, *arguments: Any, **named: Any) -> Any:
        """Local training."""
        with timed("training"):
            return super().do_multiple_epochs_of(*arguments, **named)

    def evaluate(self, *arguments: Any, **named: Any) -> Any:
        """Central evaluation."""
        with timed("evaluation") as told:
            found = super().evaluate(*arguments, **named)
            told.update({str(name).rsplit("| ", 1)[-1]: v.overall_value for name, v in found})
        return found


class TrainsAlone(FederatedAveraging):
    """Without the look at the sites' own rows in the first round, which is no part of W."""

    def get_next_central_contexts(self, *arguments: Any, **named: Any) -> Any:
        """As they are, but for that."""
        contexts, model, metrics = super().get_next_central_contexts(*arguments, **named)
        if contexts is not None:
            contexts = tuple(replace(context, do_evaluation=False) for context in contexts)
        return contexts, model, metrics


def dataset(rows: Sequence[Row], batches: Batches, *, seed: int | None = None) -> Any:
    """Rows as tensors, padded to the longest; shuffled if there is a seed."""
    order = np.arange(len(rows))
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    inputs, labels = batches.of([rows[i] for i in order])
    return PyTorchTensorDataset(tensors={**inputs, "labels": labels})


def main(arguments: Sequence[str]) -> Any:
    """Do what a file says."""
    torch.set_num_threads(1)
    tell_steps()
    work = Work.read(arguments[0])
    np.random.seed(work.seed)
    inner, batches = PflClassifier(build(work)), Batches(work)
    model = TimedModel(
        model=inner,
        local_optimizer_create=lambda parameters, lr: torch.optim.AdamW(
            [p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0
        ),
        central_optimizer=torch.optim.SGD(
            [p for p in inner.parameters() if p.requires_grad], lr=1.0
        ),
    )
    sites, numbers = sorted(work.train), iter(range(10**6))
    data = FederatedDataset(
        lambda site: dataset(work.train[site], batches, seed=work.seed + next(numbers)),
        get_user_sampler("minimize_reuse", sites),
    )
    privacy = CentrallyAppliedPrivacyMechanism(GaussianMechanism(work.clip, CENTRAL_NOISE))
    backend = SimulatedBackend(training_data=data, val_data=data, postprocessors=[privacy])
    steps = NNTrainHyperParams(
        local_num_epochs=None,
        local_learning_rate=work.rate,
        local_batch_size=work.batch,
        local_num_steps=work.steps,
    )
    judged = NNEvalHyperParams(local_batch_size=work.batch)
    TrainsAlone().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,
            train_cohort_size=len(sites),
            val_cohort_size=0,
        ),
        backend=backend,
        model=model,
        model_train_params=steps,
        model_eval_params=judged,
        callbacks=[CentralEvaluationCallback(dataset(work.judged, batches), judged)],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
