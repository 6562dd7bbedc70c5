"""The card of an ONNX export: how to run it, in ten lines and with onnxruntime alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.names import SEEN_BY, metric_words
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.writing import MOST_NEW_TOKENS
from hushtune.simulations.card import with_use
from hushtune.simulations.card_texts import told

_TEXT = """\
```python
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

{labels}session = InferenceSession("FOLDER/{model}")
tokenizer = Tokenizer.from_file("FOLDER/{tokenizer}")
for row in tokenizer.encode_batch([{example}]):
    rows = {{"input_ids": [row.ids], "attention_mask": [row.attention_mask]}}
    rows = {{name: np.array(values, np.int64) for name, values in rows.items()}}
    {told}
```
"""
_WRITES = """\
```python
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

session = InferenceSession("FOLDER/{model}")
tokenizer = Tokenizer.from_file("FOLDER/{tokenizer}")
prompt = {prompt}
ids = {begins}tokenizer.encode(prompt, add_special_tokens=False).ids
start = len(ids)
for _ in range({most}):  # the most likely token after the other, to one that ends an answer
    rows = {{"input_ids": [ids], "attention_mask": [[1] * len(ids)]}}
    rows = {{name: np.array(values, np.int64) for name, values in rows.items()}}
    ids.append(int(session.run(["logits"], rows)[0][0, -1].argmax()))
    if ids[-1] in {ends}:
        break
print(tokenizer.decode(ids[start:]))
```
"""
_IMAGES = """\
```python
import numpy as np
from onnxruntime import InferenceSession
from PIL import Image, ImageOps

{labels}session = InferenceSession("FOLDER/{model}")
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
image = image.resize({size}, resample={resample})
left, top = (image.width - {width}) // 2, (image.height - {height}) // 2
image = image.crop((left, top, left + {width}, top + {height}))
pixels = np.array(image, np.float32).transpose(2, 0, 1) * {scale} + {offset}
mean, std = (np.array(given).reshape(3, 1, 1) for given in ({mean}, {std}))
rows = {{"pixel_values": ((pixels - mean) / std)[None].astype(np.float32)}}
print(labels[session.run(["logits"], rows)[0].argmax()])
```
"""
_OTHER = """\
```python
import numpy as np
from onnxruntime import InferenceSession

{labels}session = InferenceSession("FOLDER/{model}")
rows = {{{rows}}}  # prepared as for training
print(labels[session.run(["logits"], rows)[0].argmax()])
```
"""
_INT8 = """
Its weights are rounded to 8 bits, of which 7 are used. What flows through it is rounded by the
range of the batch that it is in, so an answer may depend a little on the texts beside it: ask for
one at a time, as the code does. `edge.json` tells how many answers are other than the exact ones.
"""
_FORMS = """
On {rows} test rows, asked one at a time ({seen_by}):

| | MB | {metric} | same answers |
|---|---|---|---|
{forms}
"""


@dataclass(frozen=True)
class Asked:
    """How a language model is asked: the tokens before a prompt, the prompt as a text with the
    marks of its conversation, and the tokens that end an answer."""

    begins: Sequence[int]
    prompt: str
    ends: Sequence[int]


_EXAMPLES = {Inputs.PAIR: '("a sentence", "another")', Inputs.COLUMNS: '"age: 41; home: rent"'}


def _told(task: TaskConfig) -> str:
    """The lines that answer one row."""
    if task.of.targets is Targets.CLASS:
        return 'print(labels[session.run(["logits"], rows)[0].argmax()])'
    logits = 'logits = session.run(["logits"], rows)[0]'
    if task.of.targets is Targets.TAGS:
        return f"{logits}[0]\n    tokens = row.tokens\n    {told(task)}"
    return f"{logits}\n    {told(task)}"


def _pixels(of: ImageProcessor) -> dict[str, object]:
    """What the code for images is filled in with: that of ``ImageProcessor``, in numbers."""
    height, width = of.resize if isinstance(of.resize, tuple) else (0, 0)
    shorter = f"[{of.resize} * side // min(image.size) for side in image.size]"
    return {
        "size": str((width, height)) if isinstance(of.resize, tuple) else shorter,
        "resample": int(of.resample),
        **{name: getattr(of, name) for name in ("width", "height", "scale", "offset")},
        "mean": list(of.mean),
        "std": list(of.std),
    }


def _forms(found: Mapping[str, Any]) -> str:
    """The forms beside each other by the figure of their kind; nothing where no row was judged."""
    if not found["test_rows"]:
        return ""
    rows = [
        f"| {form['form']} | {form['megabytes']:.1f} | {form['value']:.4f} | "
        f"{form['agreement']:.4f} |"
        for form in found["forms"]
    ]
    lower = "" if found["higher_is_better"] else ", lower is better"
    return _FORMS.format(
        rows=found["test_rows"],
        seen_by=SEEN_BY,
        metric=metric_words(found["figure"]) + lower,
        forms="\n".join(rows),
    )


def edge_card(
    card: str,
    *,
    task: TaskConfig,
    labels: Sequence[str],
    inputs: Mapping[str, Sequence[int | str]],
    int8: bool,
    model: str,
    tokenizer: str | None,
    images: ImageProcessor | None,
    asked: Asked | None,
    found: Mapping[str, Any],
) -> str:
    """The card of an adapter as that of the ONNX file ``model`` that it became part of.

    ``inputs``: the file's, with their axes. ``tokenizer``: the tokenizer's file, if it reads text.
    ``images``: how pixels are made, if it looks at images. ``asked``: how it is, if it writes.
    ``found``: what was measured, as ``edge_measure.report`` tells it.
    """
    names = f"labels = {json.dumps(list(labels), ensure_ascii=False)}\n" if labels else ""
    if asked is not None:
        code = _WRITES.format(
            model=model,
            tokenizer=tokenizer,
            prompt=json.dumps(asked.prompt, ensure_ascii=False),
            begins=f"{asked.begins} + " if asked.begins else "",
            most=MOST_NEW_TOKENS,
            ends=asked.ends,
        )
        needed = "`pip install onnxruntime tokenizers` is all that it needs"
    elif tokenizer is not None:
        code = _TEXT.format(
            labels=names,
            model=model,
            tokenizer=tokenizer,
            example=_EXAMPLES.get(task.of.inputs, '"a sentence"'),
            told=_told(task),
        )
        needed = "`pip install onnxruntime tokenizers` is all that it needs"
    elif images is not None:
        code = _IMAGES.format(labels=names, model=model, **_pixels(images))
        needed = "`pip install onnxruntime pillow` is all that it needs"
    else:
        shapes = {
            name: ", ".join(str(size) if isinstance(size, int) else "1" for size in axes)
            for name, axes in inputs.items()
        }
        rows = ", ".join(f'"{n}": np.zeros(({shape},), np.float32)' for n, shape in shapes.items())
        code = _OTHER.format(labels=names, model=model, rows=rows)
        needed = "`pip install onnxruntime` is all that it needs"
    kind = "an ONNX file with weights of 8 bits" if int8 else "an ONNX file"
    told = _INT8 if int8 else ""
    use = f"Adapter, base model and head are {kind}: {needed}.\n\n{code}{told}{_forms(found)}"
    return with_use(card, use, library="onnx")
