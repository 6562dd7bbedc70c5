"""The peft bridge: attach adapters to a base, read them out, put them in, save them."""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hushtune.common.adapter import AdapterSpec, AdapterState, a_key, b_key, head_key
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.model import AdaptedModel
from hushtune.common.seeds import generator

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
}
_ADAPTER = "default"
HEAD_FILE = "head.safetensors"


def transformer_blocks(base: PreTrainedModel) -> nn.ModuleList:
    """The list of the base's blocks: the one ModuleList as long as the model is deep."""
    depth = getattr(base.config, "num_hidden_layers", None)
    lists = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise UnsupportedModelError(
            "no stack of transformer blocks was found in the model",
            given=type(base).__name__,
            expected="one ModuleList of config.num_hidden_layers blocks",
            remedy="use an encoder or decoder of the BERT, GPT-2, Llama, Qwen or ViT kind",
        )
    return lists[0]


def keep_first_blocks(base: PreTrainedModel, layer: int | None) -> None:
    """Drop the blocks above ``layer``, so that the head reads that layer's output."""
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
    """Full names of the modules to adapt: the config's, or the family's, in the top blocks."""
    family = str(base.config.model_type)
    wanted = config.targets or FAMILY_TARGETS.get(family, ())
    if not wanted:
        raise TargetModuleError(
            "no default targets are known for this family of models",
            given=family,
            expected=", ".join(sorted(FAMILY_TARGETS)),
            remedy="name the modules in adapter.targets",
        )
    blocks = transformer_blocks(base)
    if config.layers > len(blocks):
        raise UnsupportedModelError(
            "adapter.layers is more than the model has blocks",
            given=config.layers,
            expected=f"1 to {len(blocks)}, or 0 for all",
            remedy="set adapter.layers = 0",
        )
    lowest = len(blocks) - config.layers if config.layers else 0
    prefix = _name_of(base, blocks)
    linear = [
        (name, int(name[len(prefix) + 1 :].split(".")[0]))
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix + ".")
    ]
    found: list[str] = []
    for target in wanted:
        ends = [name for name, _ in linear if name == target or name.endswith("." + target)]
        if not ends:
            short = sorted({".".join(name[len(prefix) + 1 :].split(".")[1:]) for name, _ in linear})
            near = difflib.get_close_matches(target, short, n=3, cutoff=0.3) or short
            raise TargetModuleError(
                f"the model has no module {target!r} to adapt",
                given=target,
                expected=", ".join(short),
                remedy=f"set adapter.targets, perhaps to {near[0]!r}",
            )
        high = [name for name, index in linear if name in ends and index >= lowest]
        if not high:
            raise TargetModuleError(
                f"no adapted block has a module {target!r}",
                given=f"adapter.layers = {config.layers}, {ends[-1]}",
                expected=f"a module of the top {config.layers} of {len(blocks)} blocks",
                remedy="raise adapter.layers, or take the name out of adapter.targets",
            )
        found += high
    return tuple(sorted(set(found)))


def _check_rank(base: PreTrainedModel, targets: Iterable[str], rank: int) -> None:
    for name in targets:
        width = min(cast(Tensor, base.get_submodule(name).weight).shape)
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


def attach(
    base: PreTrainedModel,
    *,
    model: ModelConfig,
    adapter: AdapterConfig,
    num_labels: int,
    seed: int,
) -> AdaptedModel:
    """Freeze a base and attach LoRA and head, with ``initial_state(seed)`` installed.

    With ``model.head == "own"`` the base must be a sequence or image classification model.
    """
    keep_first_blocks(base, model.layer)
    own = head_modules(base) if model.head == "own" else ()
    refuse_unfit(base, own)
    base.eval()
    if model.head == "own" and not own:
        raise UnsupportedModelError(
            "the model has no head of its own",
            given=type(base).__name__,
            remedy='set model.head = "mean"',
        )
    targets = find_targets(base, adapter)
    _check_rank(base, targets, adapter.rank)
    blocks = transformer_blocks(base)
    prefix = _name_of(base, blocks)
    first = min(int(name[len(prefix) + 1 :].split(".")[0]) for name in targets)
    identity = fingerprint(base, without=own)
    hidden_size = int(base.config.hidden_size)
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS if own and _is_text(base) else None,
        r=adapter.rank,
        lora_alpha=cast(int, adapter.alpha),
        lora_dropout=adapter.dropout,
        use_rslora=adapter.rslora,
        target_modules=list(targets),
        modules_to_save=list(own) or None,
        fan_in_fan_out=any(isinstance(base.get_submodule(name), Conv1D) for name in targets),
    )
    with warnings.catch_warnings():
        # peft asks for an attribute that transformers has renamed.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        wrapped = cast(PeftModel, get_peft_model(base, lora))
    adapted = AdaptedModel(
        wrapped,
        blocks=blocks,
        first_adapted=first,
        num_labels=num_labels,
        hidden_size=hidden_size,
        feature_scale=model.feature_scale,
        head_kind=model.head,
        precision="float32" if model.precision == "auto" else model.precision,
        fingerprint=identity,
    )
    adapted.requires_grad_(False)
    adapted.eval()
    install(adapted, initial_state(adapted, seed=seed))
    return adapted


