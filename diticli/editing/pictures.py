"""A sheet of edits as one captioned strip, as single files, and as an animation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from diticli.editing.sheet import Cell, Sheet, SheetRow, Shown
from diticli.pictures.animation import save_animation, with_slider
from diticli.pictures.differences import difference_gain, difference_map, scale_text
from diticli.pictures.grids import save_png
from diticli.pictures.strips import captioned_strip
from diticli.pictures.tiles import Pixels

MOVING, FEW = 192, 4
"""Animated pictures are so many pixels wide where there are so few of them."""


def edit_strip(result: Shown, *, scale: int | None = None, difference: bool = False) -> Image.Image:
    """All rows of a result as one picture; the inputs are framed.

    Args:
        result: of `edit_pair`, `edit_attribute` or `reconstruct`.
        scale: integer magnification (default: the smallest that makes images 96 px high and wide).
        difference: below each row, how far every edit is from the reconstruction, and that from the original.
    """
    sheet = result.sheet()
    rows = _with_differences(sheet) if difference else list(sheet.rows)
    cells = [row.cells for row in rows]
    captions = [[cell.caption for cell in row] for row in cells]
    return captioned_strip(
        [[cell.picture if cell.picture.size else None for cell in row] for row in cells],
        row_captions=[row.caption for row in rows],
        column_captions=sheet.columns,
        cell_captions=captions if any(map(any, captions)) else None,
        title=sheet.title,
        scale=scale,
        mark={(r, c) for r, row in enumerate(cells) for c, cell in enumerate(row) if cell.framed},
        groups={r for r, row in enumerate(rows) if row.begins},
    )


def write_separate(result: Shown, folder: Path | str, metadata: Mapping[str, str] | None = None) -> list[Path]:
    """Write single PNGs such as `a_original.png`, `a_reconstruction.png`, `b_chunks10-20_alpha0.50.png`.

    Raises:
        DataError: when the folder cannot be written.
    """
    sheet = result.sheet()
    pictures = {cell.stem: cell.picture for row in sheet.rows for cell in row.cells}
    text = {**sheet.metadata, **(metadata or {})}
    return [save_png(picture, Path(folder) / f"{stem}.png", text) for stem, picture in sorted(pictures.items())]


def write_animation(result: Shown, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a .webp or .gif that runs through the strengths forth and back, both directions side by side.

    Raises:
        ConfigError: for another suffix.
        DataError: when the file cannot be written.
    """
    sheet = result.sheet()
    last = max(1, len(sheet.moving) - 1)
    frames = [
        with_slider(_frame(sheet, column), sheet.columns[column], i / last) for i, column in enumerate(sheet.moving)
    ]
    return save_animation(frames, path, {**sheet.metadata, **(metadata or {})})


def _frame(sheet: Sheet, column: int) -> Image.Image:
    across = list(dict.fromkeys(row.across for row in sheet.rows))
    down = list(dict.fromkeys(row.down for row in sheet.rows))
    pictures: list[list[Pixels | None]] = [[None] * len(across) for _ in down]
    for row in sheet.rows:
        pictures[down.index(row.down)][across.index(row.across)] = row.cells[column].picture
    side = sheet.rows[0].cells[column].picture.shape[0]
    scale = max(1, round(MOVING / side)) if len(down) * len(across) <= FEW else None
    return captioned_strip(pictures, row_captions=down, column_captions=across, scale=scale)


def _with_differences(sheet: Sheet) -> list[SheetRow]:
    """Each row, and below it the maps of its cells, all at one magnification."""
    compared = [cell for row in sheet.rows for cell in row.cells if cell.against is not None]
    gain = difference_gain((cell.picture, cell.against) for cell in compared if cell.against is not None)
    caption = f"difference {scale_text(gain)}"
    rows = []
    for row in sheet.rows:
        maps = tuple(_difference(cell, gain) for cell in row.cells)
        rows += [replace(row, begins=True), SheetRow(caption=caption, cells=maps)]
    return rows


def _difference(cell: Cell, gain: int) -> Cell:
    if cell.against is None:
        return Cell(picture=cell.picture[:0], stem="")
    return Cell(picture=difference_map(cell.picture, cell.against, gain), stem="")
