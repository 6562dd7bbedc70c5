"""How long a clipped sum takes: each example's gradient by the layers' own pass, and by hooks.

MiniLM, 32 rows of 32 tokens, one thread, CPU seconds, the two in turn, the middle of several:

    python benchmarks/gradients.py [REPEATS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.model import Level
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.units import Units
from hushtune.common.tuning import GradientMethod, keep_freed_memory

ROWS, TOKENS = 32, 32
CASES: Sequence[tuple[str, int, Level, str]] = (
    ("six layers, A and B", 0, Level.TOKENS, ""),
    ("six layers, B", 0, Level.TOKENS, "lora_A"),
    ("last layer on kept states, B", 1, Level.HIDDEN, "lora_A"),
    ("head on kept features", 1, Level.FEATURES, "lora_"),
)
"""(name, adapted layers, where a pass starts, what is not trained)."""


def made(precision: str, layers: int) -> Supervised:
    """MiniLM with LoRA of rank 4 and a head of two classes, over random tokens."""
    base = AutoModel.from_pretrained(str(resolve_model("minilm")), attn_implementation="eager")
    model = lora.attach(
        base,
        model=ModelConfig(head="mean", precision=precision),
        adapter=AdapterConfig(rank=4, layers=layers),
        num_outputs=2,
        seed=0,
    )
    ids = np.random.default_rng(0).integers(1000, 20000, ROWS * TOKENS).astype(np.int32)
    offsets = np.arange(ROWS + 1, dtype=np.int64) * TOKENS
    tokens = TokenRows(torch.from_numpy(ids), offsets, 0, TOKENS)
    classes = np.arange(ROWS, dtype=np.int64) % 2
    return text_classification(model, tokens, classes, weights=(1.0, 1.0), cache_megabytes=64)


def seconds(task: Supervised, level: Level, frozen: str, repeats: int) -> dict[str, float]:
    """CPU seconds of one clipped sum, by method."""
    state = lora.initial_state(task.model, seed=0)
    task.level(state)  # fills what is kept
    keys = [key for key in state.keys if not frozen or frozen not in key]
    trained = lora.set_trainable(task.model, keys)
    task.model.training_mode()
    units = Units.single(np.arange(ROWS, dtype=np.int64))
    times: dict[str, list[float]] = {method: [] for method in GradientMethod}
    for _ in range(repeats):
        for method in GradientMethod:
            task.model.gradients = method
            began = time.process_time()
            with dp.per_example_gradients(task.model):  # once a round, here around one step
                dp.clipped_sum(
                    task, units, trained=trained, clip_norm=1.0, microbatch=ROWS, level=level
                )
            times[method].append(time.process_time() - began)
    return {method: statistics.median(found) for method, found in times.items()}


def main(repeats: int = 15) -> None:
    """Print one line a case."""
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| | precision | hooks, ms | fused, ms | saved |\n|---|---|---|---|---|")
    for precision in ("float32", "bfloat16"):
        for name, layers, level, frozen in CASES:
            found = seconds(made(precision, layers), level, frozen, repeats)
            hooks, fused = (1e3 * found[method] for method in ("hooks", "fused"))
            saved = f"{100 * (1 - fused / hooks):.0f} %"
            print(f"| {name} | {precision} | {hooks:.1f} | {fused:.1f} | {saved} |", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
