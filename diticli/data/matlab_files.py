"""Data sets that are distributed as `.mat` files: Cars3D (MATLAB 5) and SmallNORB (a binary form of its own).

- Cars3D: `car_001_mesh.mat` to `car_199_mesh.mat`, 183 files, each with `im` [128, 128, 3, 24, 4] uint8: azimuth (24)
  and elevation (4) are the picture's place, the car is its file.
- SmallNORB: `smallnorb-...-training-dat.mat` and `-testing-dat.mat`, [24300, 2, 96, 96] uint8 of two cameras; beside
  them `-cat.mat` with the category and `-info.mat` with instance, elevation, azimuth and lighting.

The forms are those that disentanglement_lib's `cars3d.py` and `norb.py` and other public loaders of SmallNORB read.
As in disentanglement_lib, azimuth is the slower of Cars3D's two places in a file, and of SmallNORB's two cameras the
first one counts. Here a car is named by its file and cars are in the order of their names.

A file of SmallNORB: the kind of the values, the number of axes, then at least three sizes, all 32-bit little-endian
integers; then the values.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.data.array_files import ImageRows, MappedRows
from diticli.errors import DataError
from diticli.reading import read_regular

MATLAB_SUFFIX = ".mat"
MAX_PACKED = 64 * 2**20
"""Bytes of a MATLAB file; those of Cars3D have 2 MB."""
MAX_UNPACKED = 256 * 2**20
MAX_FILES = 10_000
_KEPT = 4  # unpacked files in memory: neighbouring pictures are in one

_REPAIR = "Download it again."
_CARS3D = re.compile(r"\w+_mesh\.mat")
_NORB = re.compile(r"(smallnorb-.+-(training|testing))-(dat|cat|info)\.mat(\.gz)?")
_NORB_PARTS = {"training": "train", "testing": "test"}
_NORB_CATEGORIES = ("animal", "human", "airplane", "truck", "car")
_NORB_FACTORS = ("instance", "elevation", "azimuth", "lighting")
_NORB_KINDS = {0x1E3D4C55: "u1", 0x1E3D4C54: "<i4"}

MatlabSet = tuple[tuple[ImageRows, ...], tuple[str, ...], dict[str, npt.NDArray[Any]], tuple[Path, ...]]
"""Pictures part by part, name of each part, attribute -> values of all parts, files."""


def is_matlab_set(path: Path) -> bool:
    """Whether a path is a `.mat` file, or a folder of Cars3D or SmallNORB."""
    if path.suffix.lower() == MATLAB_SUFFIX and not path.is_dir():
        return True
    return bool(path.is_dir() and _files(path))


def _files(folder: Path) -> list[Path]:
    """The folder's files of SmallNORB, else those of Cars3D, by name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if ".mat" in entry.name and not entry.name.startswith("."))
    except OSError:
        return []
    kinds = ([name for name in names if form.fullmatch(name)] for form in (_NORB, _CARS3D))
    return [folder / name for name in next((found for found in kinds if found), [])]


def read_matlab_set(path: Path) -> MatlabSet:
    """Pictures and factors of Cars3D or SmallNORB, or of one of their files.

    Raises:
        DataError: for a file that is missing, damaged or packed, of another form, or far too large.
    """
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{path} is not a file.", remedy="Check the path.")
        form = _NORB.fullmatch(path.name)
        return _norb([path]) if form else _cars3d([path])
    files = _files(path)
    if len(files) > MAX_FILES:
        raise DataError(f"{path} has {len(files):,} .mat files.", remedy=f"At most {MAX_FILES:,} are read.")
    if _NORB.fullmatch(files[0].name):
        return _norb([file for file in files if "-dat.mat" in file.name])
    return _cars3d(files)


