"""Label files: attributes of images to probe for, groups (identities) to keep together, and given splits.

table = read_labels(Path("list_attr_celeba.txt"))
rows, table_rows = table.match(file_names)   # file_names[rows[i]] is table.files[table_rows[i]]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from diticli.data.label_columns import IDENTITY_HEADERS, UNKNOWN, LabelColumn, make_column
from diticli.data.label_formats import (
    FILE_HEADERS,
    file_column,
    other_columns,
    plain_header,
    read_raw,
    unique_file,
)
from diticli.data.listing import has_image_suffix
from diticli.data.name_match import match_names
from diticli.data.set_labels import read_set_labels, read_set_parts
from diticli.data.tables import CellTable, csv_rows, read_records, read_text
from diticli.errors import LabelError
from diticli.reading import quoted

__all__ = ["LabelColumn", "LabelTable", "folder_labels", "read_groups", "read_labels", "read_parts"]

SplitPart = Literal["train", "val", "test"]
_PARTS: dict[str, SplitPart] = {
    **{"0": "train", "1": "val", "2": "test"},
    **{"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"},
}
_PART_HEADERS = frozenset({"split", "partition", "part", "set", "subset"})
_GROUP_HEADERS = IDENTITY_HEADERS | {"group", "group_id", "scene", "scene_id"}


@dataclass(frozen=True)
class LabelTable:
    """Attributes of N files.

    Attributes:
        files: [N] file names as written in the label file.
        columns: attributes by name, in the file's order.
        file_column: name of the column that `files` are from; "" where the format fixes it.
        notes: how the file was understood where that is not plain, in words.
    """

    files: tuple[str, ...]
    columns: dict[str, LabelColumn]
    file_column: str = ""
    notes: tuple[str, ...] = ()

    def match(self, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pair image names with rows of this table.

        See `diticli.data.name_match.match_names` for how.

        Args:
            names: image names with forward slashes, e.g. the rows of a feature file.

        Returns:
            Two int64 arrays of equal length, indices into `names` (increasing) and into the table; empty when
            nothing matches.
        """
        match = match_names(names, self.files)
        return match.rows, match.table_rows


def read_labels(path: Path, images: Sequence[str] | None = None) -> LabelTable:
    """Read a label file: CelebA's and CelebAMask-HQ's lists, tables, LFW's scores, Hugging Face's metadata.

    A table (CSV with comma, tab or semicolon, JSON, JSON lines, Parquet) has a header; the column that names the
    files is found by `diticli.data.label_formats.file_column`, or the first two are `person` and `imagenum`, as in
    `lfw_attributes.txt`. A data set with factors of its own (`.npz`, HDF5, Parquet with pictures) names its rows by
    number. What a column means is decided by `diticli.data.label_columns.make_column`.

    Args:
        path: the file.
        images: names of the images, which decide where several columns might name them.

    Raises:
        LabelError: with the line number, for a file that is missing, empty, damaged or of no known format.
    """
    raw = read_set_labels(path) or read_raw(path, images)
    columns = {name: make_column(name, cells, raw.numbers, raw.unit) for name, cells in raw.columns.items()}
    notes = (*raw.notes, *(column.note for column in columns.values() if column.note))
    return LabelTable(tuple(raw.files), columns, raw.file_column, notes)


def read_groups(path: Path, images: Sequence[str] | None = None) -> dict[str, str]:
    """Read which group (a person, a scene) each file belongs to.

    Either CelebA's `identity_CelebA.txt` (`000001.jpg 2880` a line), two columns without a header, or a table as for
    `read_labels` whose only other column, or the one called person, identity, subject, group or scene, has the group.

    Returns:
        File name -> group.

    Raises:
        LabelError: with the line number, for a file that is missing, empty or damaged.
    """
    return _read_pairs(path, "its group", "the person (or scene) it shows", _GROUP_HEADERS, images)


