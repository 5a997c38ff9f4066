"""Bring features, labels, groups and given splits together by file name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.data.label_columns import IDENTITY_HEADERS
from diticli.data.label_formats import FILE_HEADERS, plain_header
from diticli.data.labels import LabelColumn, LabelTable
from diticli.data.name_match import NameMatch, is_count, match_names, number_of
from diticli.errors import LabelError
from diticli.reading import quoted

_EXAMPLES = 3
_FEW_PERSONS = 3
_REPEATED = 0.2
"""Share of the images whose person another image shows too."""


@dataclass(frozen=True, kw_only=True)
class JoinedLabels:
    """The M feature rows that have labels (and a group and a part, when those were given), in row order.

    Attributes:
        rows: [M] int64, rows of the features.
        columns: attributes of these rows.
        groups: [M] group of each, or None.
        parts: [M] "train", "val" or "test" of each, or None.
        features: N, rows of the features.
        labels: files in the label table.
        without_group: labelled rows left out because no group is known for them.
        without_part: likewise, because the split does not name them.
        file_column: the column of the label file that names the images; "" where its format fixes it.
        by_number: how many of the matched names share nothing but a number.
        example: an image and a label that do, in words; "" for none.
        notes: how the label file was understood, in words.
    """

    rows: npt.NDArray[np.int64]
    columns: dict[str, LabelColumn]
    groups: tuple[str, ...] | None
    parts: tuple[str, ...] | None
    features: int
    labels: int
    without_group: int
    without_part: int
    file_column: str = ""
    by_number: int = 0
    example: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The counts, and how the labels were read."""
        return {
            "rows": len(self.rows),
            "features": self.features,
            "labels": self.labels,
            "without_group": self.without_group,
            "without_part": self.without_part,
            "file_column": self.file_column,
            "by_number": self.by_number,
            "notes": list(self.notes),
        }

    def describe(self) -> str:
        """One line for the user."""
        text = f"{len(self.rows):,} of {self.features:,} images matched {self.labels:,} labels"
        if self.file_column:
            text += f" by the column {quoted(self.file_column)}"
        if self.by_number:
            text += f", {self.by_number:,} of them by number alone ({self.example})"
        lost = {"group": self.without_group, "part in the split": self.without_part}
        return text + "".join(f"; {count:,} without a {what} left out" for what, count in lost.items() if count) + "."


def join_labels(
    files: Sequence[str],
    table: LabelTable,
    groups: Mapping[str, str] | None = None,
    parts: Mapping[str, str] | None = None,
) -> JoinedLabels:
    """Match feature rows with labels, groups and parts as `LabelTable.match` does.

    Args:
        files: [N] names of the feature rows.
        table: the labels.
        groups: file name -> group.
        parts: file name -> "train", "val" or "test".

    Raises:
        LabelError: when no row has a label, or none of those a group or a part; shows names of both sides.
    """
    match = match_names(files, table.files)
    rows, table_rows = match.rows, match.table_rows
    if not len(rows):
        raise _nothing_matches("labels", files, table.files, table.file_column)
    _check_numbers("labels", files, table, match)
    alike = np.flatnonzero(match.by_number)[:1]
    examples = [f"{quoted(table.files[table_rows[at]])} is {quoted(files[rows[at]])}" for at in alike]
    known: dict[str, npt.NDArray[np.str_]] = {}
    lost = {"groups": 0, "parts of the split": 0}
    for what, mapping in zip(lost, (groups, parts), strict=True):
        if mapping is None:
            continue
        kept, values = _look_up(what, files, rows, mapping)
        lost[what] = len(rows) - len(kept)
        rows, table_rows = rows[kept], table_rows[kept]
        known = {other: found[kept] for other, found in known.items()} | {what: values}
    group_of, part_of = (tuple(known[what].tolist()) if what in known else None for what in lost)
    return JoinedLabels(
        rows=rows,
        columns={name: replace(column, values=column.values[table_rows]) for name, column in table.columns.items()},
        groups=group_of,
        parts=part_of,
        features=len(files),
        labels=len(table.files),
        without_group=lost["groups"],
        without_part=lost["parts of the split"],
        file_column=table.file_column,
        by_number=int(match.by_number.sum()),
        example="".join(examples),
        notes=table.notes,
    )


