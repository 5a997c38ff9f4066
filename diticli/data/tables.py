"""Tables that a user brings, as text cells: CSV, TSV and spreadsheets' exports, JSON, JSON lines and Parquet.

Labels, groups, splits and tables of pairs are all read here, so that one rule holds for all of them: the suffix
chooses the format, the delimiter is found by the header and the first rows, and what cannot be read is refused by
its name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.data.listing import has_image_suffix
from diticli.errors import LabelError
from diticli.reading import check_regular, read_table_bytes, shortened

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = ",\t;"
_SAMPLE_ROWS = 5
_LEAST_CELLS = 1_000_000
_CELLS_PER_BYTE = 200
"""Of a Parquet file: equal values take no room in it, so that a kilobyte may stand for any number of cells."""
_INDEX_HEADERS = ("unnamed:", "__index_level_")
"""What pandas calls an index that has no name."""

_TO_CSV = "Save it as CSV with commas or semicolons, in UTF-8."
_FOREIGN = {
    **dict.fromkeys([".xlsx", ".xls", ".xlsm", ".ods", ".numbers"], "a spreadsheet's own format"),
    **dict.fromkeys([".pkl", ".pickle", ".pt", ".pth"], "a pickle, which may run code when it is opened"),
    **dict.fromkeys([".mat", ".h5", ".hdf5", ".npy", ".npz", ".safetensors"], "an array, not a table"),
    **dict.fromkeys([".feather", ".arrow", ".orc", ".avro", ".db", ".sqlite"], "a database's own format"),
    **dict.fromkeys([".zip", ".gz", ".xz", ".bz2", ".zst", ".7z"], "a packed file"),
}
_HEADS = {
    b"PK\x03\x04": "an Excel workbook or a zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a packed file",
}


@dataclass(frozen=True, kw_only=True)
class CellTable:
    """Text cells under named columns; an empty cell means missing, an empty name an index without one.

    Attributes:
        header: [C] names of the columns.
        rows: (number, [C] cells) of each row.
        unit: what the number counts: "line" of a text file, or "row".
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    unit: str = "line"


