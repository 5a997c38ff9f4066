"""TIFFs that Pillow does not read, or reads wrongly: the pages of a stack, and with tifffile other kinds of numbers.

Which pages a file has is read here from its directories. Floats of 16 and 64 bits, and colours of more than 8 bits, are
read with tifffile (`pip install "diticli[tiff]"`), within bounds that are checked before: its decompression has none.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diticli.errors import UnreadableImageError

EXTRA = 'pip install "diticli[tiff]"'
SUFFIXES = frozenset({".tif", ".tiff"})
MAX_PAGES = 100_000
"""Pages of one file; more are not looked for."""

MAX_BYTES = 2**30
"""Bytes of one picture's numbers, and of a strip or a tile of them."""

HEADS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_MAX_TAGS = 4096
_SUBFILE, _WIDTH, _HEIGHT = 254, 256, 257
_PREVIEW_OR_MASK = 0b101
_NUMBERS = {3: "H", 4: "I", 16: "Q"}  # types of a tag's value: SHORT, LONG, LONG8
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)


class TiffPage(NamedTuple):
    """One page: its place among all directories of the file, and its size in pixels."""

    number: int
    width: int
    height: int


class _Layout(NamedTuple):
    """How a classic TIFF, or a BigTIFF, writes its directories."""

    first: int
    offset: struct.Struct
    number: struct.Struct
    entry: struct.Struct


def tiff_pages(file: IO[bytes]) -> tuple[TiffPage, ...]:
    """The pages of the first one's size: others are previews, masks or thumbnails. Empty for what is no TIFF.

    Args:
        file: at its begin; left anywhere.
    """
    order = HEADS.get(file.read(4))
    if order is None:
        return ()
    file.seek(0)
    layout = _layout(order, big=file.read(4)[2 if order == "<" else 3] == ord("+"))
    pages: list[TiffPage] = []
    seen: set[int] = set()
    try:
        (at,) = layout.offset.unpack(_read(file, layout.first, layout.offset.size))
        while at and at not in seen and len(seen) < MAX_PAGES:
            seen.add(at)
            tags, at = _directory(file, at, order, layout)
            page = TiffPage(len(seen) - 1, tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0))
            if not pages or (page[1:] == pages[0][1:] and not tags.get(_SUBFILE, 0) & _PREVIEW_OR_MASK):
                pages.append(page)
    except struct.error:  # cut off: what is there counts
        pass
    return tuple(pages)


def _layout(order: str, *, big: bool) -> _Layout:
    formats = ("Q", "Q", "HHQ8s") if big else ("I", "H", "HHI4s")
    return _Layout(8 if big else 4, *(struct.Struct(order + one) for one in formats))


def _directory(file: IO[bytes], at: int, order: str, layout: _Layout) -> tuple[dict[int, int], int]:
    """Tags with one number, and where the next directory begins."""
    (count,) = layout.number.unpack(_read(file, at, layout.number.size))
    if count > _MAX_TAGS:
        raise struct.error(f"{count} tags")
    body = file.read(count * layout.entry.size)
    tags = {}
    for tag, kind, length, value in layout.entry.iter_unpack(body):
        if length == 1 and kind in _NUMBERS:
            tags[tag] = struct.unpack_from(order + _NUMBERS[kind], value)[0]
    return tags, layout.offset.unpack(file.read(layout.offset.size))[0]


def _read(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def tiff_values(file: IO[bytes], name: str, page: int, max_pixels: int) -> npt.NDArray[Any]:
    """The numbers of one page, [H, W] or [H, W, 3], held upright.

    Args:
        file: at its begin.
        name: of the picture, for errors.
        page: place of the page among all directories of the file.
        max_pixels: larger pictures are refused before anything is decoded.

    Raises:
        UnreadableImageError: without tifffile, for a kind of picture that is not read, or one that is damaged.
    """
    try:
        import tifffile
    except ImportError as error:
        reason = f"a TIFF of a kind that only tifffile reads ({EXTRA}); or save it as 8 bits, 16 bits or 32-bit floats"
        raise UnreadableImageError(name, reason) from error
    try:
        with tifffile.TiffFile(file) as tiff:
            own = tiff.pages[page]
            _check(own, name, max_pixels)
            if sum(own.databytecounts) > tiff.filehandle.size:
                raise UnreadableImageError(name, "a TIFF that is cut off")
            _check_parts(own, tiff.filehandle.read_segments(own.dataoffsets, own.databytecounts), name)
            values = np.asarray(own.asarray(maxworkers=1))
            turn = own.tags.valueof("Orientation", 1)
    except UnreadableImageError:
        raise
    except Exception as error:  # damaged bytes lead decoders to whatever they lead them to
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableImageError(name, f"a TIFF that cannot be read ({text})") from error
    if own.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    return _upright(values, int(turn))


def _check(page: Any, name: str, max_pixels: int) -> None:
    """Refuse what is no picture, too large, or packed so that its size is not known beforehand."""
    if page.imagewidth * page.imagelength > max_pixels:
        raise UnreadableImageError(name, f"{page.imagewidth}x{page.imagelength} pixels are more than {max_pixels:,}")
    colour = page.axes in ("YXS", "SYX") and page.samplesperpixel == 3
    if not (page.axes == "YX" or colour) or page.dtype is None or page.dtype.kind not in "uif":
        kind = f"{page.dtype} and axes {page.axes} {list(page.shape)}"
        raise UnreadableImageError(name, f"a TIFF of {kind}; save it as grey or RGB")
    if max(page.nbytes, _part_size(page)) > MAX_BYTES:
        raise UnreadableImageError(name, f"its values take more than {MAX_BYTES:,} bytes")
    if int(page.compression) not in (_UNCOMPRESSED, *_DEFLATE):
        raise UnreadableImageError(
            name, f"a TIFF of {page.dtype} packed by {page.compression.name}; save it without compression"
        )
    if len(page.dataoffsets) != math.prod(page.chunked) or len(page.databytecounts) != len(page.dataoffsets):
        raise UnreadableImageError(name, "a TIFF whose parts are not those of its size")


def _check_parts(page: Any, parts: Iterable[tuple[bytes | None, int]], name: str) -> None:
    """Refuse parts that are missing, or that unpack to more than they should."""
    size, there = _part_size(page), 0
    for data, _ in parts:
        if data and int(page.compression) in _DEFLATE:
            data = zlib.decompressobj().decompress(data, size + 1)
            if len(data) > size:
                raise UnreadableImageError(name, f"a TIFF whose parts unpack to more than their {size:,} bytes")
        there += len(data or b"")
    if there < page.nbytes:
        raise UnreadableImageError(name, "a TIFF of which a part is missing")


def _part_size(page: Any) -> int:
    """Bytes of a strip or a tile, unpacked."""
    return math.prod(page.chunks) * page.dtype.itemsize


def _upright(values: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """As the tag for orientation, 1 to 8, says."""
    if turn in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)
    rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
    return values[rows, columns]