def _is_text(base: PreTrainedModel) -> bool:
    return base.main_input_name == "input_ids"


def _name_of(base: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in base.named_modules() if module is wanted)


def parameters(model: AdaptedModel) -> dict[str, nn.Parameter]:
    """Every tensor that an adapter holds, by its key; sorted."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.base.named_parameters():
        module = name.removeprefix("base_model.model.")
        for suffix, key in ((".lora_A", a_key), (".lora_B", b_key)):
            ending = f"{suffix}.{_ADAPTER}.weight"
            if module.endswith(ending):
                found[key(module.removesuffix(ending))] = parameter
        middle = f".modules_to_save.{_ADAPTER}."
        if middle in module:
            found[head_key(module.replace(middle, "."))] = parameter
    if model.head is not None:
        for name, parameter in model.head.named_parameters():
            found[head_key(name)] = parameter
    return dict(sorted(found.items()))


def spec(model: AdaptedModel) -> AdapterSpec:
    """The description of the adapters that fit a model."""
    config = cast(LoraConfig, model.base.peft_config[_ADAPTER])
    keys = list(parameters(model))
    # Not config.target_modules: of twenty names and more peft keeps only their endings.
    targets = sorted(key.removesuffix(a_key("")) for key in keys if key.endswith(a_key("")))
    return AdapterSpec(
        base=model.fingerprint,
        rank=config.r,
        alpha=float(config.lora_alpha),
        rslora=config.use_rslora,
        targets=tuple(targets),
        head=tuple(key.removeprefix("head.") for key in keys if key.startswith("head.")),
    )


def initial_state(model: AdaptedModel, *, seed: int) -> AdapterState:
    """A with orthonormal rows, B zero, a zero linear head; a deeper own head gets small weights.

    Everybody who knows the seed gets the same A, which FFA-LoRA needs (2403.12313).
    """
    tensors: dict[str, Tensor] = {}
    for key, parameter in parameters(model).items():
        shape = tuple(parameter.shape)
        random = generator(seed, "initial adapter", key)
        if key.endswith(".lora_A"):
            gauss = torch.randn(shape[1], shape[0], generator=random, dtype=torch.float64)
            tensors[key] = torch.linalg.qr(gauss).Q.T.contiguous().float()  # (r, d_in)
        elif key.startswith("head.") and len(shape) > 1 and model.head is None:
            tensors[key] = torch.randn(shape, generator=random) * 0.02
        else:
            tensors[key] = torch.zeros(shape)
    return AdapterState(spec(model), tensors)


def extract(model: AdaptedModel, keys: Sequence[str] | None = None) -> AdapterState:
    """Copy the adapter (or some of its tensors) out of a model, as float32 on the CPU."""
    found = parameters(model)
    return AdapterState(
        spec(model),
        {key: found[key].detach().to("cpu", torch.float32, copy=True) for key in keys or found},
    )


@torch.no_grad()
def install(model: AdaptedModel, state: AdapterState) -> None:
    """Copy an adapter into a model; raises TargetModuleError unless it was made for this model."""
    mine = spec(model)
    if state.spec != mine:
        theirs, ours = state.spec.to_dict(), mine.to_dict()
        differing = [key for key in ours if ours[key] != theirs[key]]
        raise TargetModuleError(
            "the adapter was made for another model",
            given=f"{differing[0]} = {theirs[differing[0]]}",
            expected=f"{differing[0]} = {ours[differing[0]]}",
        )
    found = parameters(model)
    for key, tensor in state.tensors.items():
        if found[key].shape != tensor.shape:
            raise TargetModuleError(
                f"tensor {key} has the wrong shape",
                given=str(tuple(tensor.shape)),
                expected=str(tuple(found[key].shape)),
            )
        found[key].copy_(tensor)


def set_trainable(model: AdaptedModel, keys: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let exactly the named tensors require gradients; return them, sorted by key."""
    found = parameters(model)
    model.requires_grad_(False)
    chosen = {key: found[key] for key in sorted(keys)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def save_adapter(model: AdaptedModel, state: AdapterState, folder: Path, *, base_name: str) -> None:
    """Write ``state`` in peft's own format, with the mean-pooled head beside it."""
    install(model, state)
    config = cast(Any, model.base.peft_config[_ADAPTER])
    config.base_model_name_or_path = base_name
    model.base.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    if model.head is not None:
        head = {name: tensor.detach().clone() for name, tensor in model.head.state_dict().items()}
        safetensors.torch.save_file(head, folder / HEAD_FILE)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; ours is written later
