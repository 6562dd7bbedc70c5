"""Which modules of a base are adapted, and what a base must be to be adapted at all."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hushtune.common.config import AdapterConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.lora_convolutions import CONVOLUTIONAL, is_convolutional, pointwise_places

# Value and output projections gain more than query and value at equal privacy. Where a family
# fuses query, key and value, the fused projection stands in.
FAMILY_TARGETS: Mapping[str, tuple[str, ...]] = {
    "bert": ("attention.self.value", "attention.output.dense"),
    "roberta": ("attention.self.value", "attention.output.dense"),
    "xlm-roberta": ("attention.self.value", "attention.output.dense"),
    "electra": ("attention.self.value", "attention.output.dense"),
    "distilbert": ("attention.v_lin", "attention.out_lin"),
    "mpnet": ("attention.attn.v", "attention.attn.o"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "llama": ("self_attn.v_proj", "self_attn.o_proj"),
    "mistral": ("self_attn.v_proj", "self_attn.o_proj"),
    "qwen2": ("self_attn.v_proj", "self_attn.o_proj"),
    "qwen3": ("self_attn.v_proj", "self_attn.o_proj"),
    "vit": ("attention.v_proj", "attention.o_proj"),
    "dinov2": ("attention.v_proj", "attention.o_proj"),
    **{family: found.targets for family, found in CONVOLUTIONAL.items()},
    "t5": ("SelfAttention.v", "SelfAttention.o", "EncDecAttention.v", "EncDecAttention.o"),
    "bart": (
        *("self_attn.v_proj", "self_attn.out_proj"),
        *("encoder_attn.v_proj", "encoder_attn.out_proj"),
    ),
}


def stacks(base: PreTrainedModel) -> tuple[nn.ModuleList, ...]:
    """Every list of the base's blocks: of an encoder and a decoder, or the one that there is."""
    if not base.config.is_encoder_decoder:
        return (transformer_blocks(base),)
    parts = cast(nn.Module, base.get_encoder()), cast(nn.Module, base.get_decoder())
    found = [next((m for m in p.modules() if isinstance(m, nn.ModuleList)), None) for p in parts]
    if None in found:
        raise UnsupportedModelError(
            "no stacks of transformer blocks were found in encoder and decoder",
            given=type(base).__name__,
            expected="a model of the T5 or BART kind",
        )
    return tuple(blocks for blocks in found if blocks is not None)


def transformer_blocks(base: PreTrainedModel) -> nn.ModuleList:
    """The list of the base's blocks: the one ModuleList as long as the model is deep; of an encoder
    and a decoder the decoder's."""
    if base.config.is_encoder_decoder:
        return stacks(base)[-1]
    depth = getattr(base.config, "num_hidden_layers", None)
    lists = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise UnsupportedModelError(
            "no stack of transformer blocks was found in the model",
            given=type(base).__name__,
            expected="one ModuleList of config.num_hidden_layers blocks",
            remedy="use an encoder or decoder of the BERT, GPT-2, Llama, Qwen or ViT kind, or of "
            f"the convolutional ones {', '.join(CONVOLUTIONAL)}",
        )
    return lists[0]


def keep_first_blocks(base: PreTrainedModel, layer: int | None) -> None:
    """Drop the blocks above ``layer``, so that the head reads that layer's output."""
    if layer is not None and base.config.is_encoder_decoder:
        raise UnsupportedModelError(
            "a model with an encoder and a decoder cannot be cut to its first blocks",
            given=f"model.layer = {layer}",
            expected="no model.layer",
            remedy="leave model.layer out",
        )
    if is_convolutional(base):
        if layer is not None:
            raise UnsupportedModelError(
                "of a convolutional model all layers are kept",
                given=f"model.layer = {layer}",
                expected="no model.layer",
            )
        return
    blocks = transformer_blocks(base)
    if layer is None or layer == len(blocks):
        return
    if layer > len(blocks):
        raise UnsupportedModelError(
            "model.layer is deeper than the model", given=layer, expected=f"1 to {len(blocks)}"
        )
    del blocks[layer:]
    base.config.num_hidden_layers = layer
    if getattr(base.config, "layer_types", None):
        base.config.layer_types = base.config.layer_types[:layer]


def fingerprint(base: nn.Module, *, without: Iterable[str] = ()) -> str:
    """sha256 over the names and values of a model's weights, but for the named children."""
    skipped = tuple(f"{name}." for name in without)
    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        if not name.startswith(skipped) or not skipped:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def refuse_unfit(base: PreTrainedModel, own: Sequence[str] = ()) -> None:
    """Refuse models in which one example's output depends on the others of its batch, while the
    children named in ``own`` (the head) are trained."""
    for name, module in base.named_modules():
        trains = module.training or name.split(".")[0] in own
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and trains:  # pyright: ignore[reportPrivateUsage]
            raise UnsupportedModelError(
                "BatchNorm in training mode mixes the examples of a batch, so that no example's "
                "influence can be bounded",
                given=name,
                expected="GroupNorm or LayerNorm, or BatchNorm in evaluation mode",
                remedy="call model.eval() on the frozen base; in the model's own head replace the "
                'layer, or set model.head = "mean"',
            )


