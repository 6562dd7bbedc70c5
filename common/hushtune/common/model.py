"""The adapted model: a frozen pretrained base, LoRA in its top blocks, and a head.

One such model is loaded once in a process; adapters are swapped in it (``hushtune.common.lora``).
The base stays in evaluation mode, so its output for a row never changes and can be kept: training
may start from tokens, from the hidden states that enter the first adapted block, or, while every
factor B is zero, from the pooled features (``Level``). Where the embedding of tokens is adapted,
hidden states change with it and are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hushtune.common import packed_attention
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.known_states import (
    PassThrough,
    SeenEnoughError,
    hidden_argument,
    with_hidden,
)
from hushtune.common.packing import Packing
from hushtune.common.tuning import GradientMethod

Inputs = Mapping[str, Tensor]

ANSWER_AT, ANSWERS = "answer_at", "answers"
"""Inputs of language models that no base takes: the places ``(b, k)`` whose outputs are wanted; and
the tokens ``(b, k)`` of an answer, which a model of two parts is given shifted by one."""


class Level(StrEnum):
    """Where a forward pass starts; each gives the same logits where it is allowed."""

    TOKENS = "tokens"
    HIDDEN = "hidden"
    FEATURES = "features"


class Head(StrEnum):
    """What turns the base's output into the model's."""

    MEAN = "mean"  # mean of the states, scaled to a norm, then a linear layer
    PAIR = "pair"  # the same of each of two texts that were read as one, side by side
    OWN = "own"  # the family's own classification head, a part of the base
    TOKENS = "tokens"  # a linear layer on the state of each token
    WORDS = "words"  # a language model's own, frozen, at the places that carry loss
    COLUMNS = "columns"  # a small network on a table's columns, which is all there is


class AdaptedModel(nn.Module):
    """Base + LoRA + head; ``forward(inputs) -> outputs``, one row an example.

    Outputs are ``(b, num_outputs)``, with a head for tokens ``(b, t, num_outputs)``, with one for
    words ``(b, k, num_outputs)`` at the ``k`` places of the answer.
    ``inputs`` holds what the base's own forward takes (``input_ids`` and ``attention_mask``, or
    ``pixel_values``), and may hold ``hidden (b, t, d)``, the states that enter the first adapted
    block, or ``features (b, f)``, what the mean-pooled head reads: ``f`` is ``d``, of pairs twice
    that. For words see ``ANSWER_AT``.
    """

    gradients = GradientMethod.HOOKS
    pack = False  # whether texts of a step lie side by side, where they can: see ``packs``

    def __init__(
        self,
        base: PeftModel,
        *,
        blocks: nn.ModuleList | None,
        first_adapted: int,
        num_outputs: int,
        hidden_size: int,
        feature_scale: float,
        head_kind: Head,
        precision: str,
        fingerprint: str,
        adapts_tokens: bool = False,
        head: nn.Module | None = None,
    ) -> None:
        """``adapts_tokens``: the embedding of tokens is adapted, so no states that enter a block
        can be kept. ``blocks``: None where there is no base, or a convolutional one, of which none
        are kept either. ``head``: in place of a linear one."""
        super().__init__()
        self.base = base
        self.head_kind = head_kind
        self.hidden_size = hidden_size
        self.feature_size = 2 * hidden_size if head_kind is Head.PAIR else hidden_size
        trained = head_kind in (Head.MEAN, Head.PAIR, Head.TOKENS)
        self.head = nn.Linear(self.feature_size, num_outputs) if trained else head
        self.separator: int | None = None  # the token between two texts
        self.first_adapted = first_adapted
        self.adapts_tokens = adapts_tokens
        self.num_outputs = num_outputs
        self.feature_scale = feature_scale
        self.precision = precision
        self.fingerprint = fingerprint
        self._inner: list[PreTrainedModel] = []  # a list, so that it is not registered again
        if head_kind is not Head.COLUMNS:
            self._inner = [cast(PreTrainedModel, base.get_base_model())]
        self.reads_and_writes = any(inner.config.is_encoder_decoder for inner in self._inner)
        self.base_change: dict[str, tuple[Tensor, Tensor]] = {}  # by module: (n, d_in), (d_out, n)
        # In a list, so that it is not registered a second time.
        self._blocks = [] if blocks is None else [blocks]

    @property
    def blocks(self) -> nn.ModuleList:
        """The base's transformer blocks."""
        return self._blocks[0]

    @property
    def has_blocks(self) -> bool:
        """Whether there are any, whose states can be kept; a convolutional base has none."""
        return bool(self._blocks)

    @property
    def reads_features(self) -> bool:
        """Whether the head reads one pooled vector an example, which can be kept."""
        return self.head_kind in (Head.MEAN, Head.PAIR, Head.COLUMNS)

    @property
    def keeps_hidden(self) -> bool:
        """Whether states that enter the first adapted block are kept: they never change, and blocks
        below it have made them.

        Of a model with an encoder and a decoder, both adapted, those of the decoder do.
        """
        fixed = not self.adapts_tokens and not self.reads_and_writes
        return bool(self._blocks) and fixed and self.first_adapted > 0

    @cached_property
    def has_dropout(self) -> bool:
        """Whether adapters drop some of their inputs in training."""
        return any(
            isinstance(module, nn.Dropout) and module.p > 0 and ".lora_dropout" in name
            for name, module in self.named_modules()
        )

    @property
    def packs(self) -> bool:
        """Whether the texts of a step lie side by side, see ``hushtune.common.packing``: if that is
        asked for, of a base and head that allow it, where layers take each example's gradients
        themselves. On CPUs alone, where it is tested that a text's bits are its own."""
        asked = self.pack and self.gradients is GradientMethod.FUSED and self._can_pack
        return asked and next(self.parameters()).device.type == "cpu"

    @cached_property
    def _can_pack(self) -> bool:
        if self.head_kind not in (Head.MEAN, Head.PAIR) or not self._blocks:
            return False
        drawn = self.adapts_tokens or self.has_dropout
        return not drawn and packed_attention.knows(self._inner[0])

    def forward(self, inputs: Inputs, *, packing: Packing | None = None) -> Tensor:
        """Outputs of a batch. ``packing``: of inputs that have one row of places; outputs are then
        those of its rows, and after them of none."""
        if "features" in inputs:
            if self.head is None or not self.reads_features:
                raise UnsupportedModelError(f"a head of kind {self.head_kind} has no features")
            return self.head(inputs["features"])
        if "hidden" not in inputs:
            return self._logits(inputs, packing)
        if not self.keeps_hidden:
            raise UnsupportedModelError(
                "hidden states were given to a convolutional model, or to one in which what is "
                "below them is adapted",
                expected="tokens, or features while the adapter has no effect",
            )
        rest = {key: value for key, value in inputs.items() if key != "hidden"}
        with self._starting_at(inputs["hidden"]):
            return self._logits(rest, packing)

    def _logits(self, inputs: Inputs, packing: Packing | None) -> Tensor:
        if packing is not None:
            return self._packed_logits(inputs, packing)
        output = self._run_base(inputs)
        if self.head is None:
            return output.logits.float()
        if self.head_kind is Head.TOKENS:
            return self.head(output.last_hidden_state.float())
        return self.head(self._pool(output.last_hidden_state, inputs))

    def _packed_logits(self, inputs: Inputs, packing: Packing) -> Tensor:
        assert self.head is not None, "a head that reads features is a layer of its own"
        base, mask = self._inner[0], inputs["attention_mask"]
        positions = inputs["position_ids"] + packed_attention.first_position(base)
        with packed_attention.packed(base, packing, mask) as no_mask:
            given = {**inputs, "attention_mask": no_mask, "position_ids": positions}
            states = self._run_base(given).last_hidden_state
        keys = ("attention_mask", "input_ids")
        blocks = [packing.split(inputs[key][0]) for key in keys]
        pooled = [
            self._pool(of_block, dict(zip(keys, own, strict=True)))
            for of_block, *own in zip(packing.split(states[0]), *blocks, strict=True)
        ]
        return self.head(packing.filled(pooled))

    def _run_base(self, inputs: Inputs) -> Any:
        """The base's own forward; its products in bfloat16 if that is the precision."""
        given: dict[str, Any] = dict(inputs)
        device = next(iter(inputs.values())).device.type
        places, answers = given.pop(ANSWER_AT, None), given.pop(ANSWERS, None)
        if self.head_kind is Head.WORDS:
            given["use_cache"] = False  # of keys and values, which only generating text needs
        if answers is not None:  # by the family's own rule
            shift = cast(Any, self._inner[0]).prepare_decoder_input_ids_from_labels
            given["decoder_input_ids"] = shift(labels=answers)
        told_at = nullcontext() if places is None else self._told_at(places)
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16"), told_at:
            return self.base(**given)

    @contextmanager
    def _told_at(self, places: Tensor) -> Generator[None]:
        """Compute a language model's logits at some places of each row alone, ``(b, k)``."""
        words = cast(nn.Module, self._inner[0].get_output_embeddings())
        hook = words.register_forward_pre_hook(
            lambda _module, args: (torch.take_along_dim(args[0], places.unsqueeze(-1), 1),)
        )
        try:
            yield
        finally:
            hook.remove()

    def _pool(self, states: Tensor, inputs: Inputs) -> Tensor:
        """What the head reads, from states ``(b, t, d)``, of convolutions ``(b, d, h, w)``."""
        states, mask = states.float(), inputs.get("attention_mask")
        if self.head_kind is Head.PAIR and mask is not None:
            second = self._second(inputs["input_ids"]) * mask
            return torch.cat([self._mean(states, mask - second), self._mean(states, second)], 1)
        if states.dim() == 4:
            return self._scaled(states.mean((2, 3)))
        if mask is None:  # of images every position is real
            return self._scaled(states.mean(1))
        return self._mean(states, mask)

    def _second(self, ids: Tensor) -> Tensor:
        """1 from the first separator on, ``(b, t)``: there the second text begins. Without a
        separator the two are one, and nothing is read of a second."""
        if self.separator is None:
            return torch.zeros_like(ids)
        return ((ids == self.separator).cumsum(1) > 0).to(ids.dtype)

    def _mean(self, states: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).to(states.dtype)
        return self._scaled((states * weights).sum(1) / weights.sum(1).clamp_min(1.0))

    def _scaled(self, pooled: Tensor) -> Tensor:
        return nn.functional.normalize(pooled, dim=-1) * self.feature_scale

    @torch.no_grad()
    def frozen_activations(
        self, inputs: Inputs, *, pooled: bool = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """``hidden (b, t, d)`` and, if ``pooled``, ``features (b, f)`` of the base alone.

        A convolutional base has no ``hidden``.

        Pooled, the installed adapter must be without effect (every B zero); the caller sees to
        that. peft's own ``disable_adapter`` would be the way, but it sets ``requires_grad`` anew.
        """
        if self.head_kind is Head.COLUMNS:
            return inputs["features"].unsqueeze(1), inputs["features"]
        if not self._blocks:
            if not pooled or not self.reads_features:
                return None, None
            return None, self._pool(self._run_base(inputs).last_hidden_state, inputs)
        seen: list[Tensor] = []

        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen.append(hidden_argument(args, kwargs))
            if not pooled:
                raise SeenEnoughError  # what the blocks above would do is not wanted

        hook = self.blocks[self.first_adapted].register_forward_pre_hook(see, with_kwargs=True)
        try:
            output = self._run_base(inputs)
        except SeenEnoughError:
            return seen[0], None
        finally:
            hook.remove()
        if not self.reads_features:
            return seen[0], None
        return seen[0], self._pool(output.last_hidden_state, inputs)

    @contextmanager
    def layers_told(self, inputs: Inputs, layers: Sequence[int]) -> Generator[dict[int, Tensor]]:
        """What the mean-pooled head would read, were the base cut after some block, ``(b, f)``
        each by the number of blocks that are kept: from a pass over ``inputs`` within the block."""
        found: dict[int, Tensor] = {}

        def pooled(number: int) -> Callable[[nn.Module, Any, Any], None]:
            def see(_module: nn.Module, _inputs: Any, output: Any) -> None:
                states = output[0] if isinstance(output, tuple) else output
                found[number] = self._pool(states, inputs)

            return see

        hooks = [self.blocks[n - 1].register_forward_hook(pooled(n)) for n in layers]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _starting_at(self, hidden: Tensor) -> Generator[None]:
        """Run the base's own forward, with known states in place of the lower blocks' work.

        The base still builds its masks and positions itself, which keeps this free of knowledge
        about any family.
        """
        kept = [self.blocks[index] for index in range(self.first_adapted)]
        hook = self.blocks[self.first_adapted].register_forward_pre_hook(
            lambda _module, args, kwargs: with_hidden(args, kwargs, hidden), with_kwargs=True
        )
        for index in range(self.first_adapted):
            self.blocks[index] = PassThrough()
        try:
            yield
        finally:
            hook.remove()
            for index, block in enumerate(kept):
                self.blocks[index] = block

    def frozen_mode(self) -> None:
        """Evaluation mode everywhere: no dropout, nothing that depends on the batch."""
        self.eval()

    def training_mode(self) -> None:
        """Evaluation mode for the base; training mode for what is trained and adapter dropout.

        Opacus' hooks record only modules in training mode, and the frozen base must give the same
        output each time.
        """
        for name, module in self.named_modules():
            owns_trained = any(p.requires_grad for p in module.parameters(recurse=False))
            module.training = owns_trained or ".lora_dropout" in name
