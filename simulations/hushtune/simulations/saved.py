"""A trained adapter on disk: save it, load it, predict with it, export it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hushtune.common import lora
from hushtune.common.adapter import AdapterState, head_key
from hushtune.common.adapter_folder import DESCRIPTION, whole_folder
from hushtune.common.columns_model import columns_model
from hushtune.common.config import AdapterConfig, ModelConfig, TaskConfig
from hushtune.common.errors import (
    CheckpointError,
    MissingFileError,
    OutputExistsError,
)
from hushtune.common.files import read_json, read_text, write_errors
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.lora_files import (
    ADAPTER_FILE,
    HEAD_FILE,
    peft_names,
)
from hushtune.common.model import AdaptedModel, Head
from hushtune.common.tasks.activations import InputRows
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.base_model import load_base, set_padding
from hushtune.common.tasks.column_rows import ColumnEncoder, load_columns
from hushtune.common.tasks.encoder import Encoder, load_encoder
from hushtune.common.tasks.image_files import canonical
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.image_rows import ImageRows
from hushtune.common.tasks.kinds.registry import head_for, num_outputs
from hushtune.common.tasks.kinds.texts import separator_id, tokenize
from hushtune.common.tasks.supervised import EVALUATION_BATCH
from hushtune.simulations.answers import answers_of, canonical_inputs
from hushtune.simulations.merged import write_merged
from hushtune.simulations.privacy_report import how_to_go_on

MEND = (
    "get a whole copy of the adapter; or, in a run's folder, remove its folder adapter, which "
    "`hushtune simulate --out DIR --resume` then writes anew from the checkpoint"
)


@dataclass(frozen=True)
class Predictor:
    """A trained model that is ready to answer; ``columns``: of a table, that it was trained on."""

    model: AdaptedModel
    encoder: Encoder
    labels: tuple[str, ...]
    settings: ModelConfig
    task: TaskConfig
    columns: tuple[str, ...] = ()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of a model that reads texts."""
        if not isinstance(self.encoder, PreTrainedTokenizerBase):
            raise TypeError("only a model of texts has a tokenizer")
        return self.encoder

    def inputs(self, texts: Sequence[str]) -> InputRows:
        """What the model reads of canonical inputs, or of the paths of images; DataErrors."""
        if isinstance(self.encoder, ColumnEncoder):
            return self.encoder.rows(texts)[0]
        if isinstance(self.encoder, ImageProcessor):
            images = [canonical(Path(text), file=text) for text in texts]
            return ImageRows.of(images, self.encoder, megabytes=0)
        size, inputs = self.settings.max_tokens, self.task.of.inputs
        return tokenize(self.encoder, texts, max_tokens=size, inputs=inputs)

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """What the model puts out for canonical inputs, or for the paths of images,
        ``(len(texts), num_outputs)``."""
        rows = self.inputs(texts)
        pieces: list[Tensor] = []
        for start in range(0, len(texts), EVALUATION_BATCH):
            chosen = torch.arange(start, min(start + EVALUATION_BATCH, len(texts))).numpy()
            pieces.append(self.model(rows.inputs(chosen)))
        return torch.cat(pieces)

    def predict(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """For each text its answer: of classes the label and every label's probability.

        Pairs and rows of tables are given as ``answers.canonical_inputs`` reads them; raises
        BadValueError and MissingColumnError.
        """
        texts = canonical_inputs(self.task.of, texts, columns=self.columns)
        if self.task.of.targets is not Targets.CLASS:
            answers = answers_of(self, texts)
            return [
                {"text": text, "answer": answer}
                for text, answer in zip(texts, answers, strict=True)
            ]
        probabilities = self.logits(texts).softmax(1)
        return [
            {
                "text": text,
                "label": self.labels[int(row.argmax())],
                "probabilities": {
                    name: round(float(p), 6) for name, p in zip(self.labels, row, strict=True)
                },
            }
            for text, row in zip(texts, probabilities, strict=True)
        ]


def adapter_folder(folder: Path) -> Path:
    """The adapter in a run's folder, or the folder itself; raises MissingFileError."""
    for candidate in (folder / "adapter", folder):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if (folder / "config.toml").is_file() and (folder / "checkpoint").is_dir():
        raise MissingFileError(
            "the run in this folder has not finished, so it has no adapter yet",
            given=str(folder),
            remedy=f"hushtune simulate --out {shlex.quote(str(folder))} --resume"
            + how_to_go_on(folder),
        )
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise MissingFileError(
            "this is a whole model and no adapter",
            given=str(folder),
            expected=f"a run's folder, or one that holds {DESCRIPTION}",
            remedy="a merged export is loaded as its README.md says, without hushtune",
        )
    if (folder / "model.onnx").is_file():
        raise MissingFileError(
            "this is a model for devices and no adapter",
            given=str(folder),
            expected=f"a run's folder, or one that holds {DESCRIPTION}",
            remedy="it is run as its README.md says, without hushtune",
        )
    raise MissingFileError(
        "no trained adapter is there",
        given=str(folder),
        expected=f"a run's folder, or one that holds {DESCRIPTION} and adapter_model.safetensors",
        remedy="hushtune simulate --preset demo --out DIR makes one",
    )


def load(folder: Path | str) -> Predictor:
    """Load a saved adapter onto its base; raises CheckpointError if the base is another one."""
    folder = adapter_folder(Path(folder))
    labels, settings, adapter, task, fingerprint, columns = _description(folder / DESCRIPTION)
    head = head_for(task, settings)
    if head is Head.COLUMNS:
        return _on_columns(folder, labels, settings, adapter, task, fingerprint)
    images = task.of.inputs is Inputs.IMAGE
    base = load_base(str(resolve_model(settings.name)), head, labels, images=images)
    model = lora.attach(
        base,
        model=settings,
        # At any rank: an adapter that holds a change of weights may be as wide as they are.
        adapter=adapter.model_copy(update={"rank": 1}),
        num_outputs=num_outputs(task, labels),
        seed=0,
        head=head,
    )
    _check_base(model, settings, fingerprint)
    lora.install(model, _read_state(model, folder, rank=adapter.rank))
    model.frozen_mode()
    encoder = load_encoder(str(folder), task, settings)
    if isinstance(encoder, PreTrainedTokenizerBase):
        set_padding(base, cast("int | None", encoder.pad_token_id))
        model.separator = separator_id(encoder)
    return Predictor(model, encoder, labels, settings, task, columns)


def _on_columns(
    folder: Path,
    labels: tuple[str, ...],
    settings: ModelConfig,
    adapter: AdapterConfig,
    task: TaskConfig,
    fingerprint: str,
) -> Predictor:
    """A network that reads columns, which has no base to be loaded."""
    encoder = load_columns(folder, remedy=MEND)
    outputs = num_outputs(task, labels)
    model = columns_model(
        encoder.columns, model=settings, adapter=adapter, num_outputs=outputs, seed=0
    )
    _check_base(model, settings, fingerprint)
    lora.install(model, _read_state(model, folder, rank=adapter.rank))
    model.frozen_mode()
    names = tuple(column.name for column in encoder.columns)
    return Predictor(model, encoder, labels, settings, task, names)


def _check_base(model: AdaptedModel, settings: ModelConfig, fingerprint: str) -> None:
    if model.fingerprint != fingerprint:
        raise CheckpointError(
            "the base model is not the one that the adapter was trained on",
            given=model.fingerprint,
            expected=fingerprint,
            remedy=f"get the weights of {settings.name} that were used in training",
        )


def _description(
    path: Path,
) -> tuple[tuple[str, ...], ModelConfig, AdapterConfig, TaskConfig, str, tuple[str, ...]]:
    """Labels, settings of model, adapter and task, the base's fingerprint, and the columns of a
    table, which adapters of earlier versions do not tell; or CheckpointError."""
    raw = read_json(path, remedy=MEND)
    try:
        return (
            tuple(map(str, raw["labels"])),
            # Answers in float32, whatever training used: a merged export has no other.
            ModelConfig.model_validate({**raw["model"], "precision": "float32"}),
            AdapterConfig.model_validate(raw["adapter"]),
            TaskConfig.model_validate(raw["task"]),
            str(raw["fingerprint"]),
            tuple(map(str, raw.get("columns", ()))),
        )
    except (KeyError, TypeError, ValueError) as error:
        lacking = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)[:200]
        raise CheckpointError(
            f"the file {path} is damaged",
            given=lacking,
            expected="labels, model, adapter, task and fingerprint",
            remedy=MEND,
        ) from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the file {path} cannot be read", given=str(error)[:200], remedy=MEND
        ) from error


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tensor.dim() == 4 else tensor


