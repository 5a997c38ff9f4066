"""Arrays (dSprites, Shapes3D, MPI3D, MedMNIST, Cars3D, SmallNORB, any `.npz` or HDF5 with `images`) as a source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.config_groups import Crop, ValueRange
from diticli.data.array_files import ImageRows
from diticli.data.array_sets import picture_axes, read_array_set, row_name
from diticli.data.decode import MAX_PIXELS
from diticli.data.depth import beyond, levels, range_of_values, reading_facts
from diticli.data.machine import patiently
from diticli.data.square import levels_to_square, to_square
from diticli.errors import DataError, UnreadableImageError
from diticli.progress import Reporter

_SAMPLE = 256
_PARTS_READ = 3


class ArrayImages:
    """The pictures of one set of arrays, in its order; train, val and test behind each other where it has parts.

    Values become 8 bits by one rule for the whole set, once a picture is cut and resized. Without a range it is found
    from pictures spread over the set: whole numbers by the smallest depth (8, 10, 12, 14 or 16 bits) that holds them,
    masks of 0 and 1 as black and white, fractions from [0, 1] or [-1, 1].

    Args:
        path: `.npz`, `.h5`, `.hdf5` or `.mat`, or a folder of the latter, see `diticli.data.array_sets`.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.
        reporter: warned when a large compressed array is unpacked.
        value_range: black and white, where values have more than 8 bits; None: found from them.
        channels: 3 for RGB, 1 for grey.

    Attributes:
        value_range: as given or found; None for 8 bits.
        notes: how the values were understood, where that is not plain.

    Raises:
        DataError: when the file is missing, damaged or holds no pictures; for values of another range.
    """

    threads = True

    def __init__(
        self,
        path: Path,
        resolution: int,
        crop: Crop = "center",
        reporter: Reporter | None = None,
        *,
        value_range: ValueRange | None = None,
        channels: int = 3,
    ) -> None:
        self.name = str(path)
        self.resolution = resolution
        self.crop: Crop = crop
        self._path = path.absolute()
        found = read_array_set(path, reporter)
        self._images, self._parts, self._files = found.images, found.parts, found.files
        self.channels = channels
        self._ends = np.cumsum([array.shape[0] for array in self._images])
        self._channels_first = [picture_axes(array, path) for array in self._images]
        largest = max(int(np.prod(array.shape[1:3])) for array in self._images)
        if largest > MAX_PIXELS:
            raise DataError(f"The pictures of {path} have {largest:,} pixels.", remedy="Save them smaller.")
        self.value_range: ValueRange | None = None
        self._window, note = self._find_window(value_range)
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
        if values.dtype == np.uint8 and self._window == (0.0, 255.0):
            return to_square(
                Image.fromarray(np.ascontiguousarray(values)), self.resolution, self.crop, channels=self.channels
            )
        found = levels(values, self._window)
        if found.ndim == 3 and found.shape[-1] == 4:  # transparency over white
            share = found[..., 3:] / np.float32(255)
            found = found[..., :3] * share + np.float32(255) * (1 - share)
        return levels_to_square(found, self.resolution, self.crop, channels=self.channels)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSource.size`."""
        part, _ = self._locate(index)
        shape = self._images[part].shape
        height, width = shape[2:4] if self._channels_first[part] else shape[1:3]
        return width, height

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: the files' sizes and times, and a picture of each part."""
        digest = hashlib.sha256()
        for path in self._files:
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns} {self._window[0]} {self._window[1]}".encode())
        for array in self._images:
            digest.update(f"{array.shape} {array.dtype}".encode())
        for array in self._images[:_PARTS_READ]:
            digest.update(np.ascontiguousarray(array[0]).tobytes())
        return {
            "kind": "arrays",
            "roots": [self._path.as_posix()],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            **reading_facts(self.channels, self.value_range),
            "sha256": digest.hexdigest(),
        }

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return part, int(index - self._ends[part] + self._images[part].shape[0])

    def _find_window(self, given: ValueRange | None) -> tuple[ValueRange, str]:
        """What is black and white, and a remark; keeps it as `value_range` where values have more than 8 bits."""
        low, high = _extremes(self._images)
        if all(array.dtype.kind in "ub" and array.dtype.itemsize == 1 for array in self._images):
            return range_of_values(low, high, whole=True, name=self.name) if high <= 1 else ((0.0, 255.0), "")
        if given is not None:
            self.value_range = given
            return given, beyond(low, high, given, self.name)
        whole = all(array.dtype.kind in "uib" for array in self._images)
        self.value_range, note = range_of_values(low, high, whole=whole, name=self.name)
        return self.value_range, note


def _extremes(images: Sequence[ImageRows]) -> tuple[float, float]:
    """Least and largest value of pictures spread over the arrays."""
    low, high = np.inf, -np.inf
    count = sum(array.shape[0] for array in images)
    spread = max(1, count // _SAMPLE)
    for array in images[:: max(1, len(images) // _SAMPLE)]:
        for row in range(0, array.shape[0], spread):
            picture = np.asarray(array[row])
            finite = picture[np.isfinite(picture)] if picture.dtype.kind == "f" else picture
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            if array.dtype == np.uint8 and high > 1:
                return low, high  # 8 bits, whatever the others hold
    return low, high
