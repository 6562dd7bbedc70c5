"""Any PyTorch model as one ONNX file, which is kept only if it answers as the model does.

A model takes a mapping of named tensors and gives logits, as ``AdaptedModel`` does. Nothing here
knows what the inputs stand for: their names, types and the axes that may change are read from
examples (text: ``input_ids`` and ``attention_mask``, both ``(b, t)``; images: ``pixel_values (b, 3,
h, w)``; tables: a tensor ``(b, k)``). An axis in which two examples differ may have any size.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hushtune.common.errors import ConfigError, UnsupportedModelError

LOGITS = "logits"
TOLERANCE = 1e-4
"""How far a logit of the file may be from the model's."""
ONE_FILE_BYTES = 1_500_000_000
"""Weights beyond this lie in a file beside the ONNX file, which cannot be larger than 2 GB."""
LIBRARIES = ("onnx", "onnxruntime", "onnxscript")
_SOFTENED = ("MatMul", "Gemm", "Gather")

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """Inputs and the logits that a model gives for them."""

    inputs: Inputs
    logits: Tensor


class _ByPlace(nn.Module):
    """A model that takes its inputs one after the other, as the exporter names them."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(dict(zip(self.names, tensors, strict=True)))


class OnnxModel:
    """An ONNX file that onnxruntime has opened on the CPU; ``threads`` None: its own choice."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = cast(
            Any,
            onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            ),
        )

    @property
    def inputs(self) -> dict[str, tuple[int | str, ...]]:
        """Each input's axes by its name: a number, or the name of one that has any size."""
        return {one.name: tuple(one.shape) for one in self._session.get_inputs()}

    def __call__(self, inputs: Inputs) -> NDArray[np.float32]:
        """The logits of a batch."""
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        return self._session.run([LOGITS], given)[0]


def check_libraries() -> None:
    """ConfigError where the extra ``edge`` is not installed."""
    lacking = [name for name in LIBRARIES if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            "an ONNX file is written and checked with libraries that are not installed",
            given=f"no {', '.join(lacking)}",
            expected=", ".join(LIBRARIES),
            remedy=f"pip install 'hushtune[edge]', or: pip install {' '.join(LIBRARIES)}",
        )


def probes_of(model: nn.Module, examples: Sequence[Inputs]) -> list[Probe]:
    """What a model in evaluation mode answers to some examples."""
    with torch.no_grad():
        return [Probe(one, model(one)) for one in examples]


def dynamic_axes(examples: Sequence[Inputs]) -> dict[str, dict[int, str]]:
    """By input the axes in which examples differ, with a name each.

    The first is ``batch``, the second ``length``; others are called by their number.
    """
    usual = {0: "batch", 1: "length"}
    found: dict[str, dict[int, str]] = {}
    for name, first in examples[0].items():
        shapes = {tuple(one[name].shape) for one in examples}
        found[name] = {
            axis: usual.get(axis, f"axis{axis}")
            for axis in range(first.ndim)
            if len({shape[axis] for shape in shapes}) > 1
        }
    return found


def write_onnx(model: nn.Module, probes: Sequence[Probe], path: Path) -> float:
    """Write a model to ``path`` and return the largest difference of a logit over all probes.

    The largest probe is the example that is traced; at least two must differ in the size of the
    batch. Raises UnsupportedModelError, and leaves no file, where the model cannot be traced or
    the file's logits are further than ``TOLERANCE`` from the probes'.
    """
    check_libraries()
    names = tuple(probes[0].inputs)
    axes = dynamic_axes([one.inputs for one in probes])
    # An axis of size one in the example would be taken for one that is always one.
    example = max(probes, key=lambda one: [tensor.numel() for tensor in one.inputs.values()])
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _ByPlace(model, names).eval(),
                tuple(example.inputs.values()),
                input_names=list(names),
                output_names=[LOGITS],
                dynamic_shapes=(tuple(axes[name] for name in names),),
                dynamo=True,
                verbose=False,
            )
            _save(program, path, beside=size > ONE_FILE_BYTES)
        difference = largest_difference(OnnxModel(path), probes)
    except OSError:
        _remove(path)
        raise
    except Exception as error:  # of exporter and onnxruntime, whatever they stumble over
        _remove(path)
        raise UnsupportedModelError(
            "the model cannot be written as an ONNX file",
            given=(str(error).strip().splitlines() or [type(error).__name__])[0][:300],
            remedy="--format merged writes it for PyTorch",
        ) from error
    if not difference <= TOLERANCE:  # nor where it is no number
        _remove(path)
        raise UnsupportedModelError(
            "the ONNX file does not answer as the model does, so it was not kept",
            given=f"a logit that differs by {difference:.3g}",
            expected=f"at most {TOLERANCE:g}",
            remedy="--format merged writes it for PyTorch",
        )
    return difference


def largest_difference(found: OnnxModel, probes: Sequence[Probe]) -> float:
    """The largest distance of a logit from a probe's; infinite where shapes differ."""
    worst = 0.0
    for probe in probes:
        expected, given = probe.logits.numpy(), found(probe.inputs)
        if expected.shape != given.shape:
            return float("inf")
        worst = max(worst, float(np.abs(expected - given).max()), key=_size)
    return worst


def write_int8(path: Path, to: Path) -> None:
    """Write an ONNX file anew with its weights in 8 bits (onnxruntime's dynamic quantisation).

    Weights of matrix products and embeddings, with a scale for each output; what flows through the
    model is put into 8 bits while it runs, by its own range.
    """
    check_libraries()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = path.stat().st_size + _beside(path) > ONE_FILE_BYTES
    with _quiet():
        quantize_dynamic(
            path,
            to,
            op_types_to_quantize=list(_SOFTENED),
            per_channel=True,
            # Seven bits: products of two full bytes overflow on CPUs without VNNI, unnoticed.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def megabytes(path: Path) -> float:
    """The size of an ONNX file and of the weights beside it, in 10^6 bytes."""
    return (path.stat().st_size + _beside(path)) / 1e6


def _save(program: Any, path: Path, *, beside: bool) -> None:
    """Without what the exporter notes of each line of code, which names folders of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)
    program.save(str(path), external_data=beside)


def _beside(path: Path) -> int:
    return sum(other.stat().st_size for other in path.parent.glob(f"{path.name}.data"))


def _remove(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}.data")):
        file.unlink(missing_ok=True)


def _size(value: float) -> float:
    return float("inf") if np.isnan(value) else value


@contextmanager
def _quiet() -> Generator[None]:
    """The exporter tells of operators that no model here has, and of its own future."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    before = [(one, one.level) for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in before:
            one.setLevel(level)
