"""What is known about images: attributes to probe for, and groups to keep together.

table = read_labels(Path("list_attr_celeba.txt"))
rows, table_rows = table.match(file_names)   # file_names[rows[i]] is table.files[table_rows[i]]
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diticli.data.decode import has_image_suffix
from diticli.data.label_formats import FILE_HEADERS, csv_rows, read_raw, read_text, unique_file
from diticli.errors import LabelError

_MISSING = frozenset({"", "nan", "na", "n/a", "null", "none"})
_BOOLEANS = {"true": 1.0, "false": 0.0}

_PADDED_NUMBER = re.compile(r"(?<![^/])0+(?=[0-9]+(\.[A-Za-z]+)?\Z)")

Part = Literal["train", "val", "test"]
_PARTS: dict[str, Part] = {
    **{"0": "train", "1": "val", "2": "test"},
    **{"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"},
}


@dataclass(frozen=True)
class LabelColumn:
    """One attribute of all files of a table.

    Attributes:
        kind: what the values are.
        values: [N] "binary" float32 0 or 1, "number" float32, both NaN where unknown; "category" str, empty
            where unknown.
    """

    kind: Literal["binary", "number", "category"]
    values: npt.NDArray[Any]


@dataclass(frozen=True)
class LabelTable:
    """Attributes of N files.

    Attributes:
        files: [N] file names as written in the label file.
        columns: attributes by name, in the file's order.
    """

    files: tuple[str, ...]
    columns: dict[str, LabelColumn]

    def match(self, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Pair image names with rows of this table.

        Three ways are tried and the first that pairs anything is used for all: equal relative names; equal
        base names; equal base names without the image suffix (labels made for `.jpg`, images saved as
        `.png`). The latter two only where they are unique, both among `names` and in the table. Base names
        that are nothing but a number are equal whatever zeros pad them (`0.jpg` of CelebAMask-HQ is
        `00000.png` of an LMDB), as long as that leaves all unique.

        Args:
            names: image names with forward slashes, e.g. the rows of a feature file.

        Returns:
            Two int64 arrays of equal length, indices into `names` (increasing) and into the table; empty when
            nothing matches.
        """
        for key in (_unpadded(_normal), _normal, _unpadded(_base), _base, _unpadded(_stem), _stem):
            wanted, known = _index(names, key), _index(self.files, key)
            if wanted is None or known is None:
                continue
            pairs = sorted((row, known[text]) for text, row in wanted.items() if text in known)
            if pairs:
                rows, table_rows = zip(*pairs, strict=True)
                return np.array(rows, dtype=np.int64), np.array(table_rows, dtype=np.int64)
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)


def read_labels(path: Path) -> LabelTable:
    """Read a label file: CelebA's and CelebAMask-HQ's lists, CSV, LFW's scores, Hugging Face's metadata.

    A CSV has a header; its first column (or one called `file_name`) names the files, or the first two are
    `person` and `imagenum`, as in `lfw_attributes.txt`; comma, tab and semicolon all serve. A column whose values
    lie within {-1, 1}, {0, 1} or {true, false} is binary, other numbers are numbers, the rest are categories.
    Empty cells, and in columns of numbers also nan, na, n/a, null, none and infinities, count as unknown.

    Raises:
        LabelError: with the line number, for a file that is missing, empty, damaged or of no known format.
    """
    raw = read_raw(path)
    columns = {name: _column(cells) for name, cells in raw.columns.items()}
    return LabelTable(tuple(raw.files), columns)


def read_groups(path: Path) -> dict[str, str]:
    """Read which group (a person, a scene) each file belongs to.

    Either CelebA's `identity_CelebA.txt` (`000001.jpg 2880` a line) or a CSV of two columns, with or without
    a header.

    Returns:
        File name -> group.

    Raises:
        LabelError: with the line number, for a file that is missing, empty or damaged.
    """
    return _read_pairs(path, "its group", "the person (or scene) it shows")


