"""Records of columnar stores: Parquet files and data sets of the `datasets` library.

pyarrow and datasets are imported only when such data are read.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hushtune.common.errors import AssetError, EmptyDataError, UnsupportedDataError
from hushtune.common.tasks.hub import find_on_hub
from hushtune.common.tasks.records import Cells, Records


def parquet_records(path: Path, wanted: Collection[str]) -> Records:
    """Records of a Parquet file, a batch in memory at a time.

    Raises UnsupportedDataError: pyarrow is not installed, or the file is not Parquet.
    """
    if path.stat().st_size == 0:
        raise EmptyDataError("the file is empty", file=path, remedy="name a file with rows")

    def read(names: Collection[str]) -> Iterator[tuple[int, Cells]]:
        with _parquet(path) as table:
            number = 0
            columns = [name for name in table.schema_arrow.names if name in names]
            for batch in table.iter_batches(batch_size=4096, columns=columns):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells

    return Records(str(path), parquet_header(path), read)


@contextmanager
def _parquet(path: Path) -> Generator[Any]:
    parquet = _import("pyarrow.parquet", extra="data", file=str(path))
    arrow = _import("pyarrow", extra="data", file=str(path))
    try:
        with parquet.ParquetFile(path) as table:
            yield table
    except cast("type[Exception]", arrow.ArrowException) as error:
        raise UnsupportedDataError(
            "the file cannot be read as Parquet",
            file=path,
            given=str(error)[:200],
            remedy="write the file anew, or as CSV",
        ) from error


def parquet_header(path: Path) -> tuple[str, ...]:
    """The names of a Parquet file's columns; raises what ``parquet_records`` does."""
    with _parquet(path) as table:
        return tuple(table.schema_arrow.names)


def table_records(name: str) -> Iterator[Records]:
    """Records of each split of a data set: a hub id, or a folder that `datasets` reads.

    The splits that came with it are joined, for hushtune makes its own at every site. Class
    indices are turned into their names; -1, the customary label of hidden test rows, is missing.

    Raises:
        UnsupportedDataError: datasets is not installed, or cannot load this.
        AssetError: no such data set is here, and the hub has none or cannot be reached.
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
        yield _split_records(splits[split], file=f"{name}[{split}]")


def _split_records(table: Any, *, file: str) -> Records:
    def read(names: Collection[str]) -> Iterator[tuple[int, Cells]]:
        chosen = [name for name in table.column_names if name in names]
        # A column of classes holds their numbers; what they are called lies beside it.
        found = {name: _class_names(table.features.get(name)) for name in chosen}
        classes = {name: classes for name, classes in found.items() if classes}
        records = cast("Iterable[dict[str, object]]", table.select_columns(chosen))
        for number, cells in enumerate(records, start=1):
            named = {name: _class_name(cells[name], names) for name, names in classes.items()}
            yield number, cells | named

    return Records(file, tuple(table.column_names), read)


def _class_names(feature: Any) -> list[str] | None:
    """The names of a column of classes, or of lists of classes."""
    inner = getattr(feature, "feature", None)
    return cast("list[str] | None", getattr(feature, "names", getattr(inner, "names", None)))


def _class_name(index: object, names: list[str]) -> str | list[str | None] | None:
    if isinstance(index, list):
        return [
            names[item] if isinstance(item, int) and item >= 0 else None
            for item in cast("list[object]", index)
        ]
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
