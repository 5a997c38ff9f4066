"""Parquet files with a column of pictures, as the Hugging Face Hub distributes data sets, as a source.

A picture is a struct of `bytes` and `path` (`datasets.Image`), or plain bytes. One row group is read at a time, and
the last few are kept.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.config_groups import Crop, ValueRange
from diticli.data.array_sets import row_name
from diticli.data.decode import bytes_extremes, decode_bytes, image_size
from diticli.data.depth import reading_facts
from diticli.data.listing import find_images
from diticli.data.machine import patiently
from diticli.data.names import visible_entries
from diticli.errors import DataError, UnreadableImageError
from diticli.reading import check_regular, shortened

SUFFIXES = frozenset({".parquet", ".pq"})

_NAMES = ("image", "img", "images", "picture", "photo", "png", "jpg", "jpeg")
_KEPT = 4
_MAX_GROUP = 2**31
"""Bytes of the pictures of one row group."""
_PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class ParquetSet:
    """Parquet files that belong together.

    Attributes:
        files: the files, parts behind each other.
        parts: "train", "val", "test" or "" of each file, by its name.
        column: name of the column of pictures.
        ends: [G] number of rows up to the end of each row group, over all files.
        groups: (file, row group) of each.
    """

    files: tuple[Path, ...]
    parts: tuple[str, ...]
    column: str
    ends: npt.NDArray[np.int64]
    groups: tuple[tuple[int, int], ...]

    def names(self) -> list[str]:
        """`000123`, the row's number in its part; behind the part where the files have more than one."""
        several = len(set(self.parts)) > 1
        names: list[str] = []
        counts: dict[str, int] = {}
        starts = [0, *self.ends.tolist()]
        for at, (file, _) in enumerate(self.groups):
            part = self.parts[file] if several else ""
            first = counts.get(part, 0)
            names += [row_name(part, first + row) for row in range(starts[at + 1] - starts[at])]
            counts[part] = first + starts[at + 1] - starts[at]
        return names