def read_parts(path: Path) -> dict[str, Part]:
    """Read which part of a split each file belongs to.

    Either CelebA's `list_eval_partition.txt` (`000001.jpg 0` a line) or a CSV of two columns, with or without
    a header. The parts are 0, 1, 2 or train, val (valid, validation), test.

    Returns:
        File name -> "train", "val" or "test".

    Raises:
        LabelError: for a file that is missing, empty, damaged, or names another part.
    """
    parts: dict[str, Part] = {}
    for name, part in _read_pairs(path, "its part", "0 (train), 1 (validation) or 2 (test)").items():
        if part.lower() not in _PARTS:
            raise LabelError(
                f"{path}: {name!r} belongs to part {part!r}.",
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


def _read_pairs(path: Path, second: str, meaning: str) -> dict[str, str]:
    """File name -> second column, of CelebA's lists and of CSVs."""
    text = read_text(path)
    rows = list(csv_rows(path, text)) if any(c in text.split("\n", 1)[0] for c in ",\t;") else _pairs(text)
    if rows and _is_header(rows):
        rows = rows[1:]
    pairs: dict[str, str] = {}
    seen: set[str] = set()
    for line, cells in rows:
        if len(cells) != 2 or not cells[1]:
            raise LabelError(
                f"{path}, line {line}: expected a file name and {second}, got {len(cells)} values.",
                remedy=f"Write two columns: the file name, and {meaning}.",
            )
        pairs[unique_file(path, line, cells[0], seen)] = cells[1]
    if not pairs:
        raise LabelError(f"{path} holds a header but no rows.", remedy="Add one row for each image.")
    return pairs


def _pairs(text: str) -> list[tuple[int, list[str]]]:
    """File names may hold blanks, groups may not."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip().rsplit(maxsplit=1)) for number, line in lines if line.strip()]


def _is_header(rows: Sequence[tuple[int, list[str]]]) -> bool:
    first = rows[0][1][0]
    if first.lower() in FILE_HEADERS:
        return True
    return not has_image_suffix(first) and len(rows) > 1 and has_image_suffix(rows[1][1][0])


def _column(cells: list[str]) -> LabelColumn:
    numbers = _numbers(cells)
    if numbers is None:
        return LabelColumn("category", np.array(cells, dtype=np.str_))
    with np.errstate(over="ignore"):
        numbers = numbers.astype(np.float32)
    numbers[~np.isfinite(numbers)] = np.nan
    present = set(np.unique(numbers[~np.isnan(numbers)]).tolist())
    if present and (present <= {0.0, 1.0} or present <= {-1.0, 1.0}):
        return LabelColumn("binary", np.where(np.isnan(numbers), np.nan, numbers > 0).astype(np.float32))
    return LabelColumn("number", numbers)


def _numbers(cells: list[str]) -> npt.NDArray[np.floating] | None:
    """The cells as numbers, unknown ones NaN; None when one is something else."""
    try:
        return np.array([_number(cell) for cell in cells], dtype=np.float64)
    except ValueError:
        return None


def _number(cell: str) -> float:
    text = cell.lower()
    if text in _MISSING:
        return float("nan")
    if "_" in text:  # Python reads 1_000 as a number; here it is somebody's identifier
        raise ValueError(cell)
    truth = _BOOLEANS.get(text)
    return float(text) if truth is None else truth


def _index(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int] | None:
    """Key -> row; None when two rows share a key."""
    rows = {key(name): row for row, name in enumerate(names)}
    return rows if len(rows) == len(names) else None


def _normal(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/"))


def _base(name: str) -> str:
    return _normal(name).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    base = _base(name)
    return os.path.splitext(base)[0] if has_image_suffix(base) else base


def _unpadded(key: Callable[[str], str]) -> Callable[[str], str]:
    """The key without the zeros that pad a base name which is a number."""
    return lambda name: _PADDED_NUMBER.sub("", key(name))
