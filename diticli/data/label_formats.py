"""Label files as plain text cells: CelebA's lists, CSV, LFW's scores, and Hugging Face's metadata.

Every reader returns a `RawLabels` or raises a `LabelError` that names the line. What a column means (binary,
number, category) is decided in `diticli.data.labels`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diticli.data.decode import has_image_suffix
from diticli.errors import LabelError

# A CSV's file column is its first, unless Hugging Face's name for it stands elsewhere.
HF_FILE_KEY = "file_name"
FILE_HEADERS = frozenset({"file_name", "filename", "file", "image_id", "image", "image_name", "path", "name"})

# LFW's attribute scores name their images by person and number; the official file has its header behind a `#`.
_LFW_COLUMNS = ["person", "imagenum"]
_LFW_HEADER = re.compile(r"#\s*(?=person\timagenum\t)", re.IGNORECASE)
_COMMENT_LINES = 10

_LAYOUTS = "Use CelebA's list format, a CSV whose first column is the file name, or a metadata.jsonl."


@dataclass(frozen=True)
class RawLabels:
    """Cells as text, column by column; an empty cell means missing."""

    files: list[str]
    columns: dict[str, list[str]]


def read_text(path: Path) -> str:
    """Text of a label file, without a byte-order mark.

    Raises:
        LabelError: when the file cannot be read, is empty, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabelError(f"Cannot read the label file {path}: {error.strerror}.", remedy="Check the path.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabelError(f"{path}, line {line}: not UTF-8 text.", remedy="Save the file as UTF-8.") from error
    if not text.strip():
        raise LabelError(f"The label file {path} is empty.", remedy=_LAYOUTS)
    return text


def read_raw(path: Path) -> RawLabels:
    """Parse a label file; the format is told by its suffix and its first line.

    Raises:
        LabelError: with the line number, for a file that is damaged or of no known format.
    """
    text = _without_comment(read_text(path))
    if path.suffix.lower() == ".jsonl":
        raw = _read_jsonl(path, text)
    elif re.fullmatch(r"[0-9]{1,12}", text.split("\n", 1)[0].strip()):
        raw = _read_celeba(path, text)
    else:
        raw = _read_csv(path, text)
    if not raw.files:
        raise LabelError(f"{path} holds a header but no rows.", remedy="Add one row for each image.")
    if not raw.columns:
        raise LabelError(f"{path} holds file names but no label column.", remedy=_LAYOUTS)
    return raw


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each non-empty row; the delimiter is the header's: comma, tab or semicolon.

    Raises:
        LabelError: for broken quoting or binary content.
    """
    header = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(",\t;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise LabelError(
            f"{path}, line {reader.line_num}: {error}.", remedy="Check the quotes around this line."
        ) from error


def unique_file(path: Path, line: int, name: str, seen: set[str]) -> str:
    """`name`, noted in `seen`.

    Raises:
        LabelError: when it is empty or was seen before.
    """
    if not name:
        raise LabelError(f"{path}, line {line}: no file name.", remedy="Every row names its image.")
    if name in seen:
        raise LabelError(f"{path}, line {line}: {name!r} occurs twice.", remedy="Keep one row for each image.")
    seen.add(name)
    return name


def _read_celeba(path: Path, text: str) -> RawLabels:
    """First line the number of rows, second the column names, then name and values between blanks."""
    lines = text.split("\n")
    names = lines[1].split() if len(lines) > 1 else []
    if names and has_image_suffix(names[0]):
        raise LabelError(f"{path}, line 2: {names[0]!r} is no column name.", remedy="Put the column names there.")
    _check_header(path, 2, names)
    rows = [(number, line.split()) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    if len(rows) != int(lines[0]):
        raise LabelError(
            f"{path}: line 1 announces {int(lines[0])} rows, but there are {len(rows)}.",
            remedy="The file may be cut off: fetch it again, or correct line 1.",
        )
    return _collect(path, rows, names, file_column=0)


def _read_csv(path: Path, text: str) -> RawLabels:
    rows = csv_rows(path, text)
    line, header = next(rows, (1, [""]))
    if [cell.lower() for cell in header[:2]] == _LFW_COLUMNS:
        header, rows = [_LFW_COLUMNS[0], *_trimmed(header[2:])], _lfw_rows(path, rows)
    if any(has_image_suffix(cell) for cell in header):
        raise LabelError(
            f"{path}, line {line}: no header, the line already names an image.",
            remedy="Add a first line with column names, e.g. filename,smiling,age.",
        )
    file_column = header.index(HF_FILE_KEY) if HF_FILE_KEY in header else 0
    names = header[:file_column] + header[file_column + 1 :]
    _check_header(path, line, names)
    return _collect(path, rows, names, file_column)


def _without_comment(text: str) -> str:
    """The text with LFW's leading comment blanked (lines keep their numbers) and its header laid bare."""
    lines = text.split("\n", _COMMENT_LINES)
    for number, line in enumerate(lines[:_COMMENT_LINES]):
        if not line.startswith("#"):
            break
        if match := _LFW_HEADER.match(line):
            return "\n" * number + "\n".join([line[match.end() :], *lines[number + 1 :]])
    return text


def _lfw_rows(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Rows that begin with the file's name: "Aaron Eckhart", "1" is Aaron_Eckhart/Aaron_Eckhart_0001.jpg."""
    for line, cells in rows:
        if len(cells) < 2 or not re.fullmatch(r"[0-9]{1,9}", cells[1]):
            raise LabelError(
                f"{path}, line {line}: no number of the person's image.",
                remedy="Every row starts with a person and the image's number.",
            )
        person = cells[0].replace(" ", "_")
        yield line, [person and f"{person}/{person}_{int(cells[1]):04d}.jpg", *_trimmed(cells[2:])]


def _trimmed(cells: list[str]) -> list[str]:
    """Without the empty cells that a delimiter at the line's end leaves."""
    while cells and not cells[-1]:
        cells = cells[:-1]
    return cells


def _read_jsonl(path: Path, text: str) -> RawLabels:
    """One object a line with the key `file_name`; nested values (boxes, captions' lists) are left out."""
    files: list[str] = []
    columns: dict[str, list[str]] = {}
    seen: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = _json_object(path, number, line)
        if not isinstance(record.get(HF_FILE_KEY), str):
            raise LabelError(
                f"{path}, line {number}: no {HF_FILE_KEY!r}.",
                remedy=f"Every line needs a {HF_FILE_KEY!r} key.",
            )
        name = unique_file(path, number, record.pop(HF_FILE_KEY), seen)
        for key, value in record.items():
            if not isinstance(value, dict | list):
                column = columns.setdefault(key, [])
                column.extend([""] * (len(files) - len(column)))
                column.append(_json_cell(value))
        files.append(name)
    for column in columns.values():
        column.extend([""] * (len(files) - len(column)))
    return RawLabels(files, columns)


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}, line {number}: not JSON ({error}).", remedy="Write one object a line.") from error
    if not isinstance(record, dict):
        raise LabelError(f"{path}, line {number}: not a JSON object.", remedy="Write one object a line.")
    return record


def _json_cell(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_header(path: Path, line: int, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise LabelError(f"{path}, line {line}: the column {name!r} occurs twice.", remedy="Rename one of them.")
        seen.add(name)


def _collect(
    path: Path,
    rows: Iterator[tuple[int, list[str]]] | list[tuple[int, list[str]]],
    names: list[str],
    file_column: int,
) -> RawLabels:
    """Rows to columns; a column without a name (a spreadsheet's row numbers) is left out."""
    files: list[str] = []
    kept: list[list[str]] = []
    seen: set[str] = set()
    for line, cells in rows:
        if len(cells) != len(names) + 1:
            raise LabelError(
                f"{path}, line {line}: {len(cells)} values, but the header has {len(names) + 1} columns.",
                remedy="Give every row one value for each column; leave a cell empty where it is unknown.",
            )
        files.append(unique_file(path, line, cells.pop(file_column), seen))
        kept.append(cells)
    values = zip(*kept, strict=True) if kept else [()] * len(names)
    return RawLabels(files, {name: list(column) for name, column in zip(names, values, strict=True) if name})
