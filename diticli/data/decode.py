"""Decode an image, a file or its bytes, to a square uint8 array.

Files come from anywhere, so nothing here trusts them: sizes are bounded before a pixel is decoded, only
picture formats are tried, and whatever a decoder throws becomes an `UnreadableImageError` with a reason.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode_budget import DecodeBudget
from diticli.data.depth import SIXTEEN_BITS, levels
from diticli.data.listing import IMAGE_SUFFIXES
from diticli.data.machine import patiently
from diticli.data.png_chunks import without_metadata
from diticli.data.square import NO_RANGE, NOT_FINITE, celeba_box, is_deep, levels_to_square, orientation, to_square
from diticli.data.tiff import HEADS as TIFF_HEADS
from diticli.data.tiff import tiff_pages, tiff_values
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


_BITS_TAG, _DESCRIPTION_TAG, _SAMPLES_TAG, _PLANAR_TAG, _DEPTH_TAG = 258, 270, 277, 284, 32997
# Pages behind one directory, as ImageJ and tifffile write them.
_HIDDEN_PAGES = re.compile(r"^ImageJ=[^\0]*?^images=(\d+)|\"truncated\": true()", re.MULTILINE)
_HEAD = 2000
"""Characters of a description that are looked at."""
_PAGES = "a TIFF of {} pages; save each page as a file of its own, or name the file or its folder in --data"


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

    return _peek(lambda: _open_file(path), str(path))


def decode_image(
    path: Path,
    resolution: int,
    max_pixels: int = MAX_PIXELS,
    *,
    crop: Crop = "center",
    value_range: ValueRange | None = None,
    channels: int = 3,
    page: int | None = None,
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
        page: of a TIFF that is a stack (`stack_pages`); None refuses stacks.

    Returns:
        [R, R, channels] uint8.

    Raises:
        UnreadableImageError: for a file that is missing, empty, truncated, not an image, or too large.
        MachineError: when memory, descriptors or the disk fail, several times in a row.
    """

    reading = _Reading(resolution=resolution, crop=crop, value_range=value_range, channels=channels, page=page)
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
    page: int | None = None


def _decode(open_file: Callable[[], IO[bytes]], name: str, max_pixels: int, reading: _Reading) -> npt.NDArray[np.uint8]:
    def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
        _choose_page(image, name, reading.page)
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImageError(name, f"{width}x{height} pixels are more than {max_pixels:,}")
        windowed = reading.value_range not in (None, SIXTEEN_BITS) and _is_deep_colour(image)
        if _has_deep_planes(image) or (windowed and image.format == "TIFF"):
            return _by_tifffile(open_file, name, max_pixels, reading)
        if windowed:
            reason = "colours of 16 bits have no other range than 0,65535 here; save them as 8 bits, or all as one .npz"
            raise UnreadableImageError(name, reason)
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

    def read() -> npt.NDArray[np.uint8]:
        try:
            return _with_picture(open_file, pixels)
        except UnidentifiedImageError:
            _choose_unidentified(open_file, name, reading.page)
            return _by_tifffile(open_file, name, max_pixels, reading)

    try:
        return patiently(read, name)
    except MachineError:
        raise
    except UnreadableImageError as error:
        raise UnreadableImageError(name, error.reason) from error
    except Image.DecompressionBombError:
        reason = "far too many pixels"
    except Exception as error:  # damaged bytes lead decoders to struct.error, EOFError, ValueError, ...
        reason = _reason(error)
    raise UnreadableImageError(name, reason)


def _by_tifffile(
    open_file: Callable[[], IO[bytes]], name: str, max_pixels: int, reading: _Reading
) -> npt.NDArray[np.uint8]:
    """A TIFF of numbers that Pillow does not have."""
    with open_file() as file:
        pages = tiff_pages(file)
        file.seek(0)
        with _DECODE_BUDGET.reserve(pages[0].width * pages[0].height if pages else 0):
            values = tiff_values(file, name, reading.page or 0, max_pixels)
            if values.dtype.kind == "f" and reading.value_range is None:
                raise UnreadableImageError(name, NO_RANGE)
            if not np.isfinite(values).all():
                raise UnreadableImageError(name, NOT_FINITE)
            found = levels(values, reading.value_range or SIXTEEN_BITS)
            return levels_to_square(found, reading.resolution, reading.crop, channels=reading.channels)


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


def _open_file(path: Path) -> IO[bytes]:
    _check_file(path)
    return open(path, "rb")


def _peek(open_file: Callable[[], IO[bytes]], name: str) -> tuple[int, int] | None:
    """(width, height) of a picture held upright, by its head; None when it is none."""

    def upright(image: Image.Image) -> tuple[int, int]:
        return image.size if orientation(image) <= 4 else (image.height, image.width)

    def look() -> tuple[int, int] | None:
        try:
            return _with_picture(open_file, upright)
        except UnidentifiedImageError:
            with open_file() as file:
                pages = tiff_pages(file)
            return pages[0][1:] if pages and pages[0].width and pages[0].height else None

    try:
        return patiently(look, name)
    except MachineError:
        raise
    except Exception:  # decoders throw whatever a damaged head leads them to
        return None


