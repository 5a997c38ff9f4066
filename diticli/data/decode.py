"""Decode an image, a file or its bytes, to a square uint8 RGB array, and list the images of a folder.

Files come from anywhere, so nothing here trusts them: sizes are bounded before a pixel is decoded, only
picture formats are tried, and whatever a decoder throws becomes an `UnreadableImageError` with a reason.
"""

from __future__ import annotations

import io
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode_budget import DecodeBudget
from diticli.data.depth import SIXTEEN_BITS, levels, rounded
from diticli.data.machine import is_of_machine, patiently
from diticli.data.own_files import FEW_JPEGS, JPEG_SUFFIXES, is_own_picture, is_run
from diticli.data.png_chunks import without_metadata
from diticli.errors import DataError, MachineError

_AVIF = find_spec("PIL.AvifImagePlugin") is not None  # of Pillow 11.3 and later

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", *([".avif"] if _AVIF else [])),
    }
)

OTHER_PICTURES = (
    frozenset(
        {
            *(
                ".heic",
                ".heif",
                ".jxl",
                ".avif",
                ".tga",
                ".qoi",
                ".svg",
                ".eps",
                ".psd",
                ".ico",
                ".exr",
                ".hdr",
                ".dcm",
            ),
            *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pcx", ".dds", ".jpx", ".jpf"),
        }
    )
    - IMAGE_SUFFIXES
)
"""Suffixes of pictures that are not read: they are counted and named."""

MAX_PIXELS = 178_000_000
"""Largest image decoded, in pixels: where Pillow itself begins to refuse."""

MAX_BYTES = 2**30
"""Largest picture file that is opened: some decoders read all of it before they look at it."""

_DECODE_BUDGET = DecodeBudget(MAX_PIXELS)

CROP_NOTES: dict[Crop, str] = {
    "center": "center square",
    "celeba": "128 px at top 57, left 25 of 178x218, in proportion; center square of other shapes",
}
"""The crops in words, for the metadata of features."""

# The "d2c crop" (D2C, Sinha et al. 2021) of CelebA's aligned images, in pixels.
_CELEBA_WIDTH, _CELEBA_HEIGHT = 178, 218
_CELEBA_TOP, _CELEBA_LEFT, _CELEBA_SIDE = 57, 25, 128

# A file may hold another format than its suffix says; formats that run other programs (EPS) are not here.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", *(["AVIF"] if _AVIF else []))

T = TypeVar("T")

_LUMA = (0.299, 0.587, 0.114)  # as Pillow makes grey of colours

_BITS_TAG, _SAMPLES_TAG, _PLANAR_TAG = 258, 277, 284
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(DataError):
    """An image file that cannot be decoded.

    Attributes:
        file: path of the file.
        reason: why, in a few words.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"Cannot read the image {file}: {reason}.", remedy="Repair, replace or remove it.")
        self.file = file
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures below a folder, and what was left out of them.

    Attributes:
        images: sorted by relative path.
        runs: directories of training runs.
        own: pictures that diti wrote.
        others: suffix -> number of pictures of formats that are not read.
    """

    images: tuple[Path, ...]
    runs: tuple[Path, ...]
    own: tuple[Path, ...]
    others: dict[str, int]

    def left_out(self) -> str | None:
        """What was left out, in words; None when nothing was."""
        parts = []
        if self.runs:
            parts.append(f"{_counted(len(self.runs), 'run directory', 'run directories')} ({self.runs[0]})")
        if self.own:
            parts.append(f"{_counted(len(self.own), 'picture', 'pictures')} written by diti ({self.own[0]})")
        if self.others:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self.others.items()))
            parts.append(f"{_counted(sum(self.others.values()), 'file', 'files')} of other formats ({kinds})")
        return " and ".join(parts) or None


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def list_images(folder: Path) -> Listing:
    """All image files below `folder`, by suffix in any case, sorted by relative path; and what is left out.

    Hidden files and folders are left out, and what diti itself wrote (see `diticli.data.own_files`). Links to folders
    are followed, each folder once.

    Raises:
        DataError: when a folder cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    found: list[tuple[str, Path]] = []
    runs: list[Path] = []
    own: list[Path] = []
    others: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        if is_run(parent, {*folders, *files}):
            runs.append(Path(parent))
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                path = Path(parent, name)
                looked_at = suffix not in JPEG_SUFFIXES or len(files) <= FEW_JPEGS
                if looked_at and is_own_picture(str(path)):
                    own.append(path)
                else:
                    found.append((path.relative_to(folder).as_posix(), path))
            elif suffix in OTHER_PICTURES:
                others[suffix] += 1
    images = tuple(path for _, path in sorted(found))
    return Listing(images=images, runs=tuple(runs), own=tuple(own), others=dict(others))


def find_images(folder: Path) -> list[Path]:
    """The images of `list_images`."""
    return list(list_images(folder).images)


def has_image_suffix(name: str) -> bool:
    """Whether a file name ends like one of the image formats read here."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


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
        return image.size if _orientation(image) <= 4 else (image.height, image.width)

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


def is_deep(image: Image.Image) -> bool:
    """Whether a picture is grey with more than 8 bits, by its head."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


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
    transpose = _UPRIGHT.get(_orientation(image))
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


def _orientation(image: Image.Image) -> int:
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
        raise UnreadableImageError(
            name, "floating-point pixels have no defined range; name one: --value-range LOW,HIGH"
        )
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise UnreadableImageError(name, "it has values that are not finite")
    return Image.fromarray(levels(values, value_range or SIXTEEN_BITS))


def _to_bytes(image: Image.Image, mode: str) -> Image.Image:
    """A picture of at most 8 bits as RGB or L, transparency over white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert(mode)
    return image.convert(mode) if mode == "RGB" or image.mode == "L" else image.convert("RGB").convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _cannot_list(error: OSError) -> None:
    raise DataError(
        f"Cannot list the folder {error.filename}: {error.strerror}.",
        remedy="Check that it exists and that you may read it, or name the folders beside it one by one.",
    ) from error
