"""Tiny random models of every family, tasks over them, and slow references to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import Tensor, nn

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.adapter import (
    A_SUFFIX,
    B_SUFFIX,
    R_SUFFIX,
    AdapterState,
    base_keys,
)
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.local_training import LocalTraining
from hushtune.common.messages import RoundOrder
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.packing import Packing
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.base import Batch, Metrics
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.common.tasks.units import Piece, Rows, Units

torch.set_num_threads(1)

TEXT = ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen2", "qwen3")
PADDED_WITH_ONE = ("roberta", "mpnet")
IMAGES = ("vit", "dinov2")
CONVOLUTIONAL = ("resnet", "efficientnet", "mobilenet_v2", "convnext")
PIXELS = (*IMAGES, *CONVOLUTIONAL)
HEADS = ("mean", "own")
# ELECTRA computes as BERT does, MPNet's head is RoBERTa's, Mistral computes as Llama does: the
# other head of each would test the same code once more.
RELATED = [("electra", "own"), ("mpnet", "mean"), ("mistral", "own")]
TEXT_CASES = [*((family, head) for family in TEXT for head in HEADS), *RELATED]
# Of the others one head each: what differs is where their convolutions are. MobileNetV2 is not
# among them, as its ReLU6 turn rounding in other shapes into other gates: see test_images.py.
IMAGE_CASES = [
    *((family, head) for family in (*IMAGES, "resnet") for head in HEADS),
    ("efficientnet", "mean"),
    ("convnext", "mean"),
]
CASES = [*TEXT_CASES, *IMAGE_CASES]
TRANSFORMER_CASES = [case for case in CASES if case[0] not in CONVOLUTIONAL]
NUM_LABELS, NUM_ROWS = 3, 9
CLASS_WEIGHTS = (0.5, 1.0, 4.0)


def tiny_config(family: str) -> Any:
    """A configuration of 3 blocks and width 32."""
    usual: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    words = {**usual, "vocab_size": 50}
    decoder = {**words, "num_key_value_heads": 2, "pad_token_id": 0}
    images: dict[str, Any] = {"image_size": 16, "patch_size": 8}
    short: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 50}
    made = {
        "bert": lambda: tf.BertConfig(**words),
        "roberta": lambda: tf.RobertaConfig(**words, max_position_embeddings=66),
        "electra": lambda: tf.ElectraConfig(**words, embedding_size=16),
        "mpnet": lambda: tf.MPNetConfig(**words, max_position_embeddings=66),
        "mistral": lambda: tf.MistralConfig(**decoder),
        "distilbert": lambda: tf.DistilBertConfig(
            dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=50
        ),
        "gpt2": lambda: tf.GPT2Config(**short, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        "llama": lambda: tf.LlamaConfig(**decoder),
        "qwen2": lambda: tf.Qwen2Config(**decoder),
        "qwen3": lambda: tf.Qwen3Config(**decoder, head_dim=8),
        "vit": lambda: tf.ViTConfig(**usual, **images),
        "dinov2": lambda: tf.Dinov2Config(**{**usual, "mlp_ratio": 2}, **images),
        "resnet": lambda: tf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 1, 2], layer_type="bottleneck"
        ),
        "efficientnet": lambda: tf.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320, image_size=16
        ),
        "mobilenet_v2": lambda: tf.MobileNetV2Config(depth_multiplier=0.25, image_size=16),
        "convnext": lambda: tf.ConvNextConfig(
            hidden_sizes=[8, 8, 16, 32], depths=[1, 1, 1, 2], layer_scale_init_value=1.0
        ),
    }[family]()
    made.num_labels = NUM_LABELS
    return made


def tiny_base(family: str, head: str = "mean") -> Any:
    """A base with the same random weights at every call."""
    kinds = {
        "mean": tf.AutoModel,
        "own": tf.AutoModelForImageClassification
        if family in PIXELS
        else tf.AutoModelForSequenceClassification,
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base = kinds[head].from_config(tiny_config(family), attn_implementation="eager")
        if family in CONVOLUTIONAL:
            _settle(base)
    return base.eval()


def _settle(base: Any) -> None:
    """Weights of a size at which images are told apart, and batch norm's numbers for them."""
    images = torch.randn(32, 3, 64, 64)
    for module in base.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches that were seen: of this one
    base.train()
    with torch.no_grad():
        base(pixel_values=images)


def adapted(
    family: str,
    head: str = "mean",
    *,
    model: Mapping[str, Any] | None = None,
    inner: bool = False,
    **adapter: Any,
) -> AdaptedModel:
    """A new adapted model: LoRA of rank 2 in the two top blocks; ``inner``: with R in between."""
    return lora.attach(
        tiny_base(family, head),
        model=ModelConfig(head=head, **{"precision": "float32", **(model or {})}),
        adapter=AdapterConfig(**{"rank": 2, "alpha": 4.0, "layers": 2, **adapter}),
        num_outputs=NUM_LABELS,
        seed=0,
        inner=inner,
    )


