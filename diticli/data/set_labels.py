"""Labels that lie in the data set's own file: factors of `.npz` and HDF5 sets, columns beside a Parquet's pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diticli.data.array_sets import PARTS, factors_in_order, given_sizes, is_array_set, read_array_set
from diticli.data.label_formats import RawLabels
from diticli.data.parquet_images import class_names, find_parquet, image_column, read_parquet_set
from diticli.errors import DataError, LabelError

_NONE = "Name a label file."
_IN_ORDER = "Name a label file, or the sizes of factors in whose order the pictures are, e.g. {}:4,4,2."
_SPARSE = 10
"""Combinations a picture, beyond which columns are not factors of a grid (40 yes or no, fractions)."""


def read_set_labels(path: Path) -> RawLabels | None:
    """The labels of a data set's own file; None when the path is no such file.

    Args:
        path: the file, or `FILE:4,4,2`, see `diticli.data.array_sets.given_sizes`; these come before its own labels.

    Raises:
        LabelError: when it is one but damaged, or holds no labels; for sizes that do not fit.
    """
    path, sizes = given_sizes(path)
    try:
        if is_array_set(path):
            found = read_array_set(path)
            files = list(found.names())
            labels = factors_in_order(path, sizes, len(files)) if sizes else found.labels
            if not labels:
                raise LabelError(f"{path} holds pictures but no labels.", remedy=_IN_ORDER.format(path))
            columns = {name: list(map(_cell, values.tolist())) for name, values in labels.items()}
        elif (parquet := find_parquet(path)) and (path.is_dir() or image_column(path)):
            columns, files = _parquet(parquet)
        else:
            return None
    except LabelError:
        raise
    except DataError as error:
        raise LabelError(error.message, remedy=error.remedy or _NONE) from error
    numbers = list(range(1, len(files) + 1))
    return RawLabels(files=files, columns=columns, numbers=numbers, unit="row", notes=_grid(columns))


def _grid(columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Whether each combination of the factors' values is there once, in words; nothing where they are no factors."""
    varying = {name: cells for name, cells in columns.items() if len(set(cells)) > 1}
    sizes = [len(set(cells)) for cells in varying.values()]
    count, rows = math.prod(sizes), len(next(iter(columns.values())))
    if len(sizes) < 2 or count > _SPARSE * rows or 2 * max(sizes) > rows:  # a column of ever new values is no factor
        return ()
    there = len(set(zip(*varying.values(), strict=True)))
    form = f"{' x '.join(map(str, sizes))} values of {', '.join(varying)}"
    if there == count == rows:
        return (f"The factors are a complete grid: {form}.",)
    return (f"The factors are no complete grid: {there:,} of {count:,} combinations ({form}), {rows:,} pictures.",)


def read_set_parts(path: Path) -> dict[str, str] | None:
    """Image -> "train", "val" or "test", of a data set that is distributed in these parts; None for other files.

    Raises:
        LabelError: when the file is damaged, or has no parts.
    """
    try:
        if is_array_set(path):
            found = read_array_set(path)
            files: Iterable[str] = found.names() if set(found.parts) <= set(PARTS) else ()
        elif (parquet := find_parquet(path)) and (path.is_dir() or image_column(path)):
            files = read_parquet_set(parquet).names()
        else:
            return None
    except DataError as error:
        raise LabelError(error.message, remedy=error.remedy or _NONE) from error
    parts = {name: name.partition("/")[0] for name in files if "/" in name}
    if not parts:
        raise LabelError(f"{path} is not distributed in parts.", remedy="Name a table of file names and parts.")
    return parts


def _parquet(paths: list[Path]) -> tuple[dict[str, list[str]], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = read_parquet_set(paths)
    schema = pq.read_schema(found.files[0])
    plain = [
        field.name
        for field in schema
        if not (
            pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        )
    ]
    names = class_names(found.files[0])
    columns: dict[str, list[str]] = {name: [] for name in plain}
    try:
        for path in found.files:
            table = pq.read_table(path, columns=plain, partitioning=None)
            for name in plain:
                known = names.get(name)
                for value in table.column(name).to_pylist():
                    inside = known is not None and isinstance(value, int) and 0 <= value < len(known)
                    columns[name].append(known[value] if known is not None and inside else _cell(value))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise LabelError(f"Cannot read the labels of {path}.", remedy="Download or write it again.") from error
    if not columns:
        raise LabelError(f"{paths[0]} holds pictures but no labels.", remedy=_NONE)
    return columns, found.names()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
