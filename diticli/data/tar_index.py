"""Index of the images in a tar, read from its headers alone; nothing is ever extracted."""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from diticli.data.listing import has_image_suffix
from diticli.data.packed_names import PackedNames, last_of_equals
from diticli.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
_SCANNED = 64 * _BLOCK
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
_DAMAGED = "Copy or download it again."


class Member(NamedTuple):
    """A picture file within a tar: its name, and its bytes [offset, offset + size)."""

    name: str
    offset: int
    size: int


class TarIndex(Sequence[Member]):
    """The picture files of one tar, in its order: 24 bytes each and the bytes of their names.

    Attributes:
        names: [N].
        offsets: [N] int64, first byte of each.
        sizes: [N] int64, bytes of each.
    """

    def __init__(self, names: PackedNames, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        self.names, self.offsets, self.sizes = names, offsets, sizes

    def __len__(self) -> int:
        """N."""
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Member: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Member]: ...
    def __getitem__(self, index: int | slice) -> Member | Sequence[Member]:
        """One member, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Member(self.names[index], int(self.offsets[index]), int(self.sizes[index]))

    def digest(self, update: Callable[[bytes | bytearray], object]) -> None:
        """Feed all of it to a hash."""
        self.names.digest(update)
        for column in (self.offsets, self.sizes):
            update(column.tobytes())


def index_tar(path: Path) -> TarIndex:
    """The picture files of a tar, by suffix, in its order.

    Names are those in the tar up to a NUL, without leading slashes and without `.` and `..`: labels, never paths.
    Archives that follow each other in one file (`cat a.tar b.tar`) are all read, as by `tar -i`. Of equal names the
    last counts, as it does for `tar -x`. Links, sparse and hidden files are left out.

    Raises:
        DataError: when it is missing, compressed, damaged, or cut off.
    """
    names, offsets, sizes = PackedNames(), array("q"), array("q")
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is not a regular file.", remedy="Name a .tar file.")
    try:
        with open(path, "rb") as file:
            _check_head(path, file.read(_BLOCK))
            start: int | None = 0
            while start is not None:
                end = _index_from(file, start, names, offsets, sizes)
                start = _next_archive(file, end)
    except OSError as error:
        raise DataError(f"Cannot open the tar {path}: {error.strerror}.", remedy="Check the path.") from error
    except DataError:
        raise
    except Exception as error:  # damaged headers lead tarfile to ValueError, OverflowError, RecursionError, ...
        raise DataError(f"The tar {path} is damaged or cut off: {error}.", remedy=_DAMAGED) from error
    return _without_replaced(names, np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64))


def _index_from(file: IO[bytes], start: int, names: PackedNames, offsets: array[int], sizes: array[int]) -> int:
    """Add the picture files of the archive at byte `start`; returns where its end mark is."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        last = start - 1
        while (entry := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # kept, they would take a kilobyte each
            if tar.offset <= last:
                raise tarfile.ReadError("a header points backwards")
            last = tar.offset
            name = _label(entry.name)
            if entry.isreg() and not entry.issparse() and _is_wanted(name):
                names.append(name)
                offsets.append(entry.offset_data)
                sizes.append(entry.size)
        end = tar.offset
    # tarfile takes a damaged or missing header for the end; the real end is a block of zeros.
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        if end == start:
            raise tarfile.ReadError(f"data that is no tar follows the end mark at byte {start:,}")
        raise tarfile.ReadError(f"no header and no end mark at byte {end:,}")
    return end


def _next_archive(file: IO[bytes], end: int) -> int | None:
    """The first block that is not zero behind an end mark: `cat a.tar b.tar` has one. None at the end of the file."""
    file.seek(end)
    while data := file.read(_SCANNED):
        if data.strip(b"\0"):
            return end + (len(data) - len(data.lstrip(b"\0"))) // _BLOCK * _BLOCK
        end += len(data)
    return None


def _without_replaced(names: PackedNames, offsets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> TarIndex:
    """Without members that a later one of the same name replaces."""
    kept = last_of_equals(names)
    if len(kept) < len(names):
        names, offsets, sizes = names.keep(kept), offsets[kept], sizes[kept]
    return TarIndex(names, offsets, sizes)


def _check_head(path: Path, head: bytes) -> None:
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"The tar {path} is compressed, so its images cannot be reached one by one.",
                remedy=f"Decompress it first: {program} {path.name}.",
            )


def _label(name: str) -> str:
    parts = name.partition("\0")[0].replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _is_wanted(name: str) -> bool:
    return has_image_suffix(name) and not any(part.startswith(".") for part in name.split("/"))