def read_text(path: Path) -> str:
    """Text of a table, without a byte-order mark.

    Raises:
        LabelError: when the file cannot be read, is empty, is no text table by its name or its first bytes, or is
            not UTF-8.
    """
    if meaning := _FOREIGN.get(path.suffix.lower()):
        raise LabelError(f"{path} is not read: {path.suffix} is {meaning}.", remedy=_TO_CSV)
    if has_image_suffix(path.name):
        raise LabelError(f"{path} is a picture, not a table.", remedy="Name a table that has a row for each image.")
    try:
        data = read_table_bytes(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LabelError(f"Cannot read {path}: {reason}.", remedy="Check the path.") from error
    for head, meaning in _HEADS.items():
        if data.startswith(head):
            raise LabelError(f"{path} is not read: it is {meaning}, whatever its name says.", remedy=_TO_CSV)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabelError(f"{path}, line {line}: not UTF-8 text.", remedy="Save the file as UTF-8.") from error
    if not text.strip():
        raise LabelError(f"{path} is empty.", remedy="Write one row for each image.")
    return text


def read_records(path: Path, *, lists: bool = False) -> CellTable | None:
    """The table of a `.jsonl`, `.json` or `.parquet` file; None for other suffixes.

    Args:
        path: the file.
        lists: take a list in JSON as its elements with commas between; nested values (boxes, lists of captions) are
            left out otherwise.

    Raises:
        LabelError: when it is damaged, or JSON of another shape than one object for each row.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        return _parquet(path)
    if suffix in (".jsonl", ".ndjson"):
        return _table_of(list(_json_lines(path, read_text(path))), "line", lists)
    if suffix == ".json":
        return _table_of(list(enumerate(_json_records(path, read_text(path)), start=1)), "row", lists)
    return None


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each non-empty row. The delimiter is the one that `sep=` in the first line names, or
    the most frequent one of the header that gives the first rows as many cells.

    Raises:
        LabelError: for broken quoting or binary content.
    """
    first = text.split("\n", 1)[0].strip().strip('"')
    if first.lower().startswith("sep=") and len(first) == 5:  # Excel's own first line
        delimiter, text = first[4], "\n" + text.partition("\n")[2]
    else:
        delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise LabelError(
            f"{path}, line {reader.line_num}: {error}.", remedy="Check the quotes around this line."
        ) from error


def is_index(name: str) -> bool:
    """Whether a column's name is that of an index without a name, as spreadsheets and pandas write it."""
    return not name or name.lower().startswith(_INDEX_HEADERS)


def _delimiter(text: str) -> str:
    header = next((line for line in text.split("\n") if line.strip()), "")
    ordered = sorted(DELIMITERS, key=lambda one: -header.count(one))
    fitting = (one for one in ordered if one in header and _is_even(text, one))
    return next(fitting, ordered[0])


def _is_even(text: str, delimiter: str) -> bool:
    """Whether the first rows all have as many cells as the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        filled = (row for row in reader if any(cell.strip() for cell in row))
        return len({len(row) for row in islice(filled, _SAMPLE_ROWS)}) == 1
    except csv.Error:
        return False


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        LabelError: for a line that is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            record = _json(f"{path}, line {number}", line)
            if not isinstance(record, dict):
                raise LabelError(f"{path}, line {number}: not a JSON object.", remedy="Write one object a line.")
            yield number, record


def _json_records(path: Path, text: str) -> list[dict[str, Any]]:
    data = _json(str(path), text)
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise LabelError(
            f"{path} is JSON, but not a list with one object for each row.",
            remedy='Write [{"file_name": "a.png", "age": 31}, ...]; pandas does with to_json(orient="records").',
        )
    return data


def _json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{place}: not JSON ({shortened(error)}).", remedy="Write one object for each row.") from error


def _table_of(records: list[tuple[int, dict[str, Any]]], unit: str, lists: bool) -> CellTable:
    taken = (lambda value: not isinstance(value, dict)) if lists else (lambda value: not isinstance(value, dict | list))
    header = dict.fromkeys(key for _, record in records for key, value in record.items() if taken(value))
    rows = [(number, [_cell(record.get(key)) for key in header]) for number, record in records]
    return CellTable(header=list(header), rows=rows, unit=unit)


def _parquet(path: Path) -> CellTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_regular(path)
        with pq.ParquetFile(path) as file:
            _check_cells(path, file.metadata.num_rows * len(file.schema_arrow))
            texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        # Texts that repeat are kept once, as the file has them.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            columns: dict[str, list[str]] = {f.name: [] for f in file.schema_arrow if not pa.types.is_nested(f.type)}
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(columns))
                _check_cells(path, len(columns) * (len(next(iter(columns.values()), [])) + table.num_rows))
                for name in columns:
                    columns[name] += _cells(table.column(name))
    except LabelError:
        raise
    except (OSError, ValueError, KeyError, OverflowError, MemoryError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise LabelError(f"Cannot read the Parquet file {path} ({shortened(reason)}).", remedy="Check it.") from error
    rows = [(number, list(row)) for number, row in enumerate(zip(*columns.values(), strict=True), start=1)]
    return CellTable(header=list(columns), rows=rows, unit="row")


def _check_cells(path: Path, cells: int) -> None:
    most = max(_LEAST_CELLS, _CELLS_PER_BYTE * path.stat().st_size)
    if cells > most:
        raise LabelError(
            f"{path} stands for {cells:,} cells, more than the {most:,} that a file of its size may hold.",
            remedy="Leave out columns that are no labels, or save it as CSV.",
        )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)


def _cells(column: pa.ChunkedArray) -> list[str]:
    """Text of each value; equal texts of a dictionary are one object."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return [_cell(value) for value in column.to_pylist()]
    cells = []
    for chunk in column.chunks:
        texts = [_cell(value) for value in chunk.dictionary.to_pylist()]
        cells += ["" if index is None else texts[index] for index in chunk.indices.to_pylist()]
    return cells


def _cell(value: object) -> str:
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return ",".join(map(_cell, value))
    return str(value).lower() if isinstance(value, bool) else str(value).strip()
