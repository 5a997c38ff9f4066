"""Tables of pairs to edit: CSV, TSV or JSON lines with the columns a, b[, chunks, alphas, name]."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diticli.data.faces_word import is_faces
from diticli.editing.inputs import source_name
from diticli.editing.sheet import slug
from diticli.errors import ConfigError, DataError

COLUMNS = ("a", "b", "chunks", "alphas", "name", "error")
"""`error` is what a list of failures adds; it is read past, so that such a list is a table again."""
SUFFIXES = (".csv", ".tsv", ".jsonl")
_REMEDY = "The first line names the columns: a,b and, if wanted, chunks,alphas,name."

_JSON_REMEDY = 'Write {"a": "x.png", "b": "y.png"} on each line.'


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One pair.

    Attributes:
        a: a file, or faces:INDEX[:SEED].
        b: likewise.
        chunks: sets of chunks such as "0-3;8-15"; "" for the default.
        alphas: such as "0:1:5"; "" for the default.
        name: of its outputs, a file name without suffix.
    """

    a: str
    b: str
    chunks: str = ""
    alphas: str = ""
    name: str

    def to_dict(self) -> dict[str, str]:
        """Its columns."""
        return {column: getattr(self, column) for column in COLUMNS[:-1]}


def is_table(source: str) -> bool:
    """Whether a source is a table of pairs, by its suffix."""
    return Path(source).suffix.lower() in SUFFIXES


def read_pairs(path: Path) -> list[PairRow]:
    """The pairs of a table. Relative paths are relative to it; pairs without a name are called by number and files.

    Raises:
        DataError: when it cannot be read, or has no pairs.
        ConfigError: for missing or unknown columns, a row without an image, or names that repeat or that are no
            plain file names.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise DataError(f"Cannot read the table {path}: {reason}.", remedy=_REMEDY) from error
    lines = list(_json_rows(text, path) if path.suffix.lower() == ".jsonl" else _csv_rows(text, path))
    if not lines:
        raise DataError(f"{path} lists no pairs.", remedy=_REMEDY)
    width = len(str(len(lines)))
    rows = [_row(number, fields, path, width) for number, fields in enumerate(lines, start=1)]
    _check_names(rows, path)
    return rows


def _csv_rows(text: str, path: Path) -> Iterable[Mapping[str, Any]]:
    reader = csv.DictReader(
        io.StringIO(text, newline=""), dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    )
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        _check_columns(reader.fieldnames, path)
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{path}, line {reader.line_num}, has another number of columns than the first line.",
                    remedy="Quote values that hold commas.",
                )
            if any(row.values()):
                yield row
    except csv.Error as error:
        raise DataError(f"Cannot read the table {path}: {error}.", remedy=_REMEDY) from error


def _json_rows(text: str, path: Path) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}, is not JSON.", remedy='E.g. {"a": "x.png", "b": "y.png"}'
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}, is no object.", remedy='E.g. {"a": "x.png", "b": "y.png"}')
        _check_columns(list(row), path)
        yield {key: _text(value) for key, value in row.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _check_columns(names: Sequence[str], path: Path) -> None:
    if missing := [name for name in ("a", "b") if name not in names]:
        raise ConfigError(f"{path} has no column {missing[0]!r}, only {', '.join(names) or 'none'}.", remedy=_REMEDY)
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ConfigError(f"{path} has an unknown column {unknown[0]!r}.", remedy=_REMEDY)


def _row(number: int, fields: Mapping[str, Any], path: Path, width: int) -> PairRow:
    values = {column: str(fields.get(column) or "").strip() for column in COLUMNS[:-1]}
    for side in ("a", "b"):
        if not values[side]:
            raise ConfigError(f"Pair {number} of {path} has no image {side}.", remedy=_REMEDY)
        if not is_faces(values[side]):
            values[side] = str(path.parent / values[side])
    if not values["name"]:
        stems = (slug(Path(source_name(values[side])).stem) for side in ("a", "b"))
        values["name"] = f"{number:0{width}d}_" + "_".join(stems)
    return PairRow(**values)


def _check_names(rows: Sequence[PairRow], path: Path) -> None:
    """No output may leave the folder or overwrite another."""
    seen: set[str] = set()
    for row in rows:
        if not re.fullmatch(r"[^/\\\x00-\x1f]{1,200}", row.name) or row.name.startswith("."):
            raise ConfigError(
                f"The name {row.name!r} in {path} is no plain file name.", remedy="Use letters, digits, - and _."
            )
        if row.name.lower() in seen:
            raise ConfigError(f"The name {row.name!r} occurs twice in {path}.", remedy="Give every pair its own.")
        seen.add(row.name.lower())