def find_targets(base: PreTrainedModel, config: AdapterConfig) -> tuple[str, ...]:
    """Full names of the modules to adapt: the config's, or the family's, in the top blocks; of an
    encoder and a decoder in the top blocks of each.

    The embedding of tokens, which lies below all blocks, is one where the config names it.
    """
    family = str(base.config.model_type)
    wanted = config.targets or FAMILY_TARGETS.get(family, ())
    if not wanted:
        raise TargetModuleError(
            "no default targets are known for this family of models",
            given=family,
            expected=", ".join(sorted(FAMILY_TARGETS)),
            remedy="name the modules in adapter.targets",
        )
    linear, depth = _places(base)
    if config.layers > depth:
        raise UnsupportedModelError(
            "adapter.layers is more than the model has blocks",
            given=config.layers,
            expected=f"1 to {depth}, or 0 for all",
            remedy="set adapter.layers = 0",
        )
    lowest = depth - config.layers if config.layers else -math.inf
    found: list[str] = []
    for target in wanted:
        tokens = _embedding(base, target)
        if tokens is not None:
            found.append(tokens)
            continue
        ends = [name for name, _, _ in linear if _is_called(name, target)]
        if not ends:
            inside = {short for _, _, short in linear}
            tokens = None if is_convolutional(base) else base.get_input_embeddings()
            below = {name_of(base, tokens)} if isinstance(tokens, nn.Embedding) else set[str]()
            short = sorted(inside | below)
            near = difflib.get_close_matches(target, short, n=3, cutoff=0.3) or short
            raise TargetModuleError(
                f"the model has no module {target!r} to adapt",
                given=target,
                expected=", ".join(short),
                remedy=f"set adapter.targets, perhaps to {near[0]!r}",
            )
        high = [name for name, index, _ in linear if name in ends and index >= lowest]
        if not high:
            raise TargetModuleError(
                f"no adapted block has a module {target!r}",
                given=f"adapter.layers = {config.layers}, {ends[-1]}",
                expected=f"a module of the top {config.layers} of {depth} blocks",
                remedy="raise adapter.layers, or take the name out of adapter.targets",
            )
        found += high
    return tuple(sorted(set(found)))


def _places(base: PreTrainedModel) -> tuple[list[tuple[str, int, str]], int]:
    """Names of all modules that can be adapted, each with its block and its name in there; and how
    many blocks there are.

    Of an encoder and a decoder the fewer of the two, and the top block of each is the last."""
    if is_convolutional(base):
        return pointwise_places(base)
    parts = stacks(base)
    depth = min(len(blocks) for blocks in parts)
    linear: list[tuple[str, int, str]] = []
    for blocks in parts:
        prefix = name_of(base, blocks)
        for name, module in base.named_modules():
            place = place_in(prefix, name)
            if isinstance(module, nn.Linear | Conv1D) and place is not None:
                within = name.removeprefix(f"{prefix}.{place}.")
                linear.append((name, place - len(blocks) + depth, within))
    return linear, depth


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def place_in(prefix: str, name: str) -> int | None:
    """The block that a module lies in, where the blocks are called ``prefix``; None outside them.

    >>> place_in("encoder.layer", "encoder.layer.2.output.dense")
    2
    """
    if not name.startswith(prefix + "."):
        return None
    return int(name[len(prefix) + 1 :].split(".", maxsplit=1)[0])


def _embedding(base: PreTrainedModel, target: str) -> str | None:
    """The full name of the embedding of tokens if that is what a target names.

    Raises TargetModuleError for another embedding: positions are looked up once for a whole batch,
    so that no example has a gradient of its own there.
    """
    named = [
        (name, module)
        for name, module in base.named_modules()
        if isinstance(module, nn.Embedding) and _is_called(name, target)
    ]
    if not named:
        return None
    tokens = base.get_input_embeddings()
    for name, module in named:
        # One of a class of its own may do more than look up rows, as Gemma's, which scales them.
        if module is not tokens or type(module) is not nn.Embedding or module.max_norm is not None:
            raise TargetModuleError(
                "of embeddings only a plain one of tokens can be adapted",
                given=f"{name}, {type(module).__name__}",
                expected=f"{name_of(base, tokens)}, torch.nn.Embedding without max_norm",
                remedy=f"take {target!r} out of adapter.targets",
            )
    return named[0][0]


def refuse_tied(base: PreTrainedModel, targets: Iterable[str]) -> None:
    """Refuse a target whose weight is another module's too, as an embedding's may be lm_head's."""
    owners = [
        (name, parameter)
        for name, module in base.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    ]
    for target in targets:
        weight = cast(Tensor, base.get_submodule(target).weight)
        others = [name for name, parameter in owners if parameter is weight and name != target]
        if others:
            raise TargetModuleError(
                "a module to adapt shares its weight with another one: the adapter would change "
                "the one alone, and, merged into the weight, both",
                given=f"{target}, tied to {', '.join(others)}",
                expected="modules whose weights are their own",
                remedy=f"take {target!r} out of adapter.targets, or load the model without "
                f"{others[0]!r} (AutoModel) or with tie_word_embeddings = false",
            )


def check_rank(base: PreTrainedModel, targets: Iterable[str], rank: int) -> None:
    """Refuse a rank at which a module would not be adapted at low rank."""
    for name in targets:
        width = min(cast(Tensor, base.get_submodule(name).weight).flatten(1).shape)
        if rank > width:
            raise TargetModuleError(
                "the rank is larger than a module that it should adapt at low rank",
                given=f"adapter.rank = {rank}, {name} of {width}",
                expected=f"1 to {width}",
                remedy="lower adapter.rank; 1 to 8 is usual",
            )


def head_modules(base: PreTrainedModel) -> tuple[str, ...]:
    """Names of the family's own head: the children beside the backbone that hold weights."""
    prefix = base.base_model_prefix
    return tuple(
        name
        for name, child in base.named_children()
        if name != prefix and any(True for _ in child.parameters())
    )


def name_of(base: nn.Module, wanted: nn.Module) -> str:
    """The full name of a module of a base."""
    return next(name for name, module in base.named_modules() if module is wanted)
