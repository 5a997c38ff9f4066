"""LMDBs of Diff-AE, PDAE and DiTi (FFHQ, CelebA, CelebA-HQ, Bedroom, Horse) as a source.

Keys are `{resolution}-{index}`, the index from 0 and padded with zeros to a fixed width, and `length`, the
number of images; values are picture files. Images of original size have the word None for a resolution.
Written by `data_resize_*.py` of github.com/phizaz/diffae.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode import decode_bytes, image_size
from diticli.data.depth import reading_facts
from diticli.data.lmdb_reader import LmdbReader, lmdb_reader
from diticli.data.names import visible_entries
from diticli.errors import DataError, UnreadableImageError
from diticli.reading import quoted

DATA_FILE = "data.mdb"
SUFFIXES = frozenset({".mdb", ".lmdb"})

_KEY = re.compile(rb"(None|[0-9]{1,6})-([0-9]{1,12})")
_ORIGINAL = "None"
_CELEBA_SIZE = (178, 218)
_FOREIGN_KEYS = 1000
"""Keys of other kinds that are looked through before a file is said to hold no images."""


class LmdbImages:
    """The images of one LMDB, at the stored resolution nearest above the wanted one.

    Row i is named by its index as in the key (`00000.png`: FFHQ's own file names; CelebA-HQ's `0.jpg` match
    them by number). CelebA, told by the resolution None and images of 178x218, is named as in
    `list_attr_celeba.txt` (`000001.jpg` is index 0) and cropped as its users do.

    Args:
        path: the data file, or the folder that holds it as `data.mdb`.
        resolution: R, side of the images in pixels.
        crop: which square of each picture; None means "celeba" for CelebA and "center" for the others.

    Attributes:
        stored: the resolution in the keys, a number or "None".

    Raises:
        DataError: when the file is missing, damaged, or of another layout, or `lmdb` is not installed.
    """

    threads = True
    channels: int = 3
    value_range: ValueRange | None = None

    def __init__(self, path: Path, resolution: int, crop: Crop | None = None) -> None:
        self.name = str(path)
        self.resolution = resolution
        self._path = path.absolute()
        self._reader = lmdb_reader(self._path / DATA_FILE if path.is_dir() else self._path)
        self.stored, self._digits = _choose(_stored_resolutions(self._reader), resolution, self.name)
        self._count = _count(self._reader, self.stored)
        first = self._reader.get(self._key(0)) if self.stored == _ORIGINAL else None
        self._celeba = first is not None and image_size(first) == _CELEBA_SIZE
        self.crop: Crop = crop or ("celeba" if self._celeba else "center")

    def __len__(self) -> int:
        """See `ImageSource`."""
        return self._count

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return f"{index + 1:06d}.jpg" if self._celeba else f"{index:0{self._digits}d}.png"

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        return decode_bytes(
            self._value(index), self._label(index), self.resolution, crop=self.crop, channels=self.channels
        )

    def size(self, index: int) -> tuple[int, int] | None:
        """See `ImageSource.size`."""
        try:
            return image_size(self._value(index))
        except UnreadableImageError:
            return None

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: size and modification time of the file, and what is read of it."""
        status = self._reader.path.stat()
        state = f"{status.st_size} {status.st_mtime_ns} {self.stored} {self._digits}"
        return {
            "kind": "lmdb",
            "roots": [self._path.as_posix()],
            "count": len(self),
            "resolution": self.resolution,
            "stored": self.stored,
            "crop": self.crop,
            **reading_facts(self.channels, self.value_range),
            "sha256": hashlib.sha256(state.encode()).hexdigest(),
        }

    def _key(self, index: int) -> bytes:
        return f"{self.stored}-{index:0{self._digits}d}".encode()

    def _label(self, index: int) -> str:
        return f"{self._key(index).decode()} of {self.name}"

    def _value(self, index: int) -> bytes:
        try:
            value = self._reader.get(self._key(index))
        except DataError as error:
            raise UnreadableImageError(self._label(index), error.message) from error
        if value is None:
            raise UnreadableImageError(self._label(index), "no such key")
        return value


def find_lmdb(path: Path) -> Path | None:
    """The LMDB that a path means, or None when it means something else.

    A folder that holds `data.mdb`, a file or folder called `*.lmdb` or `*.mdb`, or a folder that holds just
    one such.

    Raises:
        DataError: for a folder that holds several.
    """
    if os.path.isfile(path / DATA_FILE) or (path.suffix.lower() in SUFFIXES and os.path.exists(path)):
        return path
    if not os.path.isdir(path):
        return None
    inside = [entry for entry in visible_entries(path) if entry.suffix.lower() in SUFFIXES]
    if len(inside) > 1:
        raise DataError(
            f"{path} holds {len(inside)} LMDBs, e.g. {inside[0].name} and {inside[1].name}.", remedy="Name one."
        )
    return inside[0] if inside else None


def _stored_resolutions(reader: LmdbReader) -> dict[str, int]:
    """Stored resolution -> digits of its indices. Keys are sorted, so this jumps from one to the next."""
    found: dict[str, int] = {}
    key = reader.first_key()
    foreign = 0
    while key is not None and foreign < _FOREIGN_KEYS:
        if match := _KEY.fullmatch(key):
            stored = match[1].decode()
            found[stored] = len(match[2])
            key = reader.first_key(match[1] + b".")  # '.' follows '-'
        else:
            foreign += key != b"length"
            key = reader.first_key(key + b"\0")
    return found


def _choose(stored: dict[str, int], wanted: int, name: str) -> tuple[str, int]:
    """The smallest stored resolution that is not below the wanted one, else the largest."""
    if not stored:
        raise DataError(
            f"The LMDB {name} holds no images under keys like 256-00000.",
            remedy="Only LMDBs as Diff-AE and PDAE write them are read; name a folder of images instead.",
        )
    sides = {key: 10**9 if key == _ORIGINAL else int(key) for key in stored}
    above = {key: side for key, side in sides.items() if side >= wanted}
    best = min(above, key=above.__getitem__) if above else max(sides, key=sides.__getitem__)
    return best, stored[best]


def _count(reader: LmdbReader, stored: str) -> int:
    """What `length` says, within what can be."""
    text = reader.get(b"length")
    entries = reader.entries
    if text is None or not text.isdigit() or len(text) > 12:
        raise DataError(
            f"The LMDB {reader.path} does not say how many images it holds: 'length' is {quoted(text)}.",
            remedy="Its writing may have been interrupted; write or download it again.",
        )
    if not 0 < int(text) < entries:
        raise DataError(
            f"The LMDB {reader.path} announces {int(text):,} images of resolution {stored}, but holds "
            f"{entries:,} entries in all.",
            remedy="Write or download it again.",
        )
    return int(text)
