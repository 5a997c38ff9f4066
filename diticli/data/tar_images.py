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

from diticli.data.decode import MAX_BYTES, Crop, UnreadableImageError, decode_bytes, find_images, image_size
from diticli.data.names import unique_names, visible_entries
from diticli.data.tar_index import index_tar
from diticli.errors import DataError

_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_KEPT_OPEN = 128
_HEAD = 64 * 1024


class TarImages:
    """The picture files of tars, in the tars' order, named as in the tar (see `index_tar`).

    When two tars hold the same name, every name gets its tar's name without suffix in front
    (`shard-000/7.jpg`), and as many folders above it as it takes to make all names unique.

    The headers are read once, when this is made; images are then read where they lie.

    Args:
        tars: the files; a tar given twice counts once.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.

    Raises:
        DataError: when a tar is missing, compressed, damaged or cut off, or there is no image in any.
    """

    threads = True

    def __init__(self, tars: Sequence[Path], resolution: int, crop: Crop = "center") -> None:
        paths = list(dict.fromkeys(path.absolute() for path in tars))
        self.name = str(tars[0]) if len(paths) == 1 else f"{tars[0]} and {len(paths) - 1} more"
        self.resolution = resolution
        self.crop: Crop = crop
        index = [(tar, member) for tar, path in enumerate(paths) for member in index_tar(path)]
        if not index:
            raise DataError(f"No images in {self.name}.", remedy="Name tars that hold jpg, png or webp files.")
        self._tars = np.array([tar for tar, _ in index], dtype=np.int32)
        self._offsets = np.array([member.offset for _, member in index], dtype=np.int64)
        self._sizes = np.array([member.size for _, member in index], dtype=np.int64)
        roots = [path.with_suffix("") for path in paths]
        self._names = unique_names([roots[tar] for tar, _ in index], [member.name for _, member in index])
        self._files = _Files(paths)

    def __len__(self) -> int:
        """See `ImageSource`."""
        return len(self._names)

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return self._names[index]

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        name, size = self._names[index], int(self._sizes[index])
        if size > MAX_BYTES:
            raise UnreadableImageError(name, f"{size:,} bytes are more than {MAX_BYTES:,}")
        data = self._read(index, size)
        if len(data) < size:
            raise UnreadableImageError(name, "its tar was cut off since it was opened")
        return decode_bytes(data, name, self.resolution, crop=self.crop)

    def short_side(self, index: int) -> int | None:
        """See `ImageSource.short_side`."""
        try:
            size = image_size(self._read(index, min(_HEAD, int(self._sizes[index]))))
        except UnreadableImageError:
            return None
        return None if size is None else min(size)

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: sizes and modification times of the tars, names and places in them."""
        digest = hashlib.sha256()
        for path in self._files.paths:
            try:
                status = path.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(b"missing\n")
        digest.update("\n".join(self._names).encode("utf-8", "surrogateescape"))
        for column in (self._tars, self._offsets, self._sizes):
            digest.update(column.tobytes())
        return {
            "kind": "tar",
            "roots": [path.as_posix() for path in self._files.paths],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            "sha256": digest.hexdigest(),
        }

    def _read(self, index: int, size: int) -> bytes:
        try:
            return self._files.read(int(self._tars[index]), int(self._offsets[index]), size)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UnreadableImageError(self._names[index], f"cannot read its tar: {reason}") from error


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
