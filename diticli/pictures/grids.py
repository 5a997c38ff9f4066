"""Pictures made of images: plain grids, captioned strips, and PNG files that carry their provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from diticli.data.own_files import SOFTWARE
from diticli.errors import DataError
from diticli.files import write_atomically
from diticli.pictures.captions import clean
from diticli.pictures.metadata import check_picture, exif, written
from diticli.pictures.strips import captioned_strip
from diticli.pictures.tiles import PAPER, Pixels, Tile, factor_of, magnified, pixels_of, psnr, size_of, to_uint8

__all__ = [
    "PAPER",
    "Pixels",
    "Tile",
    "captioned_strip",
    "image_grid",
    "psnr",
    "save_picture",
    "save_png",
    "to_uint8",
]

_OPTIONS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "quality": 70, "method": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
}
_LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}
_LARGEST_EXIF = 65_000  # bytes; a JPEG holds 65,533


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
    tiles = [pixels_of(image) for image in images]
    if not tiles:
        raise ValueError("A grid needs at least one image.")
    columns = min(columns or math.ceil(math.sqrt(len(tiles))), len(tiles))
    height, width = size_of(tiles)
    factor = factor_of(scale, height, width)
    step_x, step_y = width * factor + gap, height * factor + gap
    rows = math.ceil(len(tiles) / columns)
    canvas = Image.new("RGB", (columns * step_x - gap, rows * step_y - gap), PAPER)
    for i, tile in enumerate(tiles):
        canvas.paste(magnified(tile, factor), (i % columns * step_x, i // columns * step_y))
    return canvas


def save_png(image: Image.Image | Pixels, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a PNG with text chunks, beside its place and then renamed into it. Missing folders are made.

    Raises:
        DataError: when the file cannot be written.
    """
    path = Path(path)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", SOFTWARE)  # first: by this mark the picture is never taken for data
    for key, value in written(metadata).items():
        info.add_text(key, clean(value))
    picture = (
        image if isinstance(image, Image.Image) else Image.fromarray(image if image.ndim == 2 else pixels_of(image))
    )
    return write_atomically(path, "picture", lambda file: picture.save(file, format="PNG", pnginfo=info))


def save_picture(image: Image.Image, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a .png as `save_png` does, a lossless .webp or a .jpg, whose metadata is JSON in EXIF's image description.

    Raises:
        ConfigError: for another suffix.
        DataError: for a picture or metadata that the format cannot hold, and when the file cannot be written.
    """
    path = Path(path)
    kind = check_picture(path)
    if kind == "PNG":
        return save_png(image, path, metadata)
    data = exif(metadata)
    if max(image.size) > _LONGEST_SIDE[kind] or (kind == "JPEG" and len(data) > _LARGEST_EXIF):
        what = f"picture of {image.width}x{image.height} pixels" if len(data) <= _LARGEST_EXIF else "command so long"
        raise DataError(f"A {kind} file holds no {what}.", remedy=f"Write {path.with_suffix('.png').name}.")
    return write_atomically(path, "picture", lambda file: image.save(file, format=kind, exif=data, **_OPTIONS[kind]))
