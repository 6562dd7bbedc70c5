"""Adapters in peft's own format: one plain LoRA adapter, whatever rule made it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from hushtune.common import lora
from hushtune.common.adapter import HEAD_PREFIX, AdapterState, a_key, b_key, head_key
from hushtune.common.lora_convolutions import as_convolutions, of_convolutions, plain_name
from hushtune.common.lora_embedding import give_back, is_embedding
from hushtune.common.low_rank import compressed, product, total
from hushtune.common.model import AdaptedModel

HEAD_FILE = "head.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"


def plain_adapter(state: AdapterState) -> AdapterState:
    """The same model as one plain LoRA adapter, of a higher rank where a base was changed.

    R goes into B. A change of the frozen weights stands beside the factors: ``A' = [A; base_A]``,
    ``B' = [s B, base_B]`` at scale 1. Where that is of lower rank than at the other modules, it is
    filled up with zeros, which change nothing.
    """
    spec = state.spec
    changed = any(state.base_change(module) is not None for module in spec.targets)
    if not changed and not spec.inner:
        return state
    head = {key: t for key, t in state.tensors.items() if key.startswith(HEAD_PREFIX)}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for module in spec.targets:
        a, b = state.factors(module)
        if changed:
            terms = [product(b, a, scale=spec.scale)]
            base = state.base_change(module)
            if base is not None:
                terms.append(product(base[1], base[0]))
            whole = compressed(total(terms))
            a, b = whole.right, whole.left
        found[module] = (a.float(), b.float())
    rank = max(a.shape[0] for a, _ in found.values())
    plain = replace(spec, inner=False)
    if changed:
        plain = replace(plain, rank=rank, alpha=float(rank), rslora=False)
    tensors = dict(head)
    for module, (a, b) in found.items():
        lacking = rank - a.shape[0]
        tensors[a_key(module)] = torch.nn.functional.pad(a, (0, 0, 0, lacking))
        tensors[b_key(module)] = torch.nn.functional.pad(b, (0, lacking))
    return AdapterState(plain, tensors)


def save_adapter(model: AdaptedModel, state: AdapterState, folder: Path, *, base_name: str) -> None:
    """Write a plain adapter in peft's own format, with the mean-pooled head beside it.

    ``model``: the one that it was trained on, or one of any other rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = cast(LoraConfig, copy.deepcopy(model.base.peft_config[lora.ADAPTER]))
    untyped = cast(Any, config)
    untyped.r, untyped.lora_alpha = state.spec.rank, state.spec.alpha
    untyped.use_rslora, untyped.inference_mode = state.spec.rslora, True
    untyped.base_model_name_or_path = base_name
    if any(plain_name(target) != target for target in state.spec.targets):
        untyped.target_modules = sorted(plain_name(target) for target in state.spec.targets)
    config.save_pretrained(str(folder))
    names = peft_names(model)
    tensors, head = dict[str, Tensor](), dict[str, Tensor]()
    matrices = of_convolutions(state.spec.targets)
    for key, tensor in state.tensors.items():
        if key in names:  # peft has the factors of convolutions as convolutions of 1 by 1
            found = tensor[:, :, None, None] if key in matrices else tensor
            tensors[names[key]] = found.contiguous()
        else:
            head[key.removeprefix(HEAD_PREFIX)] = tensor.contiguous()
    safetensors.torch.save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    if head:
        safetensors.torch.save_file(head, folder / HEAD_FILE)


def peft_names(model: AdaptedModel) -> dict[str, str]:
    """What peft calls the tensors of a plain adapter in its file, by key.

    Without the mean-pooled head, which peft knows nothing of.
    """
    spec, start = lora.spec(model), "base_model.model."
    own = spec.head if model.head is None else ()
    names = {head_key(name): f"{start}{name}" for name in own}
    for module in spec.targets:
        if is_embedding(model.base.get_submodule(start + module)):
            names[a_key(module)] = f"{start}{module}.lora_embedding_A"
            names[b_key(module)] = f"{start}{module}.lora_embedding_B"
        else:
            plain = plain_name(module)
            names[a_key(module)] = f"{start}{a_key(plain)}.weight"
            names[b_key(module)] = f"{start}{b_key(plain)}.weight"
    return names


def merged(model: AdaptedModel) -> PreTrainedModel:
    """The base with the installed plain adapter added to its weights; the model is used up."""
    give_back(model.base, lora.ADAPTER)
    with warnings.catch_warnings():
        # peft goes by the module's name. That no other module has the weight is checked before.
        warnings.filterwarnings("ignore", message="(?s).*tie_word_embeddings")
        base = cast(PreTrainedModel, cast(Any, model.base).merge_and_unload())
    as_convolutions(base)
    return base
