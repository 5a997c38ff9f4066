"""Captioned strips: rows of images with text around them.

Types of images and their magnification are those of `diticli.pictures.tiles`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image, ImageDraw

from diticli.pictures.captions import Caption
from diticli.pictures.tiles import PAPER, Pixels, Tile, factor_of, magnified, pixels_of, size_of

GUTTER = 168  # widest column of row captions
GAP, GROUP_GAP, PAD = 6, 12, 12
ACCENT = "#2463b4"
ALERT = "#a8231c"


@dataclass(frozen=True, kw_only=True)
class _Texts:
    """All captions, laid out."""

    head: Caption
    warnings: list[Caption]
    left: list[Caption]
    above: list[Caption]
    below: list[list[Caption]]

    @property
    def head_height(self) -> int:
        heights = [text.height for text in (self.head, *self.warnings) if text.height]
        return sum(heights) + GAP * len(heights)

    @property
    def gutter(self) -> int:
        return max(text.width for text in self.left)

    @property
    def column_height(self) -> int:
        return max(text.height for text in self.above)

    def below_height(self, row: int) -> int:
        return max((text.height for text in self.below[row]), default=0) if self.below else 0


def captioned_strip(
    rows: Sequence[Sequence[Tile | None]],
    *,
    row_captions: Sequence[str],
    column_captions: Sequence[str],
    cell_captions: Sequence[Sequence[str]] | None = None,
    title: str | None = None,
    warnings: Sequence[str] = (),
    scale: int | None = None,
    mark: Collection[tuple[int, int]] = (),
    groups: Collection[int] = (),
    parts: Collection[int] = (),
) -> Image.Image:
    """Rows of images with a caption before each row and above each column. Captions wrap, and are never cut.

    Args:
        rows: images of one size; None leaves a cell empty.
        row_captions: one a row; "" for none.
        column_captions: one a column; "" for none.
        cell_captions: one a cell, below its image; "" for none.
        title: text above everything.
        warnings: texts below the title, in red.
        scale: integer magnification (default: the smallest that makes tiles 96 px high and wide).
        mark: (row, column) of cells to frame.
        groups: rows that stand further from the one before.
        parts: columns that stand further from the one before.

    Raises:
        ValueError: when the captions do not fit the rows, or the images differ in size.
    """
    if len(row_captions) != len(rows) or any(len(row) != len(column_captions) for row in rows) or not rows:
        raise ValueError("Every row needs a caption, and every column of every row needs one.")
    if cell_captions is not None and [len(row) for row in cell_captions] != [len(row) for row in rows]:
        raise ValueError("Every cell needs a caption, or none does.")
    cells = [[None if tile is None else pixels_of(tile) for tile in row] for row in rows]
    height, width = size_of([tile for row in cells for tile in row if tile is not None])
    factor = factor_of(scale, height, width)
    tile_w, tile_h = width * factor, height * factor
    left = [Caption(caption, GUTTER) for caption in row_captions]
    gutter = max(text.width for text in left)
    x0 = PAD + (gutter + 2 * GAP if gutter else 0)
    steps = (tile_w + GAP + 2 * GROUP_GAP * (c + 1 in parts) for c in range(len(column_captions) - 1))
    lefts = list(accumulate(steps, initial=x0))
    total_w = lefts[-1] + tile_w + PAD
    texts = _Texts(
        head=Caption(title or "", total_w - 2 * PAD, sizes=(14,)),
        warnings=[Caption(text, total_w - 2 * PAD) for text in warnings],
        left=left,
        above=[Caption(caption, tile_w) for caption in column_captions],
        below=[[Caption(text, tile_w) for text in row] for row in cell_captions or ()],
    )
    return _draw(cells, texts, (lefts, total_w), (tile_w, tile_h), factor, set(mark), set(groups))


def _draw(
    cells: Sequence[Sequence[Pixels | None]],
    texts: _Texts,
    across: tuple[Sequence[int], int],
    tile: tuple[int, int],
    factor: int,
    mark: Collection[tuple[int, int]],
    groups: Collection[int],
) -> Image.Image:
    (lefts, total_w), (tile_w, tile_h) = across, tile
    y_columns = PAD + texts.head_height
    top = y_columns + (texts.column_height + GAP // 2 if texts.column_height else 0)
    tops, y = [], top
    for r, text in enumerate(texts.left):
        y += GROUP_GAP if r and r in groups else 0
        tops.append(y)
        y += max(tile_h + texts.below_height(r), text.height) + GAP
    canvas = Image.new("RGB", (total_w, y - GAP + PAD), PAPER)
    draw = ImageDraw.Draw(canvas)
    texts.head.draw(draw, PAD, PAD)
    y_warning = y_columns
    for text in reversed(texts.warnings):
        y_warning -= text.height + GAP
        text.draw(draw, PAD, y_warning, ink=ALERT)
    for c, text in enumerate(texts.above):
        at = lefts[c] + (tile_w - text.width) // 2
        text.draw(draw, at, y_columns + texts.column_height - text.height, centred=True)
    for r, row in enumerate(cells):
        y = tops[r]
        texts.left[r].draw(draw, PAD, y + max(0, (tile_h - texts.left[r].height) // 2))
        for c, pixels in enumerate(row):
            x = lefts[c]
            if pixels is not None:
                canvas.paste(magnified(pixels, factor), (x, y))
            if (r, c) in mark:
                draw.rectangle((x - 2, y - 2, x + tile_w + 1, y + tile_h + 1), outline=ACCENT, width=2)
            if texts.below:
                text = texts.below[r][c]
                text.draw(draw, x + (tile_w - text.width) // 2, y + tile_h + 2, centred=True)
    return canvas