def image_size(data: bytes) -> tuple[int, int] | None:
    """As `picture_size`, of a picture file's bytes."""
    return _peek(lambda: io.BytesIO(data), "a picture")


def stack_pages(path: Path) -> tuple[int, ...]:
    """Numbers of the pages of a TIFF that holds several pictures of one size; empty for all other files.

    Raises:
        MachineError: when the machine cannot read it now.
    """

    def look() -> tuple[int, ...]:
        with _open_file(path) as file:
            return tuple(page.number for page in tiff_pages(file))

    try:
        pages = patiently(look, str(path))
    except (OSError, UnreadableImageError):  # named when it is loaded
        return ()
    return pages if len(pages) > 1 else ()


def _choose_page(image: Image.Image, name: str, page: int | None) -> None:
    """Go to a page of a TIFF, and refuse one of which Pillow would give the first page only, without a word."""
    if image.format != "TIFF":
        return
    if page:
        image.seek(page)
    tags = getattr(image, "tag_v2", {})
    text = str(tags.get(_DESCRIPTION_TAG, ""))[:_HEAD]
    planes = tags.get(_DEPTH_TAG, 1)
    if isinstance(planes, int) and planes > 1:
        raise UnreadableImageError(name, f"a TIFF volume of {planes} planes; save each as a picture of its own")
    file: IO[bytes] | None = getattr(image, "fp", None)
    if file is None:
        return
    at = file.tell()
    file.seek(0)
    pages = len(tiff_pages(file))
    file.seek(at)
    if page is None and pages > 1:
        raise UnreadableImageError(name, _PAGES.format(pages))
    if pages == 1 and (hidden := _HIDDEN_PAGES.search(text)) and hidden[1] != "1":
        reason = f"a TIFF of {hidden[1] or 'several'} pages that it does not list; save each page as a file"
        raise UnreadableImageError(name, reason)


def _choose_unidentified(open_file: Callable[[], IO[bytes]], name: str, page: int | None) -> None:
    """Refuse what is no picture, and a stack of which no page is named."""
    with open_file() as file:
        if file.read(4) not in TIFF_HEADS:
            raise UnreadableImageError(name, "not an image")
        file.seek(0)
        pages = len(tiff_pages(file))
    if page is None and pages > 1:
        raise UnreadableImageError(name, _PAGES.format(pages))


def _has_deep_planes(image: Image.Image) -> bool:
    """Whether a TIFF has colours of more than 8 bits, one plane a channel: Pillow reads them as stripes."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    several = tags.get(_PLANAR_TAG, 1) == 2 and tags.get(_SAMPLES_TAG, 1) > 1
    return several and max(tags.get(_BITS_TAG, (1,))) > 8


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether a picture that was not loaded yet has colours of 16 bits, of which Pillow keeps the upper 8."""
    return not is_deep(image) and any(";16" in str(tile[-1]) for tile in getattr(image, "tile", ()))


def deep_extremes(
    open_file: Callable[[], IO[bytes]], name: str, page: int | None = None
) -> tuple[float, float, bool] | None:
    """Least and largest value of a picture of more than 8 bits, and whether they are whole numbers; None for others.

    Of colours of 16 bits the upper 8 are looked at, which tell their depth.

    Raises:
        MachineError: when the machine cannot read it now.
    """

    def of(values: npt.NDArray[Any]) -> tuple[float, float, bool] | None:
        whole = values.dtype.kind != "f"
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max()), whole) if values.size else None

    def by_tifffile() -> tuple[float, float, bool] | None:
        with open_file() as file:
            return of(tiff_values(file, name, page or 0, MAX_PIXELS))

    def look(image: Image.Image) -> tuple[float, float, bool] | None:
        _choose_page(image, name, page)
        if image.width * image.height > MAX_PIXELS:
            return None
        if _has_deep_planes(image):
            return by_tifffile()
        colour = _is_deep_colour(image)
        if not (colour or is_deep(image)):
            return None
        with _DECODE_BUDGET.reserve(image.width * image.height):
            found = of(np.asarray(image))
        return (found[0] * 256, found[1] * 256 + 255, True) if colour and found else found

    def read() -> tuple[float, float, bool] | None:
        try:
            return _with_picture(open_file, look)
        except UnidentifiedImageError:
            _choose_unidentified(open_file, name, page)
            return by_tifffile()

    try:
        return patiently(read, name)
    except MachineError:
        raise
    except Exception:  # decoders throw whatever a damaged file leads them to; it is named when it is loaded
        return None


def file_extremes(path: Path, page: int | None = None) -> tuple[float, float, bool] | None:
    """`deep_extremes` of a file."""
    return deep_extremes(lambda: _open_file(path), str(path), page)


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