def at_rank(model: AdaptedModel, rank: int, *, seed: int = 1, by: float = 0.1) -> AdapterState:
    """A state of another rank in which nothing is zero."""
    like, random = lora.extract(model).adapter_part(), torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for key, tensor in like.tensors.items():
        shape = list(tensor.shape)
        if key.endswith((A_SUFFIX, R_SUFFIX)):
            shape[0] = rank
        if key.endswith((B_SUFFIX, R_SUFFIX)):
            shape[1] = rank
        tensors[key] = by * torch.randn(shape, generator=random)
    return AdapterState(replace(like.spec, rank=rank), tensors)


def with_change(state: AdapterState, n: int, *, seed: int = 5, by: float = 0.2) -> AdapterState:
    """The same with a change of each adapted weight, of ``n`` columns and rows."""
    random = torch.Generator().manual_seed(seed)
    tensors = dict(state.tensors)
    for module in state.spec.targets:
        a, b = state.factors(module)
        shapes = (n, a.shape[1]), (b.shape[0], n)
        for key, shape in zip(base_keys(module), shapes, strict=True):
            tensors[key] = by * torch.randn(shape, generator=random)
    return AdapterState(state.spec, tensors)


def moved(model: AdaptedModel, *, seed: int = 1, by: float = 0.1) -> AdapterState:
    """A state in which nothing is zero, so that every tensor has a gradient."""
    random = torch.Generator().manual_seed(seed)
    start = lora.initial_state(model, seed=seed)
    return start.map(lambda tensor: tensor + by * torch.randn(tensor.shape, generator=random))


def token_rows(family: str, count: int = NUM_ROWS, *, longest: int = 12) -> TokenRows:
    """Texts of 3 to ``longest`` random tokens, so that batches are padded."""
    random = np.random.default_rng(5)
    lengths = random.integers(3, longest + 1, count)
    ids = random.integers(3, 50, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenRows(torch.from_numpy(ids), offsets, 1 if family in PADDED_WITH_ONE else 0, longest)


def labels(count: int = NUM_ROWS) -> Rows:
    """Labels in turn."""
    return np.arange(count, dtype=np.int64) % NUM_LABELS


@dataclass
class TensorTask:
    """A task over given tensors, one row an example; remembers which batches were asked for."""

    model: AdaptedModel
    inputs: Mapping[str, Tensor]
    labels: Rows
    class_weights: Sequence[float] = (1.0,) * NUM_LABELS
    asked: list[Rows] = field(default_factory=list)
    trained: list[set[str]] = field(default_factory=list)

    augments = False

    def views(self, units: Units) -> Units:
        return units

    def level(self, state: AdapterState, trainable: tuple[str, ...] = ()) -> Level:
        return Level.TOKENS

    def microbatches(self, units: Units, size: int, level: Level) -> list[Piece]:
        if len(units):
            self.asked.append(units.rows)
        pieces = [units.take(np.array([place])) for place in range(len(units))]
        if units.is_single:
            starts = range(0, len(units), size)
            pieces = [Units.single(units.rows[start : start + size]) for start in starts]
        return [Piece(piece, piece.rows) for piece in pieces]

    def batch(
        self,
        rows: Rows,
        level: Level,
        *,
        draw: int | None = None,
        packing: Packing | None = None,
    ) -> Batch:
        at = torch.from_numpy(rows)
        given = {key: value[at] for key, value in self.inputs.items()}
        return Batch(given, torch.from_numpy(self.labels)[at])

    def example_losses(self, batch: Batch) -> Tensor:
        self.trained.append(
            {key for key, p in lora.parameters(self.model).items() if p.requires_grad}
        )
        losses = nn.functional.cross_entropy(
            self.model(batch.inputs), batch.targets, reduction="none"
        )
        return losses * torch.tensor(self.class_weights)[batch.targets]

    @torch.no_grad()
    def row_figures(self, state: AdapterState, rows: Rows) -> tuple[Tensor, Tensor]:
        lora.install(self.model, state)
        self.model.frozen_mode()
        batch = self.batch(rows, Level.TOKENS)
        logits = self.model(batch.inputs)
        losses = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        return logits.argmax(1) == batch.targets, losses

    def metrics_by_group(
        self, state: AdapterState, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        raise NotImplementedError


def make_task(
    family: str,
    head: str,
    *,
    class_weights: Sequence[float] = CLASS_WEIGHTS,
    count: int = NUM_ROWS,
    model: AdaptedModel | None = None,
    **others: Any,
) -> Any:
    """The product's task over ragged texts, or a task over random images."""
    model = model or adapted(family, head)
    if family in PIXELS:
        side = 16 if family in IMAGES else 64
        pixels = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))
        return TensorTask(model, {"pixel_values": pixels}, labels(count), class_weights)
    rows = token_rows(family, count)
    return text_classification(model, rows, labels(count), weights=class_weights, **others)


