"""The peft bridge: attach adapters to a base, read them out, put them in.

Which modules are adapted is in ``lora_targets``, how adapters are saved in ``lora_files``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hushtune.common.adapter import (
    A_SUFFIX,
    B_SUFFIX,
    R_SUFFIX,
    AdapterSpec,
    AdapterState,
    a_key,
    base_keys,
    head_key,
)
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.lora_convolutions import as_linear, channels, is_convolutional
from hushtune.common.lora_embedding import columns, hold_in_modules, is_embedding
from hushtune.common.lora_targets import (
    check_rank,
    find_targets,
    fingerprint,
    head_modules,
    keep_first_blocks,
    name_of,
    place_in,
    refuse_tied,
    refuse_unfit,
    transformer_blocks,
)
from hushtune.common.model import AdaptedModel, Head
from hushtune.common.rounded_weights import keep_rounded
from hushtune.common.seeds import generator

ADAPTER = "default"
"""What peft calls the one adapter of a model."""
HIDDEN_KEY = head_key("hidden.weight")
"""Of a network on columns: the layer that must not begin at zero, as it would stay there."""
_SUFFIXES = (A_SUFFIX, B_SUFFIX, R_SUFFIX)


def attach(
    base: PreTrainedModel,
    *,
    model: ModelConfig,
    adapter: AdapterConfig,
    num_outputs: int,
    seed: int,
    inner: bool = False,
    head: Head | None = None,
) -> AdaptedModel:
    """Freeze a base and attach LoRA and head, with ``initial_state(seed)`` installed.

    ``inner``: with the factor R between B and A. ``head``: None for the one of ``model``; with
    ``Head.OWN`` the base must be a sequence or image classification model.
    """
    head = Head(model.head) if head is None else head
    keep_first_blocks(base, model.layer)
    own = head_modules(base) if head is Head.OWN else ()
    refuse_unfit(base, own)
    base.eval()
    if head is Head.OWN and not own:
        raise UnsupportedModelError(
            "the model has no head of its own",
            given=type(base).__name__,
            remedy='set model.head = "mean"',
        )
    targets = find_targets(base, adapter)
    refuse_tied(base, targets)
    check_rank(base, targets, adapter.rank)
    identity = fingerprint(base, without=own)
    if is_convolutional(base):
        blocks, places, hidden_size = None, [], channels(base)
        targets = as_linear(base, targets)
    else:
        blocks = transformer_blocks(base)
        places = [place_in(name_of(base, blocks), name) for name in targets]
        hidden_size = int(base.config.hidden_size)
    lora = LoraConfig(
        task_type=_peft_task(base, head),
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
        first_adapted=min((0 if place is None else place for place in places), default=0),
        adapts_tokens=None in places,
        num_outputs=num_outputs,
        hidden_size=hidden_size,
        feature_scale=model.feature_scale,
        head_kind=head,
        precision="float32" if model.precision == "auto" else model.precision,
        fingerprint=identity,
    )
    for name in targets:
        _prepare(adapted, name, inner=inner)
    adapted.requires_grad_(False)
    adapted.eval()
    if adapted.precision == "bfloat16":
        keep_rounded(adapted, but=parameters(adapted).values())
    install(adapted, initial_state(adapted, seed=seed))
    return adapted


def _peft_task(base: PreTrainedModel, head: Head) -> TaskType | None:
    """What peft calls a model that its own classes load whole; None for a base without its head."""
    if head is Head.WORDS:
        return TaskType.SEQ_2_SEQ_LM if base.config.is_encoder_decoder else TaskType.CAUSAL_LM
    text = base.main_input_name == "input_ids"
    return TaskType.SEQ_CLS if head is Head.OWN and text else None


def _layer(model: AdaptedModel, module: str) -> LoraLayer:
    return cast(LoraLayer, model.base.get_submodule(f"base_model.model.{module}"))


def _prepare(model: AdaptedModel, module: str, *, inner: bool) -> None:
    """Room for R between A and B, and for a change of the frozen weight."""
    layer = cast(Any, _layer(model, module))
    of_tokens = is_embedding(layer)
    if of_tokens:
        hold_in_modules(layer, ADAPTER)
    if inner:
        rank = layer.r[ADAPTER]
        layer.lora_R = nn.ModuleDict({ADAPTER: nn.Linear(rank, rank, bias=False)})
        layer.lora_A[ADAPTER].register_forward_hook(
            lambda _module, _inputs, output: layer.lora_R[ADAPTER](output)
        )

    def change(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        factors = model.base_change.get(module)
        if factors is None:
            return output
        a, b = factors
        inner = columns(inputs[0], a) if of_tokens else nn.functional.linear(inputs[0], a)
        return output + nn.functional.linear(inner, b)

    layer.base_layer.register_forward_hook(change)


def _resize(model: AdaptedModel, rank: int) -> None:
    """Give every adapted module factors of another rank, not yet filled."""
    config = cast(LoraConfig, model.base.peft_config[ADAPTER])
    if config.r == rank:
        return
    mine = spec(model)
    scale = replace(mine, rank=rank).scale
    for module in mine.targets:
        layer = cast(Any, _layer(model, module))
        a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        a.weight = nn.Parameter(a.weight.new_zeros(rank, a.in_features), requires_grad=False)
        b.weight = nn.Parameter(b.weight.new_zeros(b.out_features, rank), requires_grad=False)
        a.out_features = b.in_features = rank
        if mine.inner:
            r = layer.lora_R[ADAPTER]
            r.weight = nn.Parameter(r.weight.new_zeros(rank, rank), requires_grad=False)
            r.in_features = r.out_features = rank
        layer.r[ADAPTER], layer.scaling[ADAPTER] = rank, scale
    config.r = rank


def parameters(model: AdaptedModel) -> dict[str, nn.Parameter]:
    """Every tensor that an adapter holds, by its key; sorted."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.base.named_parameters():
        module = name.removeprefix("base_model.model.")
        for suffix in _SUFFIXES:
            ending = f"{suffix}.{ADAPTER}.weight"
            if module.endswith(ending):
                found[module.removesuffix(ending) + suffix] = parameter
        middle = f".modules_to_save.{ADAPTER}."
        if middle in module:
            found[head_key(module.replace(middle, "."))] = parameter
    if model.head is not None:
        for name, parameter in model.head.named_parameters():
            found[head_key(name)] = parameter
    return dict(sorted(found.items()))


