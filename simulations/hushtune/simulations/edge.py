"""A trained model for devices: one ONNX file, and onnxruntime to run it.

The adapter is merged into its base and written with the head as one file, which is compared with
the model at once. With ``int8`` its weights are rounded to 8 bits, and what that changes is
measured on the run's test rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hushtune.common.adapter_folder import whole_folder
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.files import read_text
from hushtune.common.kinds import Targets
from hushtune.common.lora_files import merged
from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.kinds import causal_lm
from hushtune.common.tasks.writing import ends
from hushtune.simulations import edge_inputs, saved
from hushtune.simulations.edge_card import Asked, edge_card
from hushtune.simulations.edge_measure import Form, Single, compare, judge_of, report
from hushtune.simulations.edge_onnx import (
    LIBRARIES,
    Inputs,
    OnnxModel,
    check_libraries,
    megabytes,
    probes_of,
    write_int8,
    write_onnx,
)
from hushtune.simulations.edge_rows import TestRows, alone, rows_of_run

MODEL, REPORT, LABELS, TOKENIZER = "model.onnx", "edge.json", "labels.json", "tokenizer.json"


@dataclass(frozen=True)
class Written:
    """A model's files for a device: what is left in the folder, and the one it was made from."""

    path: Path
    exact: Path
    largest_difference: float


def export_edge(folder: Path, to: Path, *, int8: bool, site: str | None = None) -> dict[str, Any]:
    """Write the model of a run's or an adapter's folder for a device; returns its report.

    Test rows are those of the run, or of one site of it. Written to a temporary folder and moved
    into place whole. Raises UnsupportedModelError if the file would answer otherwise.
    """
    source = saved.adapter_folder(folder)
    return export_adapter(source, to, int8=int8, run=folder, site=site)


def export_adapter(
    source: Path, to: Path, *, int8: bool, run: Path, site: str | None = None
) -> dict[str, Any]:
    """The same of an adapter's folder; ``run``: where settings and data of its run are."""
    check_libraries()
    saved.check_target(to, source)
    card = read_text(source / "README.md", remedy=saved.MEND)
    trained = saved.load(source)
    rows = rows_of_run(run, trained.labels, site=site)
    # Beside each other, where there is room for what is written; the first makes the folder above.
    with whole_folder(to) as partial, TemporaryDirectory(dir=to.parent, prefix=".edge-") as place:
        aside = Path(place) if int8 else None
        examples = edge_inputs.examples(trained)
        written = write_model(trained.model, examples, partial, aside=aside)
        inputs = OnnxModel(written.path).inputs
        reads_text = "input_ids" in inputs
        if reads_text:
            write_tokenizer(trained, partial / TOKENIZER)
        _write_json(partial / LABELS, list(trained.labels))
        made_up = {name: tensor[:1] for name, tensor in examples[-1].items()}
        found = measure(trained, written, rows, made_up=made_up, int8=int8)
        _write_json(partial / REPORT, found)
        text = edge_card(
            card,
            task=trained.task,
            labels=trained.labels,
            inputs=inputs,
            int8=int8,
            model=MODEL,
            tokenizer=TOKENIZER if reads_text else None,
            images=trained.encoder if isinstance(trained.encoder, ImageProcessor) else None,
            asked=_asked(trained) if trained.task.of.targets is Targets.ANSWER else None,
            found=found,
        )
        (partial / "README.md").write_text(text, encoding="utf-8")
    return found


def write_model(
    model: AdaptedModel, examples: Sequence[Inputs], folder: Path, *, aside: Path | None
) -> Written:
    """Merge a model in place and write it to ``folder``.

    ``aside``: a folder for the exact file, where one of 8 bits is wanted. The exact file is held to
    what the model answered before it was merged.
    """
    probes = probes_of(model, examples)
    # In its place the model goes on as it did, with head and pooling of its kind.
    cast(Any, model).base = merged(model)
    model.frozen_mode()
    path = folder / MODEL
    exact = path if aside is None else aside / MODEL
    difference = write_onnx(model, probes, exact)
    if aside is not None:
        write_int8(exact, path)
    return Written(path, exact, difference)


def measure(
    trained: saved.Predictor, written: Written, rows: TestRows, *, made_up: Inputs, int8: bool
) -> dict[str, Any]:
    """The report: the merged model in PyTorch, the ONNX file and, with ``int8``, the small one.

    ``made_up``: one row to be timed where there are no test rows.
    """
    model = trained.model
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 1e6

    def torch_run(inputs: Inputs) -> NDArray[np.float32]:
        return model(inputs).numpy()

    forms = [
        Form("PyTorch float32", size, torch_run),
        Form("ONNX float32", megabytes(written.exact), OnnxModel(written.exact, threads=1)),
    ]
    if int8:
        small = OnnxModel(written.path, threads=1)
        forms.append(Form("ONNX int8", megabytes(written.path), small))
    prepared = rows.prepared(trained.encoder)
    judge, metric = judge_of(trained.task), trained.task.main_metric

    def single(row: int) -> Single:
        return (made_up, None) if prepared is None else alone(prepared, row)

    figures = compare(
        forms,
        max(1, len(rows.texts)),
        single,
        objective=None if prepared is None else prepared.objective,
        metric=metric,
        judge=judge,
    )
    found = report(
        figures,
        rows=len(rows.texts),
        why_no_rows=rows.why_none,
        largest_difference=written.largest_difference,
        metric=metric,
        judge=judge,
    )
    return {**found, "versions": {name: version(name) for name in ("torch", *LIBRARIES)}}


def write_tokenizer(trained: saved.Predictor, path: Path) -> None:
    """One file that the library ``tokenizers`` reads alone; it cuts as training did, pads nothing.

    Of a prompt the beginning is cut off. Raises UnsupportedModelError of a tokenizer that cannot be
    such a file.
    """
    tokenizer, writes = trained.tokenizer, trained.task.of.targets is Targets.ANSWER
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UnsupportedModelError(
            "the model's tokenizer needs transformers, so it is not for devices",
            given=type(tokenizer).__name__,
            expected="one that can be saved as tokenizer.json",
            remedy="--format merged writes the model for PyTorch and transformers",
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    size = trained.settings.max_tokens
    copy.enable_truncation(size, direction="left" if writes else "right")
    path.write_text(copy.to_str(), encoding="utf-8")


def _asked(trained: saved.Predictor) -> Asked:
    """A question as the model is asked it."""
    question = [{"role": "user", "content": "a question"}]
    begins, prompt = causal_lm.prompt_text(trained.tokenizer, question)
    return Asked(begins, prompt, ends(trained.model, trained.tokenizer))


def _write_json(path: Path, value: Sequence[Any] | Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
