"""Files of arrays (dSprites, Shapes3D, MPI3D, MedMNIST, any `.npz` or HDF5 with `images`) as a source."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.data.array_files import ImageRows
from diticli.data.array_sets import picture_axes, read_array_set, row_name
from diticli.data.decode import MAX_PIXELS, Crop, UnreadableImageError, to_square
from diticli.data.machine import patiently
from diticli.errors import DataError
from diticli.progress import Reporter

_SAMPLE = 256
_DEPTHS = (255, 1023, 4095, 16383, 65535)
"""Largest values of 8, 10, 12, 14 and 16 bits."""


class ArrayImages:
    """The pictures of one file of arrays, in its order; train, val and test behind each other where it has parts.

    Values become 8 bits by one rule for the whole file, found from pictures spread over it: whole numbers by the
    smallest depth (8, 10, 12, 14 or 16 bits) that holds them, masks of 0 and 1 as black and white, fractions from
    [0, 1] or [-1, 1].

    Args:
        path: `.npz`, `.h5` or `.hdf5`, see `diticli.data.array_sets`.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.
        reporter: warned when a large compressed array is unpacked.

    Attributes:
        notes: how the values were understood, where that is not plain.

    Raises:
        DataError: when the file is missing, damaged or holds no pictures; for values of another range.
    """

    threads = True

    def __init__(self, path: Path, resolution: int, crop: Crop = "center", reporter: Reporter | None = None) -> None:
        self.name = str(path)
        self.resolution = resolution
        self.crop: Crop = crop
        self._path = path.absolute()
        found = read_array_set(path, reporter)
        self._images, self._parts = found.images, found.parts
        self._ends = np.cumsum([array.shape[0] for array in self._images])
        self._channels_first = [picture_axes(array, path) for array in self._images]
        largest = max(int(np.prod(array.shape[1:3])) for array in self._images)
        if largest > MAX_PIXELS:
            raise DataError(f"The pictures of {path} have {largest:,} pixels.", remedy="Save them smaller.")
        self._low, self._high, note = _value_range(path, self._images)
        self.notes = (note,) if note else ()

    def __len__(self) -> int:
        """See `ImageSource`."""
        return int(self._ends[-1])

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        part, row = self._locate(index)
        return row_name(self._parts[part], row)

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        part, row = self._locate(index)
        name = f"{self.file_name(index)} of {self.name}"
        try:
            values = patiently(lambda: np.asarray(self._images[part][row]), name)
        except OSError as error:
            raise UnreadableImageError(name, "its values are damaged") from error
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UnreadableImageError(name, "it has values that are not finite")
        if self._channels_first[part]:
            values = np.moveaxis(values, 0, -1)
        if values.ndim == 3 and values.shape[-1] == 1:
            values = values[..., 0]
        return to_square(Image.fromarray(self._bytes(values)), self.resolution, self.crop)

    def short_side(self, index: int) -> int:
        """See `ImageSource.short_side`."""
        part, _ = self._locate(index)
        shape = self._images[part].shape
        return min(shape[2:4] if self._channels_first[part] else shape[1:3])

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: the file's size and time, and values of pictures spread over it."""
        status = self._path.stat()
        digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} {self._low} {self._high}".encode())
        for array in self._images:
            digest.update(f"{array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array[0]).tobytes())
        return {
            "kind": "arrays",
            "roots": [self._path.as_posix()],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            "sha256": digest.hexdigest(),
        }

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, int(index - self._ends[part] + self._images[part].shape[0])

    def _bytes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        if values.dtype == np.uint8 and (self._low, self._high) == (0.0, 255.0):
            return np.ascontiguousarray(values)
        scaled = (values.astype(np.float64) - self._low) * (255.0 / (self._high - self._low))
        return np.ascontiguousarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _value_range(path: Path, images: tuple[ImageRows, ...]) -> tuple[float, float, str]:
    """Values that become black and white, and how they were found, in words."""
    low, high = np.inf, -np.inf
    whole = all(array.dtype.kind in "uib" for array in images)
    for array in images:
        for row in range(0, array.shape[0], max(1, array.shape[0] // _SAMPLE)):
            picture = np.asarray(array[row])
            finite = picture[np.isfinite(picture)] if picture.dtype.kind == "f" else picture
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if whole and low >= 0:
        if high <= 1:
            return 0.0, 1.0, f"{path}: values of 0 and 1 are taken as black and white."
        if all(array.dtype == np.uint8 for array in images):
            return 0.0, 255.0, ""
        if high <= _DEPTHS[-1]:
            top = next(depth for depth in _DEPTHS if high <= depth)
            bits = (top + 1).bit_length() - 1
            return 0.0, float(top), f"{path}: values up to {high:g} are taken as {bits} bits (0 to {top:,})."
    elif not whole and low >= 0 and high <= 1:
        return 0.0, 1.0, f"{path}: fractions are taken as 0 (black) to 1 (white)."
    elif not whole and low >= -1 and high <= 1:
        return -1.0, 1.0, f"{path}: fractions are taken as -1 (black) to 1 (white)."
    elif not whole and low >= 0 and high <= 255:
        return 0.0, 255.0, f"{path}: fractions are taken as 0 (black) to 255 (white)."
    raise DataError(
        f"The values of {path} lie between {low:g} and {high:g}: what is black and what is white?",
        remedy="Scale them to 0 to 255 (uint8), 0 to 65,535 (uint16) or 0 to 1 before you save them.",
    )