@cache
def kept_task(family: str, head: str) -> Any:
    """One task a case for the tests that install their own adapter; without activations."""
    return make_task(family, head)


def tensor_task(count: int = NUM_ROWS) -> TensorTask:
    """The smallest task that remembers its batches: BERT over rows of 5 tokens."""
    random = torch.Generator().manual_seed(9)
    ids = torch.randint(3, 50, (count, 5), generator=random)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return TensorTask(adapted("bert", layers=1), inputs, labels(count))


def summed(
    task: Any,
    rows: Iterable[int] | Units,
    *,
    state: AdapterState,
    clip_norm: float,
    microbatch: int = 100,
    level: Level = Level.TOKENS,
    keys: Sequence[str] | None = None,
) -> Tensor:
    """The product's clipped sum as one float64 vector, ``(values,)``; rows are units of one."""
    units = (
        rows if isinstance(rows, Units) else Units.single(np.asarray(list(rows), dtype=np.int64))
    )
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, keys or state.keys)
    task.model.training_mode()
    with dp.per_example_gradients(task.model):
        total = dp.clipped_sum(
            task,
            units,
            trained=trained,
            clip_norm=clip_norm,
            microbatch=microbatch,
            level=level,
        )
    return flat(total)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """All values in the order of the keys, in float64."""
    return torch.cat([tensors[key].detach().double().flatten() for key in sorted(tensors)])


def one_gradient(task: Any, row: int, trained: Mapping[str, nn.Parameter]) -> Tensor:
    """The gradient of one example's weighted loss by plain autograd, in a batch of its own."""
    batch = task.batch(np.asarray([row], dtype=np.int64), Level.TOKENS)
    weight = CLASS_WEIGHTS if not isinstance(task, TensorTask) else task.class_weights
    label = int(batch.targets[0])
    loss = -weight[label] * torch.log_softmax(task.model(batch.inputs)[0], 0)[label]
    found = torch.autograd.grad(loss, list(trained.values()))
    return flat(dict(zip(trained, found, strict=True)))


def reference_sum(
    task: Any,
    rows: Iterable[int],
    *,
    state: AdapterState,
    clip_norm: float,
    keys: Sequence[str] | None = None,
) -> Tensor:
    """Abadi et al., algorithm 1: one example at a time, clipped jointly, summed in float64."""
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, keys or state.keys)
    task.model.frozen_mode()
    size = sum(parameter.numel() for parameter in trained.values())
    total = torch.zeros(size, dtype=torch.float64)
    for row in rows:
        gradient = one_gradient(task, row, trained)
        total += gradient / max(1.0, float(gradient.norm()) / clip_norm)
    return total


def private_plan(**changed: Any) -> PrivacyPlan:
    """A plan of few, loud steps; every field can be changed."""
    usual: dict[str, Any] = {
        "epsilon": 3.0,
        "delta": 1e-5,
        "sampling_probability": 0.5,
        "noise_multiplier": 2.0,
        "clip_norm": 1.0,
        "denominator": 4.0,
        "steps": 10,
        "unit": Unit.EXAMPLE,
        "relation": Relation.ADD_OR_REMOVE_ONE,
        "trust": Trust.SITE,
    }
    return PrivacyPlan(**{**usual, **changed})


def plan_off(**changed: Any) -> PrivacyPlan:
    """A plan without protection."""
    without = {"epsilon": float("inf"), "noise_multiplier": 0.0, "clip_norm": float("inf")}
    return private_plan(trust=Trust.OFF, **{**without, **changed})


def make_order(state: AdapterState, plan: PrivacyPlan, **changed: Any) -> RoundOrder:
    """An order to train everything with SGD at rate 1; fields of ``training`` may be given too."""
    training: dict[str, Any] = {
        "learning_rate": 1.0,
        "optimizer": "sgd",
        "schedule": "constant",
        "weight_decay": 0.0,
        "first_step": 0,
        "schedule_steps": 10,
        "microbatch": 4,
        "proximal": 0.0,
    }
    training |= {key: changed.pop(key) for key in list(changed) if key in training}
    usual: dict[str, Any] = {
        "run": "run",
        "round": 0,
        "site": "north",
        "adapter": state,
        "trainable": state.keys,
        "rule": "fedit",
        "plan": plan,
        "local_steps": 1,
        "num_examples": 100,
        "training": LocalTraining(**training),
    }
    return RoundOrder(**{**usual, **changed})
