"""Pictures made of images: grids, captioned strips, and PNG files that carry their provenance.

Legend of shape suffixes: N batch, H height, W width. An image is a uint8 array [H, W, 3] (or [H, W]), or a
float tensor [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, PngImagePlugin

from diticli.pictures.captions import Caption, clean
from diticli.pictures.files import write_atomically

Pixels = npt.NDArray[np.uint8]
Tile = Pixels | torch.Tensor

LEGIBLE = 96  # pixels: a smaller tile cannot carry a caption, nor show a 32-px face
GUTTER = 168  # widest column of row captions
GAP, PAD = 6, 12
PAPER, ACCENT = "#ffffff", "#2463b4"


def to_uint8(images: torch.Tensor) -> Pixels:
    """Float images [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded as the official code does.

    Values outside the range are clamped; NaN becomes 0.
    """
    scaled = images.detach().float().mul(0.5).add(0.5).mul(255).add(0.5).nan_to_num(nan=0.0).clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()


def image_grid(
    images: Sequence[Tile] | Tile, *, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Image.Image:
    """A plain grid of images of one size, row by row on white.

    Args:
        images: a batch ([N, H, W, 3] uint8 or [N, 3, H, W] float), or a sequence of images.
        columns: images a row (default: nearly square).
        scale: integer magnification (default: the smallest that makes tiles 96 px high and wide).
        gap: white pixels between tiles.

    Raises:
        ValueError: without images, or when their sizes differ.
    """
    tiles = [_pixels(image) for image in images]
    if not tiles:
        raise ValueError("A grid needs at least one image.")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    height, width = _tile_size(tiles)
    factor = _factor(scale, height, width)
    step_x, step_y = width * factor + gap, height * factor + gap
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * step_x - gap, rows * step_y - gap), PAPER)
    for i, tile in enumerate(tiles):
        canvas.paste(_magnified(tile, factor), (i % columns * step_x, i // columns * step_y))
    return canvas


def captioned_strip(
    rows: Sequence[Sequence[Tile | None]],
    *,
    row_captions: Sequence[str],
    column_captions: Sequence[str],
    title: str | None = None,
    scale: int | None = None,
    mark: Collection[tuple[int, int]] = (),
) -> Image.Image:
    """Rows of images with a caption before each row and above each column. Captions wrap, and are never cut.

    Args:
        rows: images of one size; None leaves a cell empty.
        row_captions: one a row; "" for none.
        column_captions: one a column; "" for none.
        title: text above everything.
        scale: integer magnification (default: the smallest that makes tiles 96 px high and wide).
        mark: (row, column) of cells to frame.

    Raises:
        ValueError: when the captions do not fit the rows, or the images differ in size.
    """
    if len(row_captions) != len(rows) or any(len(row) != len(column_captions) for row in rows) or not rows:
        raise ValueError("Every row needs a caption, and every column of every row needs one.")
    cells = [[None if tile is None else _pixels(tile) for tile in row] for row in rows]
    height, width = _tile_size([tile for row in cells for tile in row if tile is not None])
    factor = _factor(scale, height, width)
    tile_w, tile_h = width * factor, height * factor
    left = [Caption(caption, GUTTER) for caption in row_captions]
    above = [Caption(caption, tile_w) for caption in column_captions]
    gutter = max(text.width for text in left)
    x0 = PAD + (gutter + GAP if gutter else 0)
    total_w = x0 + len(above) * (tile_w + GAP) - GAP + PAD
    head = Caption(title or "", total_w - 2 * PAD, sizes=(14,))
    y_columns = PAD + (head.height + GAP if head.height else 0)
    column_h = max(text.height for text in above)
    y = y_columns + (column_h + GAP // 2 if column_h else 0)
    row_h = [max(tile_h, text.height) + GAP for text in left]

    canvas = Image.new("RGB", (total_w, y + sum(row_h) - GAP + PAD), PAPER)
    draw = ImageDraw.Draw(canvas)
    head.draw(draw, PAD, PAD)
    for c, text in enumerate(above):
        x = x0 + c * (tile_w + GAP) + (tile_w - text.width) // 2
        text.draw(draw, x, y_columns + column_h - text.height, centred=True)
    for r, row in enumerate(cells):
        left[r].draw(draw, PAD, y + max(0, (tile_h - left[r].height) // 2))
        for c, tile in enumerate(row):
            x = x0 + c * (tile_w + GAP)
            if tile is not None:
                canvas.paste(_magnified(tile, factor), (x, y))
            if (r, c) in mark:
                draw.rectangle((x - 2, y - 2, x + tile_w + 1, y + tile_h + 1), outline=ACCENT, width=2)
        y += row_h[r]
    return canvas


def save_png(image: Image.Image | Pixels, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a PNG with text chunks, beside its place and then renamed into it. Missing folders are made.

    Raises:
        DataError: when the file cannot be written.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, clean(value))
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return write_atomically(path, "picture", lambda beside: picture.save(beside, format="PNG", pnginfo=info))


def _pixels(image: Tile) -> Pixels:
    """Any image as uint8 [H, W, 3]."""
    if isinstance(image, torch.Tensor):
        if not image.is_floating_point():
            raise ValueError(f"A tensor image is a float tensor [3, H, W] in [-1, 1], got {image.dtype}.")
        image = to_uint8(image[None])[0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"An image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}.")
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image


def _tile_size(tiles: Sequence[Pixels]) -> tuple[int, int]:
    sizes = {tile.shape[:2] for tile in tiles}
    if len(sizes) != 1:
        raise ValueError(f"Images of one size are needed, got {sorted(sizes) or 'none'}.")
    return sizes.pop()


def _factor(scale: int | None, height: int, width: int) -> int:
    return scale or max(1, math.ceil(LEGIBLE / min(height, width)))


def _magnified(tile: Pixels, factor: int) -> Image.Image:
    """Nearest-neighbour: the picture shows the model's own pixels and invents none."""
    image = Image.fromarray(tile)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
