"""The pretrained base of a run: loaded whole or refused, and with adapters attached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from hushtune.common import lora
from hushtune.common.columns_model import columns_model
from hushtune.common.config import RunConfig
from hushtune.common.config_columns import public_columns
from hushtune.common.errors import MissingWeightsError, UnsupportedModelError
from hushtune.common.kinds import Inputs
from hushtune.common.lora_rules import RULES
from hushtune.common.lora_targets import head_modules
from hushtune.common.model import AdaptedModel, Head
from hushtune.common.packed_attention import COUNT_FROM_PADDING
from hushtune.common.planning import global_rank

if TYPE_CHECKING:
    from collections.abc import Mapping


def adapted_model(
    config: RunConfig,
    source: str,
    labels: tuple[str, ...],
    *,
    head: Head,
    num_outputs: int,
    pad_id: int | None,
) -> AdaptedModel:
    """The base model of a folder or a hub's id, with the run's adapters and head, on the device;
    or a network on columns, which has none.

    ``pad_id``: of texts, the token that rows are padded with.
    """
    if head is Head.COLUMNS:
        return columns_model(
            public_columns(config.data),
            model=config.model,
            adapter=config.adapter.model_copy(update={"rank": global_rank(config)}),
            num_outputs=num_outputs,
            seed=config.seed,
        )
    images = config.task.of.inputs is Inputs.IMAGE
    base = load_base(source, head, labels, images=images)
    if not images:
        _check_length(base, config.model.max_tokens)
        set_padding(base, pad_id)
    # Before adapters and hooks: they must be made where they will live.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nn.Module.to(base, device)
    return lora.attach(
        base,
        model=config.model,
        adapter=config.adapter.model_copy(update={"rank": global_rank(config)}),
        num_outputs=num_outputs,
        seed=config.seed,
        inner=RULES[config.aggregation.rule].inner,
        head=head,
    ).to(device)


def _check_length(base: PreTrainedModel, max_tokens: int) -> None:
    positions = getattr(base.config, "max_position_embeddings", None)
    if isinstance(positions, int) and base.config.model_type in COUNT_FROM_PADDING:
        positions -= int(base.config.pad_token_id or 0) + 1
    if isinstance(positions, int) and max_tokens > positions:
        raise UnsupportedModelError(
            "model.max_tokens is more than the model has positions for",
            given=max_tokens,
            expected=f"at most {positions}",
        )


def reads_and_writes(name: str) -> bool:
    """Whether a model has an encoder that reads and a decoder that writes; else one part does both.

    Raises MissingWeightsError where there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_loaded(name, error) from error
    return bool(config.is_encoder_decoder)


def set_padding(base: PreTrainedModel, pad_id: int | None) -> None:
    """Tell a base which token rows are padded with: heads that read the last token skip it.

    Families that count positions from it keep theirs: loaded anew they would count otherwise. So do
    models with a decoder, which may begin with it.
    """
    if base.config.model_type not in COUNT_FROM_PADDING and not base.config.is_encoder_decoder:
        base.config.pad_token_id = pad_id


def load_base(
    name: str, head: Head, labels: tuple[str, ...], *, images: bool = False
) -> PreTrainedModel:
    """A pretrained base in float32; safetensors only, and never code from the model's folder.

    ``images``: whether it reads images, for which a family has another head of its own.
    """
    disable_progress_bar()
    options: Mapping[str, object] = {
        "trust_remote_code": False,
        "use_safetensors": True,
        "dtype": torch.float32,
        # Fused attention on CPUs is several times slower than this one in bfloat16.
        "attn_implementation": "eager",
    }
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # weights that a checkpoint lacks are the same in every process
            own: Any = (
                AutoModelForImageClassification if images else AutoModelForSequenceClassification
            )
            base, report = _from_pretrained(name, head, labels, own, options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_loaded(name, error) from error
    _check_loaded(base, name, head, report)
    return base


def _not_loaded(name: str, error: Exception) -> MissingWeightsError:
    return MissingWeightsError(
        "the model cannot be loaded",
        given=name,
        expected="a folder with config.json and *.safetensors, or an id of the model hub",
        remedy=str(error).strip().splitlines()[0][:300],
    )


def _check_loaded(
    base: PreTrainedModel, name: str, head: Head, report: Mapping[str, Iterable[object]]
) -> None:
    """Refuse a checkpoint that lacks weights which no training makes up for."""
    # The mean head never reads a pooler; the family's own head is trained from new weights.
    made_anew = head_modules(base) if head is Head.OWN else ("pooler",)
    absent = {str(key) for key in report["missing_keys"]}
    # A weight of another shape is listed as (key, shape there, shape expected).
    absent |= {str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"]}
    lacking = sorted(key for key in absent if key.split(".")[0] not in made_anew)
    if lacking:
        raise MissingWeightsError(
            "the model's weights are not whole, or belong to another configuration",
            given=f"{name}: {len(lacking)} weights are absent or of another shape, such as "
            f"{lacking[0]}",
            expected="every weight that config.json speaks of",
            remedy="get the checkpoint again"
            + ('; without a pooler, set model.head = "mean"' if "pooler" in lacking[0] else ""),
        )


def _from_pretrained(
    name: str, head: Head, labels: tuple[str, ...], own: Any, options: Mapping[str, object]
) -> tuple[PreTrainedModel, Mapping[str, Iterable[object]]]:
    """The model, and which weights the checkpoint lacks or has in another shape."""
    options = {**options, "output_loading_info": True}
    if head is not Head.OWN:
        auto: Any = AutoModel
        if head is Head.WORDS:
            auto = AutoModelForSeq2SeqLM if reads_and_writes(name) else AutoModelForCausalLM
        return auto.from_pretrained(name, **options)
    config = AutoConfig.from_pretrained(
        name,
        trust_remote_code=False,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return own.from_pretrained(name, config=config, ignore_mismatched_sizes=True, **options)
