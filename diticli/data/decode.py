"""Decode an image, a file or its bytes, to a square uint8 array.

Files come from anywhere, so nothing here trusts them: sizes are bounded before a pixel is decoded, only
picture formats are tried, and whatever a decoder throws becomes an `UnreadableImageError` with a reason.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode_budget import DecodeBudget
from diticli.data.listing import IMAGE_SUFFIXES
from diticli.data.machine import patiently
from diticli.data.png_chunks import without_metadata
from diticli.data.square import celeba_box, is_deep, orientation, to_square
from diticli.errors import MachineError, UnreadableImageError

MAX_PIXELS = 178_000_000
"""Largest image decoded, in pixels: where Pillow itself begins to refuse."""

MAX_BYTES = 2**30
"""Largest picture file that is opened: some decoders read all of it before they look at it."""

_DECODE_BUDGET = DecodeBudget(MAX_PIXELS)


# A file may hold another format than its suffix says; formats that run other programs (EPS) are not here.
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "BMP",
    "DIB",
    "TIFF",
    "GIF",
    "PPM",
    "JPEG2000",
    *(["AVIF"] if ".avif" in IMAGE_SUFFIXES else []),
)

T = TypeVar("T")


_BITS_TAG, _SAMPLES_TAG, _PLANAR_TAG = 258, 277, 284


def is_image(path: Path) -> bool:
    """Whether the file's head is that of a picture; decodes no pixels.

    Raises:
        MachineError: when the machine cannot read it now.
    """
    return _peek(lambda: _open_file(path), str(path)) is not None


def picture_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of a picture held upright, by its head; None when it is none.

    Raises:
        MachineError: when the machine cannot read it now.
    """

    def upright(image: Image.Image) -> tuple[int, int]:
        return image.size if orientation(image) <= 4 else (image.height, image.width)

    return _peek(lambda: _open_file(path), str(path), upright)


def decode_image(
    path: Path,
    resolution: int,
    max_pixels: int = MAX_PIXELS,
    *,
    crop: Crop = "center",
    value_range: ValueRange | None = None,
    channels: int = 3,
) -> npt.NDArray[np.uint8]:
    """Read an image upright, crop a square of it and resize that as the official code does (antialiased bilinear).

    Any mode is read: palettes, grey, 16 bits and floats (their levels rounded to 8 bits at the end), CMYK; transparency
    is laid over white, and of an animation the first frame is taken. JPEGs much larger than needed are decoded at a
    fraction of their size (never below twice the resolution).

    Args:
        path: a regular file.
        resolution: R, side of the result in pixels.
        max_pixels: larger images are refused before they are decoded.
        crop: which square.
        value_range: black and white of a grey picture of 16 bits, 32 bits or floats; None: 16 bits, floats are refused.
        channels: 3 for RGB, 1 for grey.

    Returns:
        [R, R, channels] uint8.

    Raises:
        UnreadableImageError: for a file that is missing, empty, truncated, not an image, or too large.
        MachineError: when memory, descriptors or the disk fail, several times in a row.
    """

    reading = _Reading(resolution=resolution, crop=crop, value_range=value_range, channels=channels)
    return _decode(lambda: _open_file(path), str(path), max_pixels, reading)


def decode_bytes(
    data: bytes,
    name: str,
    resolution: int,
    max_pixels: int = MAX_PIXELS,
    *,
    crop: Crop = "center",
    value_range: ValueRange | None = None,
    channels: int = 3,
) -> npt.NDArray[np.uint8]:
    """As `decode_image`, of a picture file's bytes.

    Raises:
        UnreadableImageError: naming it `name`, for bytes that are no whole image.
        MachineError: as `decode_image`.
    """
    if not data:
        raise UnreadableImageError(name, "empty (0 bytes)")
    _check_size(len(data), name)
    reading = _Reading(resolution=resolution, crop=crop, value_range=value_range, channels=channels)
    return _decode(lambda: io.BytesIO(data), name, max_pixels, reading)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How a picture becomes a square."""

    resolution: int
    crop: Crop
    value_range: ValueRange | None
    channels: int


def _decode(open_file: Callable[[], IO[bytes]], name: str, max_pixels: int, reading: _Reading) -> npt.NDArray[np.uint8]:
    def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImageError(name, f"{width}x{height} pixels are more than {max_pixels:,}")
        _refuse_tiff(image, name)
        if reading.value_range is not None:
            _refuse_deep_colour(image, name)
        if reading.crop == "center" or celeba_box(width, height) is None:
            _draft(image, reading.resolution)
        with _DECODE_BUDGET.reserve(image.width * image.height):
            return to_square(
                image,
                reading.resolution,
                reading.crop,
                value_range=reading.value_range,
                channels=reading.channels,
            )

    try:
        return patiently(lambda: _with_picture(open_file, pixels), name)
    except MachineError:
        raise
    except UnreadableImageError as error:
        raise UnreadableImageError(name, error.reason) from error
    except UnidentifiedImageError:
        reason = _unidentified(open_file)
    except Image.DecompressionBombError:
        reason = "far too many pixels"
    except Exception as error:  # damaged bytes lead decoders to struct.error, EOFError, ValueError, ...
        reason = _reason(error)
    raise UnreadableImageError(name, reason)


def _with_picture(open_file: Callable[[], IO[bytes]], use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the opened picture; a PNG whose metadata Pillow refuses is read without it."""
    with open_file() as file:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                return use(image)
        except ValueError:  # more than 1 MiB of compressed text or profile, before or behind the pixels
            pixels = without_metadata(file)
            if pixels is None:
                raise
        with Image.open(pixels, formats=("PNG",)) as image:
            return use(image)