def read_parts(path: Path, images: Sequence[str] | None = None) -> dict[str, SplitPart]:
    """Read which part of a split each file belongs to.

    Either CelebA's `list_eval_partition.txt` (`000001.jpg 0` a line), two columns without a header, or a table as for
    `read_labels` whose only other column, or the one called split, partition, part, set or subset, has the part.
    Or a data set that is distributed in parts (MedMNIST, the Hub's Parquet files).
    The parts are 0, 1, 2 or train, val (valid, validation), test.

    Returns:
        File name -> "train", "val" or "test".

    Raises:
        LabelError: for a file that is missing, empty, damaged, or names another part.
    """
    parts: dict[str, SplitPart] = {}
    meaning = "0 (train), 1 (validation) or 2 (test)"
    found = read_set_parts(path) or _read_pairs(path, "its part", meaning, _PART_HEADERS, images)
    for name, part in found.items():
        if part.lower() not in _PARTS:
            raise LabelError(
                f"{path}: {quoted(name)} belongs to part {quoted(part)}.",
                remedy="Write 0, 1, 2 or train, val, test behind each file name.",
            )
        parts[name] = _PARTS[part.lower()]
    return parts


def folder_labels(names: Sequence[str]) -> LabelTable:
    """The innermost folder of each image as its category, as Hugging Face's ImageFolder has it.

    Args:
        names: image names with forward slashes.

    Raises:
        LabelError: when no image lies in a folder.
    """
    folders = [name.rpartition("/")[0].rpartition("/")[2] for name in names]
    if not any(folders):
        raise LabelError(
            f"The images do not lie in folders, e.g. {', '.join(map(repr, names[:1]))}.",
            remedy="Encode the folder that holds one folder per class, or give a label file.",
        )
    return LabelTable(tuple(names), {"folder": LabelColumn("category", np.array(folders, dtype=np.str_))})


def _read_pairs(
    path: Path, second: str, meaning: str, headers: frozenset[str], images: Sequence[str] | None
) -> dict[str, str]:
    """File name -> value, of CelebA's lists and of tables."""
    rows, unit = _pair_rows(path, second, headers, images)
    pairs: dict[str, str] = {}
    seen: set[str] = set()
    for line, cells in rows:
        if len(cells) != 2 or cells[1].lower() in UNKNOWN:
            got = f"{len(cells)} values" if len(cells) != 2 else f"{quoted(cells[1])} for {quoted(cells[0])}"
            raise LabelError(
                f"{path}, {unit} {line}: expected a file name and {second}, got {got}.",
                remedy=f"Write two columns: the file name, and {meaning}; leave the row out where it is unknown.",
            )
        pairs[unique_file(path, line, cells[0], seen, unit)] = cells[1]
    if not pairs:
        raise LabelError(f"{path} holds a header but no rows.", remedy="Add one row for each image.")
    return pairs


def _pair_rows(
    path: Path, second: str, headers: frozenset[str], images: Sequence[str] | None
) -> tuple[list[tuple[int, list[str]]], str]:
    """(number, [file, value]) of each row, and what the number counts."""
    table = read_records(path)
    if table is None:
        text = read_text(path)
        rows = list(csv_rows(path, text)) if any(c in text.split("\n", 1)[0] for c in ",\t;=") else _pairs(text)
        if not rows or not _is_header(rows):
            return rows, "line"
        table = CellTable(header=rows[0][1], rows=rows[1:])
    if not table.rows:
        return [], table.unit
    for line, cells in table.rows:
        if len(cells) != len(table.header):
            raise LabelError(
                f"{path}, {table.unit} {line}: expected a file name and {second}, got {len(cells)} values where the "
                f"header has {len(table.header)} columns.",
                remedy="Give every row one value for each column.",
            )
    at = file_column(path, table, images)
    others = other_columns(table, at)[0]
    named = [one for one in others if plain_header(table.header[one]) in headers]
    if len(found := named if len(others) > 1 else others) != 1:
        names = ", ".join(repr(table.header[one]) for one in (named or others)) or "none"
        raise LabelError(
            f"{path}: which column holds for each file {second}? There are {names}.",
            remedy=f"Keep the one that is meant, or call it {quoted(min(headers, key=len))}.",
        )
    return [(line, [cells[at], cells[found[0]]]) for line, cells in table.rows], table.unit


def _pairs(text: str) -> list[tuple[int, list[str]]]:
    """File names may hold blanks, groups may not."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip().rsplit(maxsplit=1)) for number, line in lines if line.strip()]


def _is_header(rows: Sequence[tuple[int, list[str]]]) -> bool:
    first = rows[0][1]
    if any(plain_header(cell) in FILE_HEADERS for cell in first):
        return True
    return not any(map(has_image_suffix, first)) and len(rows) > 1 and any(map(has_image_suffix, rows[1][1]))