def _cars3d(files: list[Path]) -> MatlabSet:
    """One part for each car, named by its file; its pictures by azimuth, then elevation."""
    azimuths, elevations = _car(files[0]).shape[:2]
    shape = _car(files[0]).shape
    images = tuple(CarRows(file, (azimuths * elevations, *shape[2:])) for file in files)
    names = tuple(file.name.removesuffix(MATLAB_SUFFIX).removesuffix("_mesh") for file in files)
    places = np.stack(np.unravel_index(np.arange(azimuths * elevations), (azimuths, elevations)))
    azimuth, elevation = np.tile(places, len(files))
    car = np.repeat(np.array(names), azimuths * elevations)
    return images, names, {"elevation": elevation, "azimuth": azimuth, "object_type": car}, tuple(files)


class CarRows:
    """The pictures of one file of Cars3D, unpacked when they are asked for.

    Args:
        path: the file.
        shape: [N, H, W, 3] that it must have.
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path, self.shape = path, shape

    def __getitem__(self, index: Any) -> Any:
        """The rows.

        Raises:
            OSError: when the file is damaged or has pictures of another shape.
        """
        try:
            rows = _car(self._path).reshape(-1, *self.shape[1:])
        except (DataError, ValueError) as error:
            raise OSError(str(error)) from error
        if rows.shape != self.shape:
            raise OSError(f"{len(rows)} pictures in place of {self.shape[0]}")
        return np.array(rows[index])


@lru_cache(_KEPT)
def _car(path: Path) -> npt.NDArray[np.uint8]:
    """[azimuths, elevations, H, W, 3]."""
    from scipy.io import loadmat, whosmat

    try:
        plain = _unpacked(path)
        found = [(shape, kind) for name, shape, kind in whosmat(io.BytesIO(plain)) if name == "im"]
        if len(found) != 1:
            there = ", ".join(name for name, _, _ in whosmat(io.BytesIO(plain))[:6]) or "none"
            raise DataError(f"{path} has no variable `im`; it has: {there}.", remedy="Name Cars3D's own files.")
        shape, kind = found[0]
        if kind != "uint8" or len(shape) != 5 or shape[2] != 3 or not all(shape):
            raise DataError(
                f"`im` of {path} is {kind} of shape {list(shape)}.",
                remedy="Cars3D's is uint8 [128, 128, 3, 24, 4]; other arrays are read from .npz.",
            )
        image = loadmat(io.BytesIO(plain), variable_names=["im"])["im"]
        return np.ascontiguousarray(np.transpose(image, (3, 4, 0, 1, 2)))
    except DataError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # a damaged file leads the parser to struct.error, TypeError, its own errors, ...
        reason = " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
        raise DataError(f"Cannot read {path}: {reason}.", remedy=_REPAIR) from error


def _unpacked(path: Path) -> bytes:
    """A MATLAB 5 file with its compressed elements unpacked, so that their size is bounded before they are parsed."""
    if (size := path.stat().st_size) > MAX_PACKED:
        raise DataError(f"{path} has {size:,} bytes.", remedy=f"At most {MAX_PACKED:,} are read.")
    try:
        data = read_regular(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", remedy=_REPAIR) from error
    if data.startswith(b"MATLAB 7.3") or data.startswith(b"\x89HDF"):
        raise DataError(f"{path} is of MATLAB 7.3.", remedy="Save it with -v7, or its arrays as .npz.")
    if not data.startswith(b"MATLAB 5.0") or len(data) < 128:
        raise DataError(f"{path} is no MATLAB file.", remedy="Name the files of Cars3D or SmallNORB as distributed.")
    order = ">" if data[126:128] == b"MI" else "<"
    parts, total, at = [data[:128]], 0, 128
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if at + 8 + size > len(data):
            raise ValueError("the file is cut off")
        if kind == 15:  # compressed
            unpack = zlib.decompressobj()
            part = unpack.decompress(data[at + 8 : at + 8 + size], MAX_UNPACKED - total + 1)
        else:
            part = data[at : at + 8 + size]
        total += len(part)
        if total > MAX_UNPACKED:
            raise DataError(f"{path} unpacks to over {MAX_UNPACKED:,} bytes.", remedy=_REPAIR)
        parts.append(part)
        at += 8 + size
    return b"".join(parts)


def _norb(files: list[Path]) -> MatlabSet:
    images: list[ImageRows] = []
    parts: list[str] = []
    tables: list[npt.NDArray[Any]] = []
    used: list[Path] = []
    for file in files:
        form = _NORB.fullmatch(file.name)
        if form is None or form[3] != "dat":
            raise DataError(f"{file} holds factors, no pictures.", remedy="Name the file -dat.mat, or the folder.")
        beside = [file.with_name(f"{form[1]}-{kind}.mat") for kind in ("dat", "cat", "info")]
        for path in beside:
            if not path.is_file():
                raise DataError(
                    f"{path} is not there.",
                    remedy="Put SmallNORB's files dat, cat and info into one folder, unpacked: gunzip *.mat.gz.",
                )
        if form[4] and file.with_suffix("") in files:
            continue  # packed, and unpacked beside it
        pictures = _matrix(beside[0], "u1", 4)
        category, info = (_matrix(path, "<i4", axes) for path, axes in zip(beside[1:], (1, 2), strict=True))
        count = pictures.shape[0]
        if category.shape != (count,) or info.shape != (count, len(_NORB_FACTORS)):
            raise DataError(
                f"{beside[0]} has {count:,} pairs, its factors have shapes {list(category.shape)} and "
                f"{list(info.shape)}.",
                remedy=_REPAIR,
            )
        images.append(FirstCamera(pictures))
        parts.append(_NORB_PARTS[form[2]])
        tables.append(np.column_stack([category[:], info[:]]))
        used += beside
    if not files or not images:
        raise DataError("There is no file -dat.mat of SmallNORB.", remedy="Name the folder that holds it.")
    order = np.argsort([part != "train" for part in parts], kind="stable").tolist()
    table = np.concatenate([tables[at] for at in order])
    labels: dict[str, npt.NDArray[Any]] = dict(zip(("category", *_NORB_FACTORS), table.T, strict=True))
    known = dict(enumerate(_NORB_CATEGORIES))
    labels["category"] = np.array([known.get(at, f"class_{at}") for at in table[:, 0].tolist()])
    for name in ("instance", "lighting"):
        labels[name] = np.array([f"class_{at}" for at in labels[name].tolist()])
    return tuple(images[at] for at in order), tuple(parts[at] for at in order), labels, tuple(used)


class FirstCamera:
    """Of pairs of pictures the first ones.

    Args:
        pairs: [N, 2, H, W].
    """

    def __init__(self, pairs: ImageRows) -> None:
        self._pairs = pairs
        self.shape = (pairs.shape[0], *pairs.shape[2:])
        self.dtype = pairs.dtype

    def __getitem__(self, index: Any) -> Any:
        """The rows, as NumPy arrays."""
        return self._pairs[index][..., 0, :, :]


def _matrix(path: Path, kind: str, axes: int) -> MappedRows:
    """A file of SmallNORB, mapped.

    Raises:
        DataError: for values of another kind, another number of axes, or a file of another length than it declares.
    """
    with open(path, "rb") as file:
        head = file.read(8 + 4 * 4)
    if len(head) < 8 + 4 * max(3, axes):
        raise DataError(f"{path} is cut off.", remedy=_REPAIR)
    magic, count = struct.unpack_from("<Ii", head)
    if _NORB_KINDS.get(magic) != kind or count != axes:
        found = _NORB_KINDS.get(magic, f"of kind {magic:#x}")
        raise DataError(
            f"{path} is no file of SmallNORB: values {found}, {count} axes, in place of {kind} and {axes}.",
            remedy=_REPAIR,
        )
    shape = struct.unpack_from(f"<{axes}i", head, 8)
    offset = 8 + 4 * max(3, axes)
    size = int(np.prod(shape, dtype=object)) * np.dtype(kind).itemsize
    there = path.stat().st_size - offset
    if min(shape) < 1 or size != there or (axes == 4 and shape[1] != 2):
        raise DataError(f"{path} declares {list(shape)} values and holds {there:,} bytes.", remedy=_REPAIR)
    return MappedRows(path, np.dtype(kind), offset, shape, "C")