def identity_hint(files: Sequence[str], columns: Sequence[str]) -> str:
    """What makes it likely that several images show one person, in words; "" when nothing does.

    Args:
        files: names of the images.
        columns: names of the label columns.
    """
    if named := [name for name in columns if plain_header(name) in IDENTITY_HEADERS]:
        return f"The labels have a column {quoted(named[0])}"
    shown = Counter(person for person in map(_person, files) if person)
    several = [person for person, count in shown.items() if count > 1]
    if len(shown) < _FEW_PERSONS or sum(shown[person] for person in several) < _REPEATED * len(files):
        return ""
    return f"The names of the images look like those of {len(shown):,} persons, e.g. {quoted(several[0])}"


def identity_note(files: Sequence[str], columns: Sequence[str], *, apart: str = "train and in test") -> str:
    """The same as a warning of what a random split does then, and how to mend it; "" when nothing is likely."""
    likely = identity_hint(files, columns)
    if not likely:
        return ""
    return (
        f"{likely}, but images of one person may be in {apart}, which makes scores too high. "
        "Give --groups FILE with the person of each image."
    )


def _person(file: str) -> str:
    """`Ann_Lee` of `Ann_Lee_0001.jpg`, `an2i` of `an2i/an2i_left.png`; "" for names that are no such thing."""
    *folders, base = file.replace("\\", "/").split("/")
    if folders and re.match(rf"{re.escape(folders[-1])}[_-]", base):
        return folders[-1]
    match = re.fullmatch(r"([A-Za-z][A-Za-z.'-]*(?:_[A-Za-z.'-]+)*)_[0-9]{4}(\.[A-Za-z]+)?", base)
    return match[1] if match else ""


def _check_numbers(what: str, files: Sequence[str], table: LabelTable, match: NameMatch) -> None:
    """Numbers that count the rows may be an index that has nothing to do with the images.

    Raises:
        LabelError: unless all images are matched and their first and last numbers are those of the table; a column
            called as a file column is believed where one side is matched completely.
    """
    if not match.by_number.any() or not is_count(table.files):
        return
    complete = len(match.rows) == len(files)
    if plain_header(table.file_column) in FILE_HEADERS or not table.file_column:
        clear = complete or len(match.rows) == len(table.files)
    else:
        numbers = [number for number in map(number_of, files) if number is not None]
        clear = complete and (min(numbers), max(numbers)) == (int(table.files[0]), int(table.files[-1]))
    if not clear:
        raise LabelError(
            f"The {what} call their images {table.files[0]} to {table.files[-1]}, and {len(match.rows):,} of "
            f"{len(files):,} images have such a number: it may count the rows and not name the images.",
            remedy=f"Add a column 'file_name' with whole names such as {quoted(files[0])}.",
        )


def _look_up(
    what: str, files: Sequence[str], rows: npt.NDArray[np.int64], mapping: Mapping[str, str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Which of the rows the mapping knows, as positions in `rows`, and its value for each of them."""
    names = tuple(mapping)
    match = match_names(files, names)
    matched, index = match.rows, match.table_rows
    _check_numbers(what, files, LabelTable(names, {}), match)
    _, kept, at = np.intersect1d(rows, matched, assume_unique=True, return_indices=True)
    if not len(kept):
        raise _nothing_matches(what, [files[row] for row in rows[:_EXAMPLES]], names)
    return kept, np.array([mapping[names[i]] for i in index[at]], dtype=np.str_)


def _nothing_matches(what: str, files: Sequence[str], names: Sequence[str], column: str = "") -> LabelError:
    here, there = (", ".join(repr(name) for name in side[:_EXAMPLES]) for side in (files, names))
    return LabelError(
        f"None of the {what} belong to these images: the features have {here}; the {what} have "
        f"{there}{f' in the column {quoted(column)}' if column else ''}.",
        remedy="Use the file names that were encoded; folder and suffix may differ where names stay unique.",
    )
