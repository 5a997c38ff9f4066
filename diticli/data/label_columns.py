"""The kind of a label column: a binary attribute, numbers, or categories; and why cells are not numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from diticli.data.label_formats import plain_header
from diticli.reading import quoted

Kind = Literal["binary", "number", "category"]

UNKNOWN = frozenset({"", "?", "-", "--", "–", "nan", "n/a", "n.a.", "<na>", "#n/a", "null", "unknown", "missing"})
"""Cells, in small letters, that say that a value is not known."""
UNKNOWN_NUMBER = UNKNOWN | {"na", "none", "."}
"""The same among numbers; categories may be called so."""
IDENTITY_HEADERS = frozenset(
    {"identity", "identity_id", "person", "person_id", "subject", "subject_id", "celebrity", "celeb_id", "individual"}
)
"""Columns that say who is shown, whose numbers are names."""

_BOOLEANS = {"true": 1.0, "false": 0.0}
_PERCENT = re.compile(r"([-+]?[0-9]+(?:[.,][0-9]+)?)\s?%")
_COMMA = re.compile(r"[-+]?[0-9]+(,[0-9]+)?(e[-+]?[0-9]+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?(0,[0-9]+|[0-9]+,([0-9]{1,2}|[0-9]{4,}))(e.*)?", re.IGNORECASE)
_MOSTLY = 0.5


@dataclass(frozen=True)
class LabelColumn:
    """One attribute of all files of a table.

    Attributes:
        kind: what the values are.
        values: [N] "binary" float32 0 or 1, "number" float32, both NaN where unknown; "category" str, empty
            where unknown.
        note: how the cells were understood, where that is not plain: a decimal comma, or what keeps the column from
            being numbers.
    """

    kind: Kind
    values: npt.NDArray[Any]
    note: str = ""


def make_column(name: str, cells: Sequence[str], numbers: Sequence[int], unit: str = "line") -> LabelColumn:
    """The column that these cells are.

    Values within {-1, 1}, {0, 1} or {true, false} are binary, other numbers are numbers, the rest are categories.
    Numbers may have a decimal comma or a percent sign where all do.

    Args:
        name: its header.
        cells: [N] text.
        numbers: [N] of the rows, for the note.
        unit: what they count.
    """
    if plain_header(name) in IDENTITY_HEADERS:
        column = _categories(cells)
        whole = all(cell.isdigit() for cell in column.values.tolist() if cell)
        return LabelColumn("category", column.values, f"{name}: the numbers are persons, not amounts." if whole else "")
    try:
        return _numbers([_number(cell) for cell in cells])
    except ValueError:
        pass
    known = [cell for cell in cells if cell.lower() not in UNKNOWN_NUMBER]
    if all(map(_PERCENT.fullmatch, known)):
        fractions = [_fraction(cell) for cell in cells]
        return _numbers(
            fractions, f"{name}: percentages are read as fractions, {quoted(known[0])} as {_fraction(known[0])}."
        )
    if all(map(_COMMA.fullmatch, known)) and any(map(_DECIMAL_COMMA.fullmatch, known)):
        return _numbers([_number(cell.replace(",", ".")) for cell in cells], f"{name}: the comma is the decimal point.")
    column = _categories(cells)
    return LabelColumn("category", column.values, _why_no_numbers(name, cells, numbers, unit) or column.note)


def _categories(cells: Sequence[str]) -> LabelColumn:
    return LabelColumn("category", np.array(["" if cell.lower() in UNKNOWN else cell for cell in cells], dtype=np.str_))


def _why_no_numbers(name: str, cells: Sequence[str], numbers: Sequence[int], unit: str) -> str:
    """In words, of a column that is mostly numbers; "" for others."""
    others = [
        (number, cell)
        for number, cell in zip(numbers, cells, strict=True)
        if cell.lower() not in UNKNOWN_NUMBER and not _is_number(cell)
    ]
    known = sum(cell.lower() not in UNKNOWN_NUMBER for cell in cells)
    comma = all(_COMMA.fullmatch(cell) for _, cell in others)
    if not comma and known - len(others) < _MOSTLY * known:
        return ""
    number, cell = others[0]
    count = f"{known - len(others):,} numbers and {len(others):,} cells like {quoted(cell)} ({unit} {number})"
    doubt = ", which may be a decimal comma or thousands" if comma else ""
    return f"{name}: {count}{doubt}, so its values are categories."


def _numbers(values: Sequence[float], note: str = "") -> LabelColumn:
    with np.errstate(over="ignore"):
        numbers = np.array(values, dtype=np.float64).astype(np.float32)
    numbers[~np.isfinite(numbers)] = np.nan
    present = set(np.unique(numbers[~np.isnan(numbers)]).tolist())
    if present and (present <= {0.0, 1.0} or present <= {-1.0, 1.0}):
        return LabelColumn("binary", np.where(np.isnan(numbers), np.nan, numbers > 0).astype(np.float32), note)
    return LabelColumn("number", numbers, note)


def _number(cell: str) -> float:
    """The cell's value, NaN when unknown.

    Raises:
        ValueError: when it is something else.
    """
    text = cell.lower()
    if text in UNKNOWN_NUMBER:
        return float("nan")
    if "_" in text:  # Python reads 1_000 as a number; here it is somebody's identifier
        raise ValueError(cell)
    truth = _BOOLEANS.get(text)
    return float(text) if truth is None else truth


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _fraction(cell: str) -> float:
    match = _PERCENT.fullmatch(cell)
    return float(match[1].replace(",", ".")) / 100 if match else float("nan")
