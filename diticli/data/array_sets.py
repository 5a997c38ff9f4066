"""Data sets that are distributed as arrays: which array holds the pictures, and which the factors.

| set | pictures | factors |
|---|---|---|
| dSprites | `imgs` [737280, 64, 64] of 0 and 1 | `latents_values` [N, 6] |
| Shapes3D | `images` [480000, 64, 64, 3] | `labels` [N, 6] |
| MPI3D | `images` [1036800 or 460800, 64, 64, 3] | by the rows' order, also `given_sizes` |
| MedMNIST | `train_images`, `val_images`, `test_images` | `train_labels`, ... [N, L] |
| others | `images`, `image`, `imgs` or `x` | `labels`, `label`, `targets`, `target` or `y` |

Cars3D and SmallNORB: see `diticli.data.matlab_files`.

Sources: github.com/google-deepmind/dsprites-dataset, github.com/google-deepmind/3d-shapes,
github.com/rr-learning/disentanglement_dataset, medmnist.com.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.data.array_files import HDF5_SUFFIXES, NPZ_SUFFIXES, ImageRows, open_arrays
from diticli.data.matlab_files import is_matlab_set, read_matlab_set
from diticli.errors import DataError, LabelError
from diticli.progress import Reporter
from diticli.reading import quoted

_IMAGES = ("images", "image", "imgs", "x")
_LABELS = ("labels", "label", "targets", "target", "y")
PARTS = ("train", "val", "test")
_FEATURES = frozenset({"features", "files"})
_NOTHING = "none of numbers or text (arrays of Python objects are never loaded)"

_DSPRITES = ("color", "shape", "scale", "orientation", "x", "y")
_SHAPES3D = ("floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation")
_MPI3D = ("object_color", "object_shape", "object_size", "camera_height", "background_color", "horizontal", "vertical")
_MPI3D_SIZES = {1_036_800: (6, 6, 2, 3, 3, 40, 40), 460_800: (4, 4, 2, 3, 3, 40, 40)}
_CATEGORIES = frozenset({"shape", "object_color", "object_shape", "background_color"})
"""Factors whose numbers are names."""
_GIVEN = re.compile(r"(.+\.(?:npz|h5|hdf5|hdf)):([^:/\\]*)", re.IGNORECASE | re.DOTALL)
_SIZE = re.compile(r"(?:([^=]+)=)?([1-9][0-9]{0,8})")
_MOST_FACTORS = 32


@dataclass(frozen=True)
class ArraySet:
    """The pictures of a set, part by part, and what is known of them.

    Attributes:
        images: arrays [N_part, H, W] or [N_part, H, W, C] or [N_part, C, H, W].
        parts: name of each, "" where the file has no parts.
        labels: attribute -> [N] values of all parts together, numbers or text.
        files: that hold all this.
    """

    images: tuple[ImageRows, ...]
    parts: tuple[str, ...]
    labels: dict[str, npt.NDArray[Any]]
    files: tuple[Path, ...]

    def names(self) -> Iterator[str]:
        """Stable names: the row's number, `000123`; behind its part where there are parts, `train/000123`."""
        for array, part in zip(self.images, self.parts, strict=True):
            for row in range(array.shape[0]):
                yield row_name(part, row)


def row_name(part: str, row: int) -> str:
    """`000123`, or `train/000123`."""
    return f"{part}/{row:06d}" if part else f"{row:06d}"


def is_array_set(path: Path) -> bool:
    """Whether a path is a file of arrays by its suffix, or a folder of Cars3D or SmallNORB."""
    return path.suffix.lower() in NPZ_SUFFIXES | HDF5_SUFFIXES or is_matlab_set(path)


def read_array_set(path: Path, reporter: Reporter | None = None) -> ArraySet:
    """What a file of arrays holds.

    Args:
        path: `.npz`, HDF5 or `.mat`, or a folder of the latter.
        reporter: warned when a large array is unpacked.

    Raises:
        DataError: when the file is damaged, holds features, no pictures, or labels of another number.
    """
    if is_matlab_set(path):
        return ArraySet(*read_matlab_set(path))
    arrays = open_arrays(path, reporter)
    if set(arrays) >= _FEATURES:
        raise DataError(
            f"{path} holds features that diti wrote, no pictures.", remedy="Name the images; use the features in probe."
        )
    lower = {name.rpartition("/")[2].lower(): name for name in arrays}
    parts = tuple(part for part in PARTS if f"{part}_images" in lower)
    if parts:
        images = tuple(arrays[lower[f"{part}_images"]] for part in parts)
        labels = _part_labels(path, arrays, lower, parts, images)
    else:
        found = [lower[name] for name in _IMAGES if name in lower]
        if not found:
            there = ", ".join(f"{name} {list(arrays[name].shape)}" for name in list(arrays)[:6]) or _NOTHING
            raise DataError(
                f"No array of {path} is called {', '.join(_IMAGES)} or train_images; it has: {there}.",
                remedy="Save the pictures as `images` [N, height, width] or [N, height, width, 3].",
            )
        images, parts = (arrays[found[0]],), ("",)
        labels = _factors(path, arrays, lower, images[0].shape[0])
    for array in images:
        picture_axes(array, path)
    return ArraySet(images, parts, labels, (path,))