def _unidentified(open_file: Callable[[], IO[bytes]]) -> str:
    with open_file() as file:
        tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return "a TIFF of a kind that is not read; save it as 8 bits, 16 bits or 32-bit floats" if tiff else "not an image"


def _open_file(path: Path) -> IO[bytes]:
    _check_file(path)
    return open(path, "rb")


def _peek(
    open_file: Callable[[], IO[bytes]],
    name: str,
    use: Callable[[Image.Image], tuple[int, int]] = lambda image: image.size,
) -> tuple[int, int] | None:
    """(width, height) by the head of a picture; None when it is none."""
    try:
        return patiently(lambda: _with_picture(open_file, use), name)
    except MachineError:
        raise
    except Exception:  # decoders throw whatever a damaged head leads them to
        return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a picture file's bytes; None when they are no image. Reads the head only."""
    return _peek(lambda: io.BytesIO(data), "a picture")


def short_side(path: Path) -> int | None:
    """Height or width of an image file, whichever is less; None when it is no image. Reads the head only.

    Raises:
        MachineError: when the machine cannot read it now.
    """
    size = _peek(lambda: _open_file(path), str(path))
    return None if size is None else min(size)


def _refuse_tiff(image: Image.Image, name: str) -> None:
    """Refuse the TIFFs of which Pillow would give wrong pixels, or only the first page, without a word."""
    if image.format != "TIFF":
        return
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_TAG, (1,))
    if tags.get(_PLANAR_TAG, 1) == 2 and tags.get(_SAMPLES_TAG, 1) > 1 and max(bits) > 8:
        raise UnreadableImageError(name, "a TIFF of more than 8 bits with one plane a channel; save it as RGB, 8 bits")
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        first = image.size
        image.seek(1)
        second = image.size
        image.seek(0)
        if second == first:  # pages of other sizes are previews
            raise UnreadableImageError(name, f"a TIFF of {pages} pages; save each page as a file of its own")


def _refuse_deep_colour(image: Image.Image, name: str) -> None:
    """Refuse colours of 16 bits where a window is asked for: Pillow keeps their upper 8 bits only."""
    if image.mode in ("RGB", "RGBA") and any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ())):
        raise UnreadableImageError(name, "colours of 16 bits have no window here; save them as 8 bits, or as .npz")


def deep_extremes(open_file: Callable[[], IO[bytes]], name: str) -> tuple[float, float, bool] | None:
    """Least and largest value of a picture of more than 8 bits, and whether they are whole numbers; None for others.

    Raises:
        MachineError: when the machine cannot read it now.
    """

    def look(image: Image.Image) -> tuple[float, float, bool] | None:
        if not is_deep(image) or image.width * image.height > MAX_PIXELS:
            return None
        _refuse_tiff(image, name)
        with _DECODE_BUDGET.reserve(image.width * image.height):
            values = np.asarray(image)
            values = values[np.isfinite(values)]
            if not values.size:
                return None
            return float(values.min()), float(values.max()), image.mode != "F"

    try:
        return patiently(lambda: _with_picture(open_file, look), name)
    except MachineError:
        raise
    except Exception:  # decoders throw whatever a damaged file leads them to; it is named when it is loaded
        return None


def file_extremes(path: Path) -> tuple[float, float, bool] | None:
    """`deep_extremes` of a file."""
    return deep_extremes(lambda: _open_file(path), str(path))


def bytes_extremes(data: bytes, name: str) -> tuple[float, float, bool] | None:
    """`deep_extremes` of a file's bytes."""
    return deep_extremes(lambda: io.BytesIO(data), name) if len(data) <= MAX_BYTES else None


def _check_file(path: Path) -> None:
    status = path.stat()
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImageError(str(path), "not a regular file")
    if status.st_size == 0:
        raise UnreadableImageError(str(path), "empty file (0 bytes)")
    _check_size(status.st_size, str(path))


def _check_size(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise UnreadableImageError(name, f"{size:,} bytes are more than {MAX_BYTES:,}")


def _draft(image: Image.Image, resolution: int) -> None:
    """Let the JPEG decoder itself shrink a large picture, to no less than twice the resolution."""
    scale = 2 * resolution / min(image.size)
    if image.format == "JPEG" and scale < 1:
        image.draft(None, (int(image.width * scale) + 1, int(image.height * scale) + 1))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text or type(error).__name__
