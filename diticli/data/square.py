"""Turn an opened picture, or its levels, into the square of 8 bits that networks get: upright, cut, resized."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.config_groups import Crop, ValueRange
from diticli.data.depth import SIXTEEN_BITS, levels, rounded
from diticli.data.machine import is_of_machine
from diticli.errors import UnreadableImageError

# The "d2c crop" (D2C, Sinha et al. 2021) of CelebA's aligned images, in pixels.
_CELEBA_WIDTH, _CELEBA_HEIGHT = 178, 218
_CELEBA_TOP, _CELEBA_LEFT, _CELEBA_SIDE = 57, 25, 128
_LUMA = (0.299, 0.587, 0.114)  # as Pillow makes grey of colours
_ORIENTATION_TAG = 0x0112
NO_RANGE = "floating-point pixels have no defined range; name one: --value-range LOW,HIGH"
NOT_FINITE = "it has values that are not finite"

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is grey with more than 8 bits, by its head."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_square(
    image: Image.Image,
    resolution: int,
    crop: Crop = "center",
    *,
    value_range: ValueRange | None = None,
    channels: int = 3,
) -> npt.NDArray[np.uint8]:
    """Turn an opened image upright, crop a square of it and resize that, as `decode_image` does.

    Args:
        image: any mode; left as it is.
        resolution: R, side of the result in pixels.
        crop: which square.
        value_range: black and white of a picture of more than 8 bits; None: 16 bits, floats are refused.
        channels: 3 for RGB, 1 for grey.

    Returns:
        [R, R, channels] uint8.

    Raises:
        UnreadableImageError: for floats without a range, or values that are not finite.
        OSError: when the image was opened but not loaded, and its file is damaged.
    """
    image.load()  # before the orientation is asked for: some formats turn themselves upright here
    transpose = _UPRIGHT.get(orientation(image))
    plain = _deep_levels(image, value_range) if is_deep(image) else _to_bytes(image, "RGB" if channels == 3 else "L")
    return _with_channels(_square(plain, resolution, crop, transpose), channels)


def levels_to_square(
    found: npt.NDArray[np.float32], resolution: int, crop: Crop = "center", *, channels: int = 3
) -> npt.NDArray[np.uint8]:
    """Cut and resize grey levels as `to_square` does, and round them to 8 bits at the end.

    Args:
        found: [H, W] or [H, W, 3] levels from 0 to 255.
        resolution: R, side of the result in pixels.
        crop: which square.
        channels: 3 for RGB, 1 for grey.

    Returns:
        [R, R, channels] uint8.
    """
    if found.ndim == 3 and channels == 1:
        found = found @ np.array(_LUMA, dtype=np.float32)
    planes = [found] if found.ndim == 2 else list(np.moveaxis(found, -1, 0))
    squares = [_square(Image.fromarray(np.ascontiguousarray(plane)), resolution, crop) for plane in planes]
    return _with_channels(squares[0] if found.ndim == 2 else np.stack(squares, axis=2), channels)


def _with_channels(square: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    return square if square.ndim == 3 else np.repeat(square[:, :, None], channels, axis=2)


def _square(
    plain: Image.Image, resolution: int, crop: Crop, transpose: Image.Transpose | None = None
) -> npt.NDArray[np.uint8]:
    """The square of a picture of mode RGB, L or F, [R, R, 3] or [R, R]."""
    if crop == "celeba":
        upright = plain if transpose is None else plain.transpose(transpose)
        if square := celeba_box(*upright.size):
            # Cut first: `resize` lets pixels beside its box bleed in, the official code does not.
            upright = upright.crop(square)
            return _values(upright.resize((resolution, resolution), Image.Resampling.BILINEAR))
    side = min(plain.size)
    # A box centred to half a pixel commutes with the rotations, which are then cheap on the small picture.
    left, top = (plain.width - side) / 2, (plain.height - side) / 2
    box = (left, top, left + side, top + side)
    small = plain.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
    return _values(small if transpose is None else small.transpose(transpose))


def _values(image: Image.Image) -> npt.NDArray[np.uint8]:
    return rounded(np.asarray(image)) if image.mode == "F" else np.array(image)


def celeba_box(width: int, height: int) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) that the literature cuts from CelebA's aligned images, scaled to this size.

    None for a picture of other proportions than their 178x218 (to a pixel of height): it is somebody's photo,
    or was cropped before.
    """
    scale = width / _CELEBA_WIDTH
    if abs(_CELEBA_HEIGHT * scale - height) > 1:
        return None
    left, top, side = int(_CELEBA_LEFT * scale), int(_CELEBA_TOP * scale), max(1, round(_CELEBA_SIDE * scale))
    return left, top, left + side, top + side


def cut_and_resized(width: int, height: int, resolution: int, crop: Crop) -> str:
    """What is done to a picture of this size, e.g. " -> centre square -> 32 px"; "" where nothing is."""
    if width == height == resolution:
        return ""
    if crop == "celeba" and celeba_box(width, height):
        return f" -> CelebA's crop -> {resolution} px"
    return f"{'' if width == height else ' -> centre square'} -> {resolution} px"


def orientation(image: Image.Image) -> int:
    """How a picture is to be turned, 1 to 8, by its EXIF; 1 is upright."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception as error:  # a damaged EXIF block does not spoil the pixels
        if is_of_machine(error):
            raise
        return 1


def _deep_levels(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Grey of more than 8 bits as levels in mode F; Pillow's own conversion would cut at 255."""
    name = str(getattr(image, "filename", "")) or "in memory"
    if image.mode == "F" and value_range is None:
        raise UnreadableImageError(name, NO_RANGE)
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImageError(name, NOT_FINITE)
    return Image.fromarray(levels(values, value_range or SIXTEEN_BITS))


def _to_bytes(image: Image.Image, mode: str) -> Image.Image:
    """A picture of at most 8 bits as RGB or L, transparency over white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert(mode)
    return image.convert(mode) if mode == "RGB" or image.mode == "L" else image.convert("RGB").convert(mode)
