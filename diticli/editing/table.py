"""Tables of pairs to edit: CSV, TSV, JSON or Parquet with the columns a, b[, chunks, alphas, name]."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diticli.data.faces_word import is_faces
from diticli.data.tables import CellTable, csv_rows, is_index, read_records, read_text
from diticli.editing.inputs import slug, source_name
from diticli.errors import ConfigError, DataError, LabelError
from diticli.reading import printable, quoted, shortened

COLUMNS = ("a", "b", "chunks", "alphas", "name", "error")
"""`error` is what a list of failures adds; it is read past, so that such a list is a table again."""
_REMEDY = "The first line names the columns: a,b and, if wanted, chunks,alphas,name."


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"^'(?='*[=+\-@\t\r])")


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


def read_pairs(path: Path) -> list[PairRow]:
    """The pairs of a table. Relative paths are relative to it; pairs without a name are called by number and files.

    Raises:
        DataError: when it cannot be read, or has no pairs.
        ConfigError: for missing or unknown columns, a row without an image, or names that repeat or that are no
            plain file names.
    """
    try:
        table = read_records(path, lists=True) or _delimited(path)
    except LabelError as error:
        raise DataError(error.message, remedy=error.remedy) from error
    named = [at for at, name in enumerate(table.header) if not is_index(name)]
    header = [table.header[at] for at in named]
    if table.rows or path.suffix.lower() not in (".json", ".jsonl"):
        _check_columns(header, path)
    for number, cells in table.rows:
        if len(cells) != len(table.header):
            raise ConfigError(
                f"{path}, {table.unit} {number}, has another number of columns than the first line.",
                remedy="Quote values that hold commas.",
            )
    lines = [dict(zip(header, (cells[at] for at in named), strict=True)) for _, cells in table.rows]
    lines = [fields for fields in lines if any(fields.values())]
    if not lines:
        raise DataError(f"{path} lists no pairs.", remedy=_REMEDY)
    width = len(str(len(lines)))
    rows = [_row(number, fields, path, width) for number, fields in enumerate(lines, start=1)]
    _check_names(rows, path)
    return rows


def _delimited(path: Path) -> CellTable:
    (_, header), *rows = list(csv_rows(path, read_text(path))) or [(1, [""])]
    return CellTable(header=header, rows=rows)


def _check_columns(names: Sequence[str], path: Path) -> None:
    if missing := [name for name in ("a", "b") if name not in names]:
        raise ConfigError(
            f"{path} has no column {missing[0]!r}, only {shortened(', '.join(names)) or 'none'}.", remedy=_REMEDY
        )
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ConfigError(f"{path} has an unknown column {quoted(unknown[0])}.", remedy=_REMEDY)


def _row(number: int, fields: Mapping[str, str], path: Path, width: int) -> PairRow:
    values = {column: fields.get(column, "") for column in COLUMNS[:-1]}
    if "error" in fields:  # a list of failures, see `spreadsheet_cell`
        values = {column: _ESCAPED.sub("", value) for column, value in values.items()}
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
        if not re.fullmatch(r"(?![.-])[^/\\\t\n]{1,200}", row.name) or printable(row.name) != row.name:
            raise ConfigError(
                f"The name {quoted(row.name)} in {path} is no plain file name.",
                remedy="Use letters, digits, - and _, and begin with a letter or a digit.",
            )
        if row.name.lower() in seen:
            raise ConfigError(f"The name {quoted(row.name)} occurs twice in {path}.", remedy="Give every pair its own.")
        seen.add(row.name.lower())


def spreadsheet_cell(text: str) -> str:
    """The text with an apostrophe before what a spreadsheet would compute; `read_pairs` takes it off again."""
    return f"'{text}" if _FORMULA.match(text) else text
