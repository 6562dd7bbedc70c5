"""Labelled rows from columnar stores: Parquet files and data sets of the `datasets` library.

pyarrow and datasets are imported only when such data are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from hushtune.common.errors import AssetError, EmptyDataError, UnsupportedDataError
from hushtune.common.tasks.hub import find_on_hub
from hushtune.common.tasks.rows import Columns, RawRow, check_columns, to_row


def read_parquet(path: Path, columns: Columns) -> Iterator[RawRow]:
    """Rows of a Parquet file, a batch in memory at a time.

    Raises:
        UnsupportedDataError: pyarrow is not installed, or the file is not Parquet.
        MissingColumnError, BadValueError: as in `readers.read_file`.
    """
    parquet = _import("pyarrow.parquet", extra="data", file=str(path))
    file = str(path)
    arrow = _import("pyarrow", extra="data", file=file)
    invalid = cast("type[Exception]", arrow.ArrowException)
    if path.stat().st_size == 0:
        raise EmptyDataError("the file is empty", file=file)
    try:
        with parquet.ParquetFile(path) as table:
            check_columns(list(table.schema_arrow.names), columns, file=file)
            number = 0
            for batch in table.iter_batches(batch_size=4096, columns=list(columns.names)):
                for cells in batch.to_pylist():
                    number += 1
                    yield to_row(cells, columns, file=file, row=number)
    except invalid as error:
        raise UnsupportedDataError(
            "the file cannot be read as Parquet", file=file, given=str(error)[:200]
        ) from error


def parquet_header(path: Path) -> tuple[str, ...]:
    """The names of a Parquet file's columns; raises what ``read_parquet`` does."""
    parquet = _import("pyarrow.parquet", extra="data", file=str(path))
    arrow = _import("pyarrow", extra="data", file=str(path))
    try:
        with parquet.ParquetFile(path) as table:
            return tuple(table.schema_arrow.names)
    except cast("type[Exception]", arrow.ArrowException) as error:
        raise UnsupportedDataError(
            "the file cannot be read as Parquet", file=str(path), given=str(error)[:200]
        ) from error


def read_table(name: str, columns: Columns) -> Iterator[RawRow]:
    """Rows of all splits of a data set: a hub id, or a folder that `datasets` reads.

    The splits that came with it are joined, for hushtune makes its own at every site. Class
    indices are turned into their names; -1, the customary label of hidden test rows, is missing.

    Raises:
        UnsupportedDataError: datasets is not installed, or cannot load this.
        AssetError: no such data set is here, and the hub has none or cannot be reached.
        MissingColumnError, BadValueError: as in `readers.read_file`.
    """
    if Path(name).expanduser().is_file():
        raise UnsupportedDataError(
            "this is a file, not a data set of the datasets library",
            file=name,
            remedy="set data.file to it; a spreadsheet has to be saved as CSV (UTF-8) first",
        )
    datasets = _import("datasets", extra="data", file=name)
    try:
        loaded = _load(datasets, name)
    except AssetError:
        raise
    except Exception as error:  # its loaders raise whatever they meet: network, YAML, pyarrow
        raise UnsupportedDataError(
            "the data set cannot be loaded",
            file=name,
            given=f"{type(error).__name__}: {str(error)[:300]}",
            remedy="check the id, or the folder, and that the hub can be reached",
        ) from error
    splits = cast("Mapping[str, Any]", loaded if isinstance(loaded, Mapping) else {"all": loaded})
    for split in splits:
        file = f"{name}[{split}]"
        yield from _split_rows(splits[split], columns, file=file)


def _split_rows(table: Any, columns: Columns, *, file: str) -> Iterator[RawRow]:
    check_columns(list(table.column_names), columns, file=file)
    # A column of classes holds their numbers; what they are called lies beside it.
    named = {name: getattr(table.features.get(name), "names", None) for name in columns.names}
    classes = {name: cast("list[str]", names) for name, names in named.items() if names}
    records = cast("Iterable[dict[str, object]]", table.select_columns(list(columns.names)))
    for number, cells in enumerate(records, start=1):
        cells |= {name: _class_name(cells[name], names) for name, names in classes.items()}
        yield to_row(cells, columns, file=file, row=number)


def _class_name(index: object, names: list[str]) -> str | None:
    return names[index] if isinstance(index, int) and index >= 0 else None


def _load(datasets: Any, name: str) -> Any:
    folder = Path(name).expanduser()
    saved = ("dataset_dict.json", "state.json")
    if folder.is_dir() and any((folder / marker).is_file() for marker in saved):
        return datasets.load_from_disk(str(folder))
    place = folder if folder.is_dir() else find_on_hub(name, "dataset")
    return datasets.load_dataset(name if place is None else str(place))


def _import(module: str, *, extra: str, file: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UnsupportedDataError(
            f"reading this needs {package}, which is not installed",
            file=file,
            remedy=f"pip install {package}, or convert to CSV",
        ) from error
