"""Arrays in `.npz` and HDF5 files, read row by row: nothing is held in memory but what is asked for.

An `.npz` is a zip of `.npy` files. A member that is stored as it is gets mapped from the file; a compressed one is
unpacked, a small one into memory, a large one (dSprites' pictures: 26 MB packed, 2.8 GiB unpacked) once into the
user's cache folder. Arrays of Python objects are never loaded: they are pickles, which may run code.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from diticli.errors import DataError
from diticli.files import replacing
from diticli.progress import Reporter, SilentReporter
from diticli.reading import quoted

NPZ_SUFFIXES = frozenset({".npz"})
HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf"})

IN_MEMORY = 256 * 2**20
"""Bytes of a compressed member that are unpacked into memory; more goes to the cache folder."""

MAX_CHUNK = 2**30
"""Bytes of a piece that HDF5 packs as one: it is unpacked as a whole for each of its rows."""

_BLOCK = 4 * 2**20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then at the end the lengths of the name and of the extra field
_REPAIR = "Download or write the file again."


class ImageRows(Protocol):
    """An array whose first axis counts pictures; indexing by one number or a slice reads just those."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and the rest."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def __getitem__(self, index: Any) -> Any:
        """The rows, as NumPy arrays."""


def open_arrays(path: Path, reporter: Reporter | None = None) -> Mapping[str, ImageRows]:
    """The arrays of a file by name, each opened when it is asked for; arrays of objects are left out.

    Args:
        path: an `.npz` or an HDF5 file.
        reporter: warned when a large member is unpacked.

    Raises:
        DataError: when the file is missing, damaged or of another kind, or `h5py` is not installed. Also when one
            of the arrays is asked for that is damaged or does not fit on the disk.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file.", remedy="Check the path.")
    if path.suffix.lower() in HDF5_SUFFIXES:
        return _Hdf5(path)
    return _Npz(path, reporter or SilentReporter())


class _Npz(Mapping[str, ImageRows]):
    """The plain arrays of an `.npz`."""

    def __init__(self, path: Path, reporter: Reporter) -> None:
        self._path, self._reporter = path, reporter
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._open: dict[str, ImageRows] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if info.filename.endswith(".npy"):
                        with archive.open(info) as file:
                            shape, dtype, _ = _header(file)
                        if not dtype.hasobject and shape:
                            self._members[info.filename.removesuffix(".npy")] = info
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as e:
            raise DataError(f"Cannot read {path}: {_reason(e)}.", remedy=_REPAIR) from e

    def __getitem__(self, name: str) -> ImageRows:
        if name not in self._open:
            info = self._members[name]
            try:
                self._open[name] = self._read(name, info)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
                raise DataError(
                    f"Cannot read {quoted(name)} of {self._path}: {_reason(error)}.", remedy=_REPAIR
                ) from error
        return self._open[name]

    def __iter__(self) -> Any:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def _read(self, name: str, info: zipfile.ZipInfo) -> ImageRows:
        with zipfile.ZipFile(self._path) as archive, archive.open(info) as file:
            shape, dtype, fortran = _header(file)
            start = file.tell()
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if start + size != info.file_size:
                raise ValueError(f"its header declares {size:,} bytes of values, {info.file_size - start:,} are there")
            order = "F" if fortran else "C"
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                offset = self._offset(info) + start
                if offset + size > self._path.stat().st_size:
                    raise ValueError("the file is cut off")
                return MappedRows(self._path, dtype, offset, shape, order)
            if size <= IN_MEMORY:
                return np.frombuffer(_exactly(file, size), dtype=dtype).reshape(shape, order=order)  # type: ignore[call-overload]
            return MappedRows(self._unpacked(name, info, file, size), dtype, 0, shape, order)

    def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin."""
        with open(self._path, "rb") as file:
            file.seek(info.header_offset)
            signature, name, extra = _LOCAL_HEADER.unpack(_exactly(file, _LOCAL_HEADER.size))
        if signature != b"PK\x03\x04":
            raise ValueError("its directory points elsewhere")
        return info.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)

    def _unpacked(self, name: str, info: zipfile.ZipInfo, file: IO[bytes], size: int) -> Path:
        """A file with the member's values, made once and kept."""
        status = self._path.stat()
        key = f"{self._path.resolve()} {status.st_size} {status.st_mtime_ns} {name} {info.CRC} {size}"
        kept = cache_folder() / f"{self._path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.raw"
        if kept.is_file() and kept.stat().st_size == size:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(kept.parent).free) < size:
            raise DataError(
                f"{quoted(name)} of {self._path} needs {size / 2**30:.1f} GiB in {kept.parent}; "
                f"{free / 2**30:.1f} are free.",
                remedy="Free some space, or set XDG_CACHE_HOME to a folder on a larger disk.",
            )
        self._reporter.start(f"Unpacking {self._path.name} once to {kept.parent}", size // 2**20, unit="MiB")
        with replacing(kept, durable=False) as out:
            for done in range(0, size, _BLOCK):
                out.write(_exactly(file, min(_BLOCK, size - done)))
                self._reporter.advance(min(_BLOCK, size - done) // 2**20)
        self._reporter.finish()
        return kept


class MappedRows:
    """An array that lies in a file, mapped anew in each process that uses it.

    Args:
        path: the file.
        dtype: of the values.
        offset: of the first value, in bytes.
        shape: N and the rest.
        order: "C" or "F", as the values lie.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: str) -> None:
        self._given = (path, dtype, offset, shape, order)
        self.shape, self.dtype = shape, dtype
        self._map: npt.NDArray[Any] = np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)  # type: ignore[call-overload]

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedRows, self._given

    def __getitem__(self, index: Any) -> Any:
        """A copy of the rows, so that nothing keeps the mapping."""
        return np.array(self._map[index])


class _Hdf5(Mapping[str, ImageRows]):
    """The plain datasets of an HDF5 file, those in groups by their path; what lies in other files is refused.

    HDF5 reads a missing part of a virtual dataset as zeros, without a word.
    """

    def __init__(self, path: Path) -> None:
        self._names: dict[str, bool] = {}  # whether the values lie in other files
        self._path = path
        h5py = import_h5py(path)
        try:
            with h5py.File(path, "r") as file:

                def note(name: str, node: Any) -> None:
                    if isinstance(node, h5py.Dataset) and node.shape and not node.dtype.hasobject:
                        self._names[name] = node.is_virtual or bool(node.external)

                file.visititems(note)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(f"Cannot read {path}: {_reason(error)}.", remedy=_REPAIR) from error

    def __getitem__(self, name: str) -> ImageRows:
        if self._names[name]:
            raise DataError(
                f"{quoted(name)} of {self._path} lies in other files, which are not read.",
                remedy="Write the pictures into one file as a plain dataset.",
            )
        return Hdf5Rows(self._path, name)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Hdf5Rows:
    """One dataset of an HDF5 file, opened anew in each process that uses it; h5py lets one thread read at a time.

    Args:
        path: the file.
        name: of the dataset.

    Raises:
        DataError: when it is packed in pieces of more than `MAX_CHUNK` bytes.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._given = (path, name)
        self._opened: tuple[int, Any] | None = None
        dataset = self._dataset()
        if (size := math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize) > MAX_CHUNK:
            raise DataError(
                f"{name!r} of {path} is packed in pieces of {size:,} bytes, more than {MAX_CHUNK:,}.",
                remedy="Write it with smaller chunks, e.g. chunks=(100, height, width, 3).",
            )
        self.shape: tuple[int, ...] = tuple(dataset.shape)
        self.dtype: np.dtype[Any] = dataset.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return Hdf5Rows, self._given

    def __getitem__(self, index: Any) -> Any:
        """The rows.

        Raises:
            OSError: when they cannot be read.
        """
        return self._dataset()[index]

    def _dataset(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            path, name = self._given
            self._opened = (os.getpid(), import_h5py(path).File(path, "r")[name])
        return self._opened[1]


def import_h5py(path: Path) -> Any:
    """The library.

    Raises:
        DataError: when it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs the library h5py.", remedy='Install it: pip install "diticli[hdf5]".'
        ) from error
    return h5py


def cache_folder() -> Path:
    """Where unpacked arrays are kept: `diticli/arrays` in `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diticli" / "arrays"


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Shape, type and whether columns come first, of a `.npy`."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of .npy is not read")
    return shape, dtype, fortran


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the file is cut off")
    return data


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).strip().rstrip(".")
    return text[:200] or type(error).__name__
