"""Label files as plain text cells: CelebA's lists, LFW's scores, and tables; and which column names the images.

Every reader returns a `RawLabels` or raises a `LabelError` that names the line. What a column means (binary,
number, category) is decided in `diticli.data.label_columns`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from diticli.data.listing import has_image_suffix
from diticli.data.name_match import is_count, match_names
from diticli.data.tables import CellTable, csv_rows, is_index, read_records, read_text
from diticli.errors import LabelError
from diticli.reading import quoted

HF_FILE_KEY = "file_name"
"""Hugging Face's name of the file column, which comes before all others."""
FILE_HEADERS = frozenset(
    {"file_name", "filename", "file", "fname", "file_path", "filepath", "path", "image_file", "image_path", "img_path"}
    | {"image", "image_id", "image_name", "img", "img_id", "img_name", "imagename", "picture", "photo"}
)
_COUNT_HEADERS = frozenset({"id", "idx", "index", "no", "nr", "number", "row", "n", "#"})

# LFW's attribute scores name their images by person and number; the official file has its header behind a `#`.
_LFW_COLUMNS = ["person", "imagenum"]
_LFW_HEADER = re.compile(r"#\s*(?=person\timagenum\t)", re.IGNORECASE)
_COMMENT_LINES = 10
_SAMPLE_CELLS = 500

_LAYOUTS = "Use CelebA's list format, a CSV with a column of file names, or a metadata.jsonl."
_ONE_COLUMN = f"Call the right one {HF_FILE_KEY!r} and leave the others out."


@dataclass(frozen=True, kw_only=True)
class RawLabels:
    """Cells as text, column by column; an empty cell means missing.

    Attributes:
        files: [N] what names the images.
        columns: [N] cells of each attribute.
        numbers: [N] number of each row, for messages.
        unit: what it counts, "line" or "row".
        file_column: name of the column of `files`; "" where the format fixes it.
        notes: what was left out, in words.
    """

    files: list[str]
    columns: dict[str, list[str]]
    numbers: list[int]
    unit: str = "line"
    file_column: str = ""
    notes: tuple[str, ...] = ()


def read_raw(path: Path, images: Sequence[str] | None = None) -> RawLabels:
    """Parse a label file; its suffix and its first line say which format it has.

    Args:
        path: the file.
        images: names of the images, which decide where several columns might name them.

    Raises:
        LabelError: with the line number, for a file that is damaged or of no known format; when no column, or more
            than one, can name the images.
    """
    table = read_records(path)
    text = "" if table else _without_comment(read_text(path))
    if table is not None:
        raw = _from_table(path, table, images)
    elif re.fullmatch(r"[0-9]{1,12}", text.split("\n", 1)[0].strip()):
        raw = _read_celeba(path, text)
    elif pairs := _picture_pairs(text):
        raw = _read_pair_list(path, pairs)
    else:
        raw = _read_csv(path, text, images)
    if not raw.files:
        raise LabelError(f"{path} holds a header but no rows.", remedy="Add one row for each image.")
    if not raw.columns:
        raise LabelError(f"{path} holds file names but no label column.", remedy=_LAYOUTS)
    return raw


def plain_header(name: str) -> str:
    """A column's name in small letters, words joined by underscores."""
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())


def unique_file(path: Path, line: int, name: str, seen: set[str], unit: str = "line") -> str:
    """`name`, noted in `seen`.

    Raises:
        LabelError: when it is empty or was seen before.
    """
    if not name:
        raise LabelError(f"{path}, {unit} {line}: no file name.", remedy="Every row names its image.")
    if name in seen:
        raise LabelError(f"{path}, {unit} {line}: {quoted(name)} occurs twice.", remedy="Keep one row for each image.")
    seen.add(name)
    return name


def file_column(path: Path, table: CellTable, images: Sequence[str] | None = None) -> int:
    """Which column names the images: by its header (`FILE_HEADERS`) and by its cells, which end like pictures.

    Where several do, `images` decide: the column that shares most names with them. A column of numbers is taken
    only where no other has a claim.

    Raises:
        LabelError: when none or more than one can be meant.
    """
    header = table.header
    columns = [[cells[at] for _, cells in table.rows] for at in range(len(header))]
    claims = {at: _claim(header[at], columns[at]) for at in range(len(header))}
    candidates = [at for at, claim in claims.items() if claim]
    if len(candidates) > 1:  # one that repeats itself names something else, e.g. a reference picture
        candidates = [at for at in candidates if len(set(columns[at])) == len(columns[at])] or candidates
    if not candidates:
        if is_index(header[0]) and is_count(columns[0]):
            raise LabelError(
                f"{path}: no column names the images; the first one only counts rows.",
                remedy=f"Add a column {HF_FILE_KEY!r} with the images' file names.",
            )
        return 0
    strongest = [at for at in candidates if claims[at] == max(claims[one] for one in candidates)]
    if len(candidates) == 1 or (images is None and len(strongest) == 1):
        return strongest[0]
    if images is None:
        raise _in_doubt(path, [quoted(header[at]) for at in strongest])
    matches = {at: match_names(images, columns[at]) for at in candidates}
    score = {at: (match.by_name, len(match.rows)) for at, match in matches.items()}
    best = max(score.values())
    choices = [at for at in strongest if score[at] == best] or [at for at in candidates if score[at] == best]
    same = all(
        matches[at].rows.tolist() == matches[choices[0]].rows.tolist()
        and matches[at].table_rows.tolist() == matches[choices[0]].table_rows.tolist()
        for at in choices
    )
    contradicted = choices[0] not in strongest and any(score[at] > (0, 0) for at in strongest)
    if contradicted or not same:
        raise _in_doubt(path, [f"{quoted(header[at])} ({len(matches[at].rows):,} images)" for at in candidates])
    return choices[0]


def other_columns(table: CellTable, at: int) -> tuple[list[int], tuple[str, ...]]:
    """The columns beside the one that names the images, without row counts and other pictures; and what was left."""
    kept, left = [], []
    for one, name in enumerate(table.header):
        cells = [row[one] for _, row in table.rows]
        if one == at or is_index(name):
            continue
        if plain_header(name) in _COUNT_HEADERS and is_count(cells):
            left.append(f"The column {quoted(name)} only counts rows and is left out.")
        elif _holds_pictures(cells):
            left.append(f"The column {quoted(name)} names other pictures and is left out.")
        else:
            kept.append(one)
    return kept, tuple(left)


def _in_doubt(path: Path, columns: Sequence[str]) -> LabelError:
    return LabelError(f"{path}: more than one column may name the images: {', '.join(columns)}.", remedy=_ONE_COLUMN)


def _claim(name: str, cells: Sequence[str]) -> int:
    header = plain_header(name)
    return 4 * (header == HF_FILE_KEY) + 2 * _holds_pictures(cells) + (header in FILE_HEADERS)


def _holds_pictures(cells: Sequence[str]) -> bool:
    sample = list(islice((cell for cell in cells if cell), _SAMPLE_CELLS))
    return 2 * sum(map(has_image_suffix, sample)) > len(sample)


def _from_table(path: Path, table: CellTable, images: Sequence[str] | None) -> RawLabels:
    if not table.header or not table.rows:
        raise LabelError(f"{path} holds no rows.", remedy="Add one row for each image.")
    for number, cells in table.rows:
        if len(cells) != len(table.header):
            raise LabelError(
                f"{path}, {table.unit} {number}: {len(cells)} values, but the header has {len(table.header)} columns.",
                remedy="Give every row one value for each column; leave a cell empty where it is unknown.",
            )
    at = file_column(path, table, images)
    seen: set[str] = set()
    files = [unique_file(path, number, cells[at], seen, table.unit) for number, cells in table.rows]
    kept, notes = other_columns(table, at)
    return RawLabels(
        files=files,
        columns={table.header[one]: [cells[one] for _, cells in table.rows] for one in kept},
        numbers=[number for number, _ in table.rows],
        unit=table.unit,
        file_column=table.header[at] or "(without a name)",
        notes=notes,
    )


def _read_celeba(path: Path, text: str) -> RawLabels:
    """First line the number of rows, second the column names, then name and values between blanks."""
    lines = text.split("\n")
    names = lines[1].split() if len(lines) > 1 else []
    if names and has_image_suffix(names[0]):
        raise LabelError(f"{path}, line 2: {quoted(names[0])} is no column name.", remedy="Put the column names there.")
    _check_header(path, 2, names)
    rows = [(number, line.split()) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    if len(rows) != int(lines[0]):
        raise LabelError(
            f"{path}: line 1 announces {int(lines[0])} rows, but there are {len(rows)}.",
            remedy="The file may be cut off: fetch it again, or correct line 1.",
        )
    return _fixed(path, rows, names)


def _picture_pairs(text: str) -> list[tuple[int, list[str]]]:
    """The lines of a list without a header, such as `identity_CelebA.txt`: a picture's name, blanks, one value."""
    if any(delimiter in text.split("\n", 1)[0] for delimiter in ",;\t"):
        return []
    rows = [(number, line.split()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return rows if all(len(cells) == 2 and has_image_suffix(cells[0]) for _, cells in rows) else []


def _read_pair_list(path: Path, rows: list[tuple[int, list[str]]]) -> RawLabels:
    name = "identity" if "identity" in path.stem.lower() else path.stem
    raw = _fixed(path, rows, [name])
    note = f"{path.name} has no header: its values are called {quoted(name)}."
    return RawLabels(files=raw.files, columns=raw.columns, numbers=raw.numbers, notes=(note,))


def _read_csv(path: Path, text: str, images: Sequence[str] | None) -> RawLabels:
    rows = csv_rows(path, text)
    line, header = next(rows, (1, [""]))
    if [cell.lower() for cell in header[:2]] == _LFW_COLUMNS:
        return _fixed(path, list(_lfw_rows(path, rows)), _trimmed(header[2:]))
    if any(has_image_suffix(cell) for cell in header):
        raise LabelError(
            f"{path}, line {line}: no header, the line already names an image.",
            remedy="Add a first line with column names, e.g. filename,smiling,age.",
        )
    _check_header(path, line, header)
    table = CellTable(header=header, rows=list(rows))
    if not table.rows:
        raise LabelError(f"{path} holds a header but no rows.", remedy="Add one row for each image.")
    return _from_table(path, table, images)


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


def _check_header(path: Path, line: int, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise LabelError(
                f"{path}, line {line}: the column {quoted(name)} occurs twice.", remedy="Rename one of them."
            )
        seen.add(name)


def _fixed(path: Path, rows: list[tuple[int, list[str]]], names: list[str]) -> RawLabels:
    """Rows of a format whose first cell names the image."""
    _check_header(path, 1, names)
    seen: set[str] = set()
    files: list[str] = []
    for line, cells in rows:
        if len(cells) != len(names) + 1:
            raise LabelError(
                f"{path}, line {line}: {len(cells)} values, but the header has {len(names) + 1} columns.",
                remedy="Give every row one value for each column; leave a cell empty where it is unknown.",
            )
        files.append(unique_file(path, line, cells[0], seen))
    columns = {name: [cells[at] for _, cells in rows] for at, name in enumerate(names, start=1) if name}
    return RawLabels(files=files, columns=columns, numbers=[line for line, _ in rows])
