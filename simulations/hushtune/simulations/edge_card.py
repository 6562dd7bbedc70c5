"""The card of an ONNX export: how to run it, in ten lines and with onnxruntime alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hushtune.simulations.card import with_use

_TEXT = """\
```python
import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

labels = {labels}
session = InferenceSession("FOLDER/{model}")
tokenizer = Tokenizer.from_file("FOLDER/{tokenizer}")
for row in tokenizer.encode_batch(["a sentence"]):
    rows = {{"input_ids": [row.ids], "attention_mask": [row.attention_mask]}}
    rows = {{name: np.array(values, np.int64) for name, values in rows.items()}}
    print(labels[session.run(["logits"], rows)[0].argmax()])
```
"""
_OTHER = """\
```python
import numpy as np
from onnxruntime import InferenceSession

labels = {labels}
session = InferenceSession("FOLDER/{model}")
rows = {{{rows}}}  # prepared as for training
print(labels[session.run(["logits"], rows)[0].argmax()])
```
"""
_INT8 = """
Its weights are rounded to 8 bits, of which 7 are used. What flows through it is rounded by the
range of the batch that it is in, so an answer may depend a little on the texts beside it: ask for
one at a time, as the code does. `edge.json` tells how many answers are other than the exact ones.
"""


def edge_card(
    card: str,
    *,
    labels: Sequence[str],
    inputs: Mapping[str, Sequence[int | str]],
    int8: bool,
    model: str,
    tokenizer: str | None,
) -> str:
    """The card of an adapter as that of the ONNX file ``model`` that it became part of.

    ``inputs``: the file's, with their axes. ``tokenizer``: the tokenizer's file, if it reads text.
    """
    names = json.dumps(list(labels), ensure_ascii=False)
    if tokenizer is not None:
        code = _TEXT.format(labels=names, model=model, tokenizer=tokenizer)
        needed = "`pip install onnxruntime tokenizers` is all that it needs"
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
    use = f"Adapter, base model and head are {kind}: {needed}.\n\n{code}{told}"
    return with_use(card, use, library="onnx")
