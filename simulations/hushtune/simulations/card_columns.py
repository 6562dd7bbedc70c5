"""What a model card says of a small network on columns: how to use it with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

LOAD = """\
`head.safetensors` holds the network, `columns.json` what is public of its columns: the range of a
number, the values of a category. Neither hushtune nor torch is needed:

```python
import json
import numpy as np
from safetensors.numpy import load_file

net = load_file("FOLDER/head.safetensors")
with open("FOLDER/columns.json", encoding="utf-8") as file:
    columns = json.load(file)["columns"]

def inputs(row):  # a row of the table, column by column; None where a cell is missing
    for c in columns:
        cell, values = row.get(c["name"]), c.get("values", [None])
        known = [0.0] * len(values)
        if cell is not None and "values" in c:
            known = [float(str(cell) == value) for value in values]
        elif cell is not None:
            inside = min(max(cell, c["low"]), c["high"])
            known = [2 * (inside - c["low"]) / (c["high"] - c["low"]) - 1]
        yield from [*known, float(cell is None)]

def outputs(row):
    hidden = np.tanh(net["hidden.weight"] @ np.array([*inputs(row)]) + net["hidden.bias"])
    return net["output.weight"] @ hidden + net["output.bias"]
```

{meaning}
"""


def use(labels: Sequence[str], bounds: tuple[float, float] | None) -> str:
    """How to load and read the network; ``bounds``: of a number that it predicts."""
    if bounds is None:
        names = json.dumps(list(labels), ensure_ascii=False)
        return LOAD.replace("{meaning}", f"The outputs are the logits of {names}, in this order.")
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    told = (
        f"The answer is `{middle:g} + {half:g} * outputs(row)[0]`, cut to {bounds[0]:g}.."
        f"{bounds[1]:g}."
    )
    return LOAD.replace("{meaning}", told)