class ParquetImages:
    """The pictures of Parquet files, in their order.

    Args:
        paths: the files.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.

    Raises:
        DataError: when a file is missing, damaged, or has no column of pictures.
    """

    threads = True
    channels: int = 3
    value_range: ValueRange | None = None

    def __init__(self, paths: Sequence[Path], resolution: int, crop: Crop = "center") -> None:
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        self.resolution = resolution
        self.crop: Crop = crop
        self._set = read_parquet_set(paths)
        self._names = self._set.names()
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_read")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._read: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        """See `ImageSource`."""
        return len(self._names)

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return self._names[index]

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        return decode_bytes(
            self._value(index),
            self._label(index),
            self.resolution,
            crop=self.crop,
            value_range=self.value_range,
            channels=self.channels,
        )

    def size(self, index: int) -> tuple[int, int] | None:
        """See `ImageSource.size`."""
        try:
            return image_size(self._value(index))
        except UnreadableImageError:
            return None

    def extremes(self, index: int) -> tuple[float, float, bool] | None:
        """See `diticli.data.decode.deep_extremes`."""
        try:
            return bytes_extremes(self._value(index), self._label(index))
        except UnreadableImageError:
            return None

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: sizes and times of the files and their numbers of rows."""
        digest = hashlib.sha256(f"{self._set.column} {self._set.ends.tolist()}".encode())
        for path in self._set.files:
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return {
            "kind": "parquet",
            "roots": [path.as_posix() for path in self._set.files],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            **reading_facts(self.channels, self.value_range),
            "sha256": digest.hexdigest(),
        }

    def _label(self, index: int) -> str:
        return f"{self._names[index]} of {self.name}"

    def _value(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        group = int(np.searchsorted(self._set.ends, index, side="right"))
        first = int(self._set.ends[group - 1]) if group else 0
        value = patiently(lambda: self._group(group), self.name)[index - first].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            where = value.get("path") if isinstance(value, dict) else None
            raise UnreadableImageError(
                self._label(index), f"it holds only the path {str(where)[:200]!r}" if where else "it is missing"
            )
        return bytes(data)

    def _group(self, group: int) -> Any:
        """The pictures of one row group, still packed."""
        with self._lock:
            if group in self._read:
                self._read.move_to_end(group)
                return self._read[group]
        import pyarrow as pa
        import pyarrow.parquet as pq

        file, inside = self._set.groups[group]
        path, name = self._set.files[file], self._set.column
        try:
            rows = (metadata := pq.read_metadata(path)).row_group(inside)
            leaves = {rows.column(at).path_in_schema for at in range(rows.num_columns)}
            # Equal pictures are kept once, as the file has them: a small file may name one of them a million times.
            equal = sorted(leaves & {name, f"{name}.bytes"})
            with pq.ParquetFile(path, metadata=metadata, read_dictionary=equal) as parquet:
                column = parquet.read_row_group(inside, columns=[name]).column(0)
        except (OSError, pa.ArrowException, ValueError) as error:
            if (
                isinstance(error, OSError) and error.errno
            ):  # of the machine; damaged pages are OSErrors without a number
                raise
            raise UnreadableImageError(str(path), f"row group {inside} is damaged") from error
        with self._lock:
            self._read[group] = column
            while len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return column


def find_parquet(path: Path) -> list[Path]:
    """The Parquet files that a path means: one called so, or those in a folder (or its `data`) without images."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in SUFFIXES else []
    for folder in (path, path / "data"):
        files = [entry for entry in visible_entries(folder) if _is_file(entry)] if folder.is_dir() else []
        if files and not find_images(folder):
            return files
    return []


def image_column(path: Path) -> str | None:
    """Name of the column of pictures of a Parquet file; None when it has none.

    Raises:
        DataError: when the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_regular(path)
        schema = pq.read_schema(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = shortened((isinstance(error, OSError) and error.strerror) or error)
        raise DataError(
            f"Cannot read the Parquet file {path} ({reason}).", remedy="Download or write it again."
        ) from error
    found = [field.name for field in schema if _holds_pictures(pa, field.type)]
    plain = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    candidates = found or [name for name in plain if name.lower() in _NAMES]
    ranked = sorted(candidates, key=lambda name: _NAMES.index(name.lower()) if name.lower() in _NAMES else len(_NAMES))
    return ranked[0] if ranked else None


def class_names(path: Path) -> dict[str, list[str]]:
    """Column -> names of its classes, as `datasets` stores them in the schema; empty when it does not."""
    import pyarrow.parquet as pq

    stored = (pq.read_schema(path).metadata or {}).get(b"huggingface")
    try:
        features = json.loads(stored)["info"]["features"] if stored else {}
        return {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature["names"], list)
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_parquet_set(paths: Sequence[Path]) -> ParquetSet:
    """How many rows the files hold, and where.

    Raises:
        DataError: when a file is missing, damaged, or has no column of pictures.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(dict.fromkeys(path.absolute() for path in paths), key=lambda path: (_order(path), path.name))
    columns = [image_column(path) for path in files]
    if None in columns or len(set(columns)) > 1:
        at = columns.index(None) if None in columns else 0
        raise DataError(
            f"{files[at]} has no column of pictures" + ("." if None in columns else " of the others' name."),
            remedy="Name Parquet files with a column `image` of bytes; feature files are for diti probe.",
        )
    groups: list[tuple[int, int]] = []
    sizes: list[int] = []
    for at, path in enumerate(files):
        try:
            metadata = pq.read_metadata(path)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group)
                held = [rows.column(one) for one in range(rows.num_columns)]
                size = sum(
                    one.total_uncompressed_size for one in held if one.path_in_schema.split(".")[0] == columns[0]
                )
                if size > _MAX_GROUP:
                    raise DataError(
                        f"{path}: row group {group} holds {size / 2**30:.1f} GiB of pictures.",
                        remedy="Write it with smaller row groups, e.g. of 100 rows.",
                    )
                if rows.num_rows:
                    groups.append((at, group))
                    sizes.append(rows.num_rows)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"Cannot read the Parquet file {path}.", remedy="Download or write it again.") from error
    if not groups:
        raise DataError(f"{files[0]} holds no rows.", remedy="Name Parquet files that hold pictures.")
    return ParquetSet(
        files=tuple(files),
        parts=tuple(map(_part, files)),
        column=str(columns[0]),
        ends=np.cumsum(sizes).astype(np.int64),
        groups=tuple(groups),
    )


def _holds_pictures(pa: Any, kind: Any) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(at).name for at in range(kind.num_fields)}


def _part(path: Path) -> str:
    """`train-00000-of-00002.parquet` is of train."""
    return _PARTS.get(path.name.lower().split("-")[0].split(".")[0], "")


def _order(path: Path) -> int:
    part = _part(path)
    return ["train", "val", "test", ""].index(part)


def _is_file(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
