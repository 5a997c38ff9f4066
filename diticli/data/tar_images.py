"""Uncompressed tars (WebDataset shards, an archived folder) as a source with random access."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode import MAX_BYTES, bytes_extremes, decode_bytes, image_size
from diticli.data.depth import reading_facts
from diticli.data.listing import find_images
from diticli.data.machine import patiently
from diticli.data.names import visible_entries
from diticli.data.packed_names import prefixes_that_tell_apart
from diticli.data.tar_index import Member, index_tar
from diticli.errors import DataError, UnreadableImageError

_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_KEPT_OPEN = 128
_HEAD = 64 * 1024


class TarImages:
    """The picture files of tars, in the tars' order, named as in the tar (see `index_tar`).

    When two tars hold the same name, every name gets its tar's name without suffix in front
    (`shard-000/7.jpg`), and as many folders above it as it takes to make all names unique.

    The headers are read once, when this is made, in time and memory that grow with the number of images and nothing
    else: 24 bytes an image and those of its name. Images are then read where they lie.

    Args:
        tars: the files; a tar given twice counts once.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.

    Raises:
        DataError: when a tar is missing, compressed, damaged or cut off, or there is no image in any.
    """

    threads = True
    channels: int = 3
    value_range: ValueRange | None = None

    def __init__(self, tars: Sequence[Path], resolution: int, crop: Crop = "center") -> None:
        paths = list(dict.fromkeys(path.absolute() for path in tars))
        self.name = str(tars[0]) if len(paths) == 1 else f"{tars[0]} and {len(paths) - 1} more"
        self.resolution = resolution
        self.crop: Crop = crop
        self._index = [index_tar(path) for path in paths]
        self._ends = np.cumsum([len(members) for members in self._index])
        if not self._ends[-1]:
            raise DataError(f"No images in {self.name}.", remedy="Name tars that hold jpg, png or webp files.")
        roots = [path.with_suffix("") for path in paths]
        self._prefixes = prefixes_that_tell_apart(roots, [members.names for members in self._index])
        self._files = _Files(paths)

    def __len__(self) -> int:
        """See `ImageSource`."""
        return int(self._ends[-1])

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        tar, member = self._locate(index)
        return self._prefixes[tar] + member.name

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        name, size = self.file_name(index), self._locate(index)[1].size
        if size > MAX_BYTES:
            raise UnreadableImageError(name, f"{size:,} bytes are more than {MAX_BYTES:,}")
        data = self._read(index, size)
        if len(data) < size:
            raise UnreadableImageError(name, "its tar was cut off since it was opened")
        return decode_bytes(
            data, name, self.resolution, crop=self.crop, value_range=self.value_range, channels=self.channels
        )

    def size(self, index: int) -> tuple[int, int] | None:
        """See `ImageSource.size`."""
        try:
            return image_size(self._read(index, min(_HEAD, self._locate(index)[1].size)))
        except UnreadableImageError:
            return None

    def extremes(self, index: int) -> tuple[float, float, bool] | None:
        """See `diticli.data.decode.deep_extremes`."""
        name, size = self.file_name(index), self._locate(index)[1].size
        try:
            return bytes_extremes(self._read(index, size), name) if size <= MAX_BYTES else None
        except UnreadableImageError:
            return None

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: sizes and modification times of the tars, names and places in them."""
        digest = hashlib.sha256()
        for path in self._files.paths:
            try:
                status = path.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"missing\n")
        for prefix, members in zip(self._prefixes, self._index, strict=True):
            digest.update(f"{prefix}\n{len(members)}\n".encode("utf-8", "surrogateescape"))
            members.digest(digest.update)
        return {
            "kind": "tar",
            "roots": [path.as_posix() for path in self._files.paths],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            **reading_facts(self.channels, self.value_range),
            "sha256": digest.hexdigest(),
        }

    def _locate(self, index: int) -> tuple[int, Member]:
        """Which tar, and what of it."""
        place = index + len(self) if index < 0 else index
        tar = int(np.searchsorted(self._ends, place, side="right"))
        if not 0 <= place < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        members = self._index[tar]
        return tar, members[int(place - self._ends[tar]) + len(members)]

    def _read(self, index: int, size: int) -> bytes:
        tar, member = self._locate(index)
        try:
            return patiently(lambda: self._files.read(tar, member.offset, size), str(self._files.paths[tar]))
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnreadableImageError(self.file_name(index), f"cannot read its tar: {reason}") from error


def find_tars(path: Path) -> list[Path]:
    """The tars that a path means: a file called so, or those right in a folder that holds no images."""
    if not os.path.isdir(path):
        return [path] if path.name.lower().endswith(_SUFFIXES) else []
    tars = [entry for entry in visible_entries(path) if entry.name.lower().endswith(_SUFFIXES)]
    return tars if tars and not find_images(path) else []


class _Files:
    """Reading at any place of some files, from several threads and processes.

    Descriptors are opened at first use and kept, up to a number; positioned reads move nothing that a forked
    process shares. Pickles as the paths.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, int] = {}
        weakref.finalize(self, _close, self._open)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Files, (self.paths,)

    def read(self, file: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the file's end."""
        descriptor = self._open.get(file)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        descriptor = os.open(self.paths[file], os.O_RDONLY | os.O_CLOEXEC)
        kept = len(self._open) < _KEPT_OPEN and self._open.setdefault(file, descriptor) == descriptor
        try:
            return os.pread(descriptor, size, offset)
        finally:
            if not kept:
                os.close(descriptor)


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
