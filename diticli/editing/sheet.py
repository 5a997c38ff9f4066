"""What an edit shows, whatever its kind: rows of pictures with captions, ready to be drawn, stored or animated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

from diticli.pictures.tiles import Pixels


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a sheet.

    Attributes:
        picture: uint8 [R, R, 3].
        stem: file name without suffix, under which `write_separate` stores it; cells may share one.
        against: what a difference map compares it to; None leaves it out.
        framed: whether it is an input.
        caption: text below it.
    """

    picture: Pixels
    stem: str
    against: Pixels | None = None
    framed: bool = False
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        caption: stands before it.
        cells: one a column.
        across: where an animation puts it: the caption of its column of moving pictures.
        down: likewise, of its row.
        begins: whether a new group of rows begins here.
    """

    caption: str
    cells: tuple[Cell, ...]
    across: str = ""
    down: str = ""
    begins: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Everything that a strip, single files and an animation need.

    Attributes:
        title: stands above everything.
        columns: a caption for each column.
        rows: at least one.
        moving: the columns that an animation runs through.
        metadata: text that lets the pictures be made again.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    moving: range
    metadata: Mapping[str, str]

    def sheet(self) -> Sheet:
        """Itself, so that a sheet can be shown like a result."""
        return self


class Shown(Protocol):
    """The result of an edit, or a sheet of its own."""

    def sheet(self) -> Sheet:
        """What it shows."""


def decibels(value: float) -> str:
    """A PSNR with one decimal; "exact" when it is infinite."""
    return f"{value:.1f} dB" if value < 1000 else "exact"


def slug(text: str) -> str:
    """A text as a part of a file name: letters, digits, dots, dashes and underscores, at most 60 of them."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[:60] or "x"


def image_stems(names: Sequence[str]) -> list[str]:
    """A distinct part of a file name for each image: a slug of its name, numbered where that repeats."""
    slugs = [slug(PurePath(name).stem if "." in name else name) for name in names]
    return [stem if slugs.count(stem) == 1 else f"{stem}-{i}" for i, stem in enumerate(slugs)]