def spec(model: AdaptedModel, keys: Iterable[str] | None = None) -> AdapterSpec:
    """The description of the adapters that fit a model; ``keys``: of its ``parameters``, where they
    are at hand, as finding them goes through all modules."""
    config = cast(LoraConfig, model.base.peft_config[ADAPTER])
    keys = sorted(parameters(model) if keys is None else keys)
    # Not config.target_modules: of twenty names and more peft keeps only their endings.
    targets = sorted(key.removesuffix(a_key("")) for key in keys if key.endswith(a_key("")))
    return AdapterSpec(
        base=model.fingerprint,
        rank=config.r,
        alpha=float(config.lora_alpha),
        rslora=config.use_rslora,
        targets=tuple(targets),
        head=tuple(key.removeprefix("head.") for key in keys if key.startswith("head.")),
        inner=any(key.endswith(R_SUFFIX) for key in keys),
    )


def initial_state(model: AdaptedModel, *, seed: int) -> AdapterState:
    """A with orthonormal rows, B zero, a zero linear head; a deeper own head gets small weights,
    and so does the hidden layer of a network on columns, whose last one is zero.

    Everybody who knows the seed gets the same A, which FFA-LoRA needs (2403.12313). Where R stands
    between them, B has orthonormal columns and R is zero.
    """
    mine = spec(model)
    tensors: dict[str, Tensor] = {}
    for key, parameter in parameters(model).items():
        shape = tuple(parameter.shape)
        if key.endswith(A_SUFFIX):
            tensors[key] = orthonormal(shape, seed, key)
        elif key.endswith(B_SUFFIX) and mine.inner:
            tensors[key] = orthonormal((shape[1], shape[0]), seed, key).T.contiguous()
        elif key.startswith("head.") and len(shape) > 1 and model.head is None:
            random = generator(seed, "initial adapter", key)
            tensors[key] = torch.randn(shape, generator=random) * 0.02
        elif key == HIDDEN_KEY and model.head_kind is Head.COLUMNS:
            random = generator(seed, "initial adapter", key)
            tensors[key] = torch.randn(shape, generator=random) * parameter.shape[-1] ** -0.5
        else:
            tensors[key] = torch.zeros(shape)
    return AdapterState(mine, tensors)