def picture_axes(array: ImageRows, path: Path) -> bool:
    """Whether an array of pictures has its channels first.

    Raises:
        DataError: when it has another shape or type than pictures have.
    """
    shape, kind = array.shape, array.dtype.kind
    last, first = shape[-1:], shape[1:2]
    fits = len(shape) == 3 or (len(shape) == 4 and ({*last, *first} & {1, 3, 4}))
    if kind not in "uifb" or not fits or not all(shape):
        volumes = " Volumes are not read." if len(shape) in (4, 5) and kind in "uifb" else ""
        raise DataError(
            f"The pictures of {path} are {array.dtype} of shape {list(shape)}.{volumes}",
            remedy="Save them as numbers of shape [N, height, width], [N, height, width, 3] or [N, 3, height, width].",
        )
    return len(shape) == 4 and last[0] not in (1, 3, 4)


def given_sizes(path: Path) -> tuple[Path, dict[str, int]]:
    """File and factor sizes of `FILE.npz:4,4,2` or `FILE.npz:shape=4,colour=4,size=2`; no sizes for any other path.

    Seven sizes without names are MPI3D's factors, others are called `label_0`, `label_1`, ...

    Raises:
        LabelError: for sizes that cannot be read.
    """
    form = _GIVEN.fullmatch(str(path))
    if form is None or os.path.exists(path):
        return path, {}
    found = [_SIZE.fullmatch(word.strip()) for word in form[2].split(",")]
    names = _MPI3D if len(found) == len(_MPI3D) else tuple(f"label_{at}" for at in range(len(found)))
    sizes = {word[1] or name: int(word[2]) for name, word in zip(names, found, strict=True) if word is not None}
    if not len(sizes) == len(found) <= _MOST_FACTORS:
        raise LabelError(
            f"Cannot read {quoted(form[2])} as the sizes of factors.",
            remedy=f"Write {form[1]}:4,4,2 or {form[1]}:shape=4,colour=4,size=2, the slowest factor first.",
        )
    return Path(form[1]), sizes


def factors_in_order(path: Path, sizes: Mapping[str, int], count: int) -> dict[str, npt.NDArray[Any]]:
    """Values of factors whose combinations are the rows in their order, the last factor the fastest.

    Raises:
        LabelError: when there are more or fewer combinations than pictures.
    """
    if (combinations := math.prod(sizes.values())) != count:
        form = " x ".join(map(str, sizes.values()))
        raise LabelError(
            f"{path} has {count:,} pictures, the factors {form} = {combinations:,} combinations.",
            remedy="Give the size of each factor, the slowest first.",
        )
    return _named(tuple(sizes), np.stack(np.unravel_index(np.arange(count), tuple(sizes.values())), axis=1))


def _part_labels(
    path: Path,
    arrays: Mapping[str, ImageRows],
    lower: Mapping[str, str],
    parts: tuple[str, ...],
    images: tuple[ImageRows, ...],
) -> dict[str, npt.NDArray[Any]]:
    tables = []
    for part, array in zip(parts, images, strict=True):
        name = lower.get(f"{part}_labels")
        if name is None:
            return {}
        tables.append(_table(path, name, arrays[name], array.shape[0]))
    if len({table.shape[1] for table in tables}) > 1:
        raise DataError(f"The parts of {path} have labels of different widths.", remedy="Save one table of labels.")
    return _columns(np.concatenate(tables))


def _factors(
    path: Path, arrays: Mapping[str, ImageRows], lower: Mapping[str, str], count: int
) -> dict[str, npt.NDArray[Any]]:
    if {"latents_values", "latents_classes"} <= set(lower):
        values = _table(path, "latents_values", arrays[lower["latents_values"]], count)
        if values.shape[1] == len(_DSPRITES):
            return _named(_DSPRITES, values)
        return _columns(values)
    name = next((lower[name] for name in _LABELS if name in lower), None)
    if name is not None:
        table = _table(path, name, arrays[name], count)
        # Shapes3D: object shape 0 to 3 in column 4 beside an orientation in degrees
        if table.shape[1] == len(_SHAPES3D) and count == 480_000:
            return _named(_SHAPES3D, table)
        return _columns(table)
    if sizes := _MPI3D_SIZES.get(count):
        return factors_in_order(path, dict(zip(_MPI3D, sizes, strict=True)), count)
    return {}


def _table(path: Path, name: str, rows: ImageRows, count: int) -> npt.NDArray[Any]:
    if rows.shape[0] != count or len(rows.shape) > 2 or (len(rows.shape) == 2 and rows.shape[1] > 1000):
        raise DataError(
            f"{quoted(name)} of {path} has shape {list(rows.shape)} for {count:,} pictures.",
            remedy="Save one row of labels for each picture.",
        )
    values = np.asarray(rows[:])
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind not in "uifbU":
        raise DataError(
            f"{quoted(name)} of {path} holds {values.dtype}, not numbers or text.", remedy="Save numbers or text."
        )
    return values.reshape(count, -1)


def _named(names: tuple[str, ...], table: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    columns = dict(zip(names, table.T, strict=True))
    return {name: _as_names(column) if name in _CATEGORIES else column for name, column in columns.items()}


def _columns(table: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """One column is the class; several are yes or no (MedMNIST's chest X-rays) or numbers."""
    if table.shape[1] == 1:
        whole = table.dtype.kind in "uib" and len(np.unique(table)) > 2
        return {"label": _as_names(table[:, 0]) if whole else table[:, 0]}
    return {f"label_{at}": column for at, column in enumerate(table.T)}


def _as_names(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([f"class_{int(value)}" for value in column.tolist()])