def _read_state(model: AdaptedModel, folder: Path, *, rank: int) -> AdapterState:
    """The adapter's tensors from peft's file and the head's."""
    stored = _tensors(folder / ADAPTER_FILE)
    keys = {name: key for key, name in peft_names(model).items()}
    # The factors of a convolution are convolutions of 1 by 1.
    tensors = {keys.get(name, name): _matrix(tensor.float()) for name, tensor in stored.items()}
    if model.head is not None:
        head = _tensors(folder / HEAD_FILE)
        tensors |= {head_key(name): tensor.float() for name, tensor in head.items()}
    state = AdapterState(replace(lora.spec(model), rank=rank), tensors)
    missing = set(state.spec.all_keys()) - set(state.keys)
    if missing or not state.is_finite():
        raise CheckpointError(
            "the adapter is not whole",
            given=f"{folder} without {min(missing)}" if missing else "a value that is not finite",
            remedy=MEND,
        )
    return state


def check_target(to: Path, source: Path) -> None:
    """OutputExistsError unless an adapter's folder ``source`` can be exported to ``to``."""
    with write_errors(to):
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise OutputExistsError(
                "the folder to export to is not empty"
                if to.is_dir()
                else "a folder is exported, and there is a file of that name",
                given=str(to),
                remedy="name a new folder",
            )
        if to.resolve().is_relative_to(source.resolve()):
            raise OutputExistsError(
                "an adapter cannot be exported into itself",
                given=str(to),
                expected=f"a folder outside {source}",
                remedy="name another folder",
            )


def export(folder: Path, to: Path, *, merged: bool) -> Path:
    """Copy an adapter to a folder of its own, or merge it into its base.

    A merged model with the family's own head is a plain transformers folder; one with the
    mean-pooled head is a sentence-transformers folder whose ``encode`` gives the logits. Written
    to a temporary folder and moved into place whole.
    """
    source = adapter_folder(folder)
    check_target(to, source)
    with whole_folder(to) as partial:
        trained = load(source) if merged else None
        if trained is not None and trained.model.head_kind is not Head.COLUMNS:
            write_merged(trained, read_text(source / "README.md", remedy=MEND), partial)
        else:
            for file in source.glob("*.safetensors"):
                _tensors(file)  # what is damaged is found here, and not where it is carried to
            shutil.copytree(source, partial, dirs_exist_ok=True)
    return to