def orthonormal(shape: tuple[int, ...], seed: int, key: str, *also: int) -> Tensor:
    """Random orthonormal rows for a factor, which follow from the seed and the factor's key."""
    random = generator(seed, "initial adapter", key, *also)
    gauss = torch.randn(shape[1], shape[0], generator=random, dtype=torch.float64)
    return torch.linalg.qr(gauss).Q.T.contiguous().float()


def extract(model: AdaptedModel, keys: Sequence[str] | None = None) -> AdapterState:
    """Copy the adapter (or some of its tensors) out of a model, as float32 on the CPU.

    The whole adapter comes with what it changes of the frozen weights.
    """
    own = parameters(model)
    found = dict[str, Tensor](own)
    if keys is None:
        for module, factors in model.base_change.items():
            found |= dict(zip(base_keys(module), factors, strict=True))
    return AdapterState(
        spec(model, own),
        {key: found[key].detach().to("cpu", torch.float32, copy=True) for key in keys or found},
    )


@torch.no_grad()
def install(model: AdaptedModel, state: AdapterState) -> None:
    """Copy an adapter of any rank into a model; raises TargetModuleError unless it was made for it.

    The frozen weights are changed as the state says, from what they were at first.
    """
    found = parameters(model)
    mine = spec(model, found)
    if replace(state.spec, rank=mine.rank) != mine:
        theirs, ours = state.spec.to_dict(), mine.to_dict()
        differing = [key for key in ours if ours[key] != theirs[key] and key != "rank"]
        raise TargetModuleError(
            "the adapter was made for another model",
            given=f"{differing[0]} = {theirs[differing[0]]}",
            expected=f"{differing[0]} = {ours[differing[0]]}",
        )
    if state.spec.rank != mine.rank:
        _resize(model, state.spec.rank)
        found = parameters(model)
    for key, parameter in found.items():
        tensor = state.tensors.get(key)
        if tensor is not None:
            _require_shape(key, tensor, parameter.shape)
            parameter.copy_(tensor)
    model.base_change.clear()
    for module in mine.targets:
        factors = state.base_change(module)
        if factors is not None:
            (a_name, b_name), (a, b) = base_keys(module), factors
            like_a, like_b = found[a_key(module)], found[module + B_SUFFIX]
            rank = a.shape[0] if a.dim() else 0
            _require_shape(a_name, a, (rank, like_a.shape[1]))
            _require_shape(b_name, b, (like_b.shape[0], rank))
            model.base_change[module] = (a.to(like_a.device), b.to(like_b.device))


def _require_shape(key: str, tensor: Tensor, expected: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise TargetModuleError(
            f"tensor {key} has the wrong shape",
            given=str(tuple(tensor.shape)),
            expected=str(tuple(expected)),
        )


def set_trainable(model: AdaptedModel, keys: Sequence[str]) -> dict[str, nn.Parameter]:
    """Let exactly the named tensors require gradients; return them, sorted by key."""
    found = parameters(model)
    model.requires_grad_(False)
    chosen = {key: found[key] for key in sorted(keys)}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen
