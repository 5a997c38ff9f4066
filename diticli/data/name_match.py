"""Pairs of names that mean the same image: the images that were read, and the files that a table names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.data.listing import has_image_suffix

_PADDED_NUMBER = re.compile(r"(?<![^/])0+(?=[0-9]+(\.[A-Za-z]+)?\Z)")
_BARE_NUMBER = re.compile(r"[0-9]{1,18}")

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class NameMatch:
    """Pairs of rows.

    Attributes:
        rows: [M] int64 rows of the images, increasing.
        table_rows: [M] int64 rows of the table.
        by_number: [M] whether a pair has nothing in common but a number, such as `000001.png` and `1.jpg` or `1`.
    """

    rows: Index
    table_rows: Index
    by_number: npt.NDArray[np.bool_]

    @property
    def by_name(self) -> int:
        """Pairs that share more than a number."""
        return int((~self.by_number).sum())


def match_names(names: Sequence[str], files: Sequence[str]) -> NameMatch:
    """Pair image names with the files of a table.

    Equal relative names are paired first, then those that differ in the image suffix only (labels made for `.jpg`,
    images saved as `.png`), then those whose base name is nothing but a number, whatever zeros pad it (`0.jpg` of
    CelebAMask-HQ is `00000.png` of an LMDB). Only where none of this pairs anything do folders no longer count. A
    name that several rows share is never paired.
    """
    found: dict[int, int] = {}
    for place in (_normal, _base):
        for key in (place, _without_suffix(place), _unpadded(place), _unpadded(_without_suffix(place))):
            wanted, known = _unique(names, key), _unique(files, key)
            taken = set(found.values())
            fresh = {row: known[text] for text, row in wanted.items() if text in known}
            found |= {row: at for row, at in fresh.items() if row not in found and at not in taken}
        if found:
            break
    pairs = sorted(found.items())
    rows, table_rows = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    padded = any(len(file) > 1 and file.startswith("0") and _BARE_NUMBER.fullmatch(file) for file in files)
    by_number = [_by_number(names[row], files[at], padded) for row, at in pairs]
    return NameMatch(rows=rows, table_rows=table_rows, by_number=np.array(by_number, dtype=np.bool_))


def is_count(cells: Sequence[str]) -> bool:
    """Whether the cells are 0, 1, 2, ... or 1, 2, 3, ..., as a spreadsheet numbers its rows."""
    if len(cells) < 2 or cells[0] not in ("0", "1"):
        return False
    start = int(cells[0])
    return all(cell == str(number) for number, cell in enumerate(cells, start=start))


def number_of(name: str) -> int | None:
    """The number that a file name consists of, such as 7 of `x/0007.png`; None for other names."""
    stem = _without_suffix(_base)(name)
    return int(stem) if _BARE_NUMBER.fullmatch(stem) else None


def _by_number(name: str, file: str, padded: bool) -> bool:
    """Whether a pair shares only its number: zeros differ, or the table has bare numbers that nothing pads."""
    if number_of(name) is None:
        return False
    stem = _without_suffix(_base)
    return stem(name) != stem(file) or (not padded and _base(file) == stem(file) != _base(name))


def _unique(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    """Key -> row, of the keys that one row has alone."""
    rows: dict[str, int] = {}
    repeated: set[str] = set()
    for row, text in enumerate(map(key, names)):
        if rows.setdefault(text, row) != row:
            repeated.add(text)
    return {text: row for text, row in rows.items() if text not in repeated} if repeated else rows


def _normal(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/"))


def _base(name: str) -> str:
    return _normal(name).rsplit("/", 1)[-1]


def _without_suffix(place: Callable[[str], str]) -> Callable[[str], str]:
    def key(name: str) -> str:
        text = place(name)
        return os.path.splitext(text)[0] if has_image_suffix(text) else text

    return key


def _unpadded(place: Callable[[str], str]) -> Callable[[str], str]:
    """The key without the zeros that pad a base name which is a number."""
    return lambda name: _PADDED_NUMBER.sub("", place(name))
