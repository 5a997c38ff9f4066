"""Feature files on disk: float32 [N, d] with its metadata as `.npy`, `.npz`, `.safetensors` or `.parquet`.

The suffix chooses the format. All but `.npy` carry the metadata inside, as one JSON string; `.npy` is plain
so that `np.load(path, mmap_mode="r")` opens it, and has the same JSON in a sidecar beside it.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from diticli.errors import FeatureFileError
from diticli.files import replacing, write_tensors

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

FEATURES_KEY = "features"
META_KEY = "diti"
FILE_COLUMN = "file"
_PARQUET_ROWS = 8192

DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, MemoryError, OverflowError),
    *(NotImplementedError, RecursionError, SyntaxError, tokenize.TokenError, struct.error, zlib.error),
    *(zipfile.BadZipFile, SafetensorError, pa.ArrowException),
)
"""What the libraries raise on truncated or foreign bytes."""


def check_suffix(path: Path) -> str:
    """The lower-case suffix of a feature file.

    Raises:
        FeatureFileError: when it is none of the four formats.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise FeatureFileError(
            f"{path} has no known feature format (suffix {path.suffix!r}).",
            remedy=f"Use one of {', '.join(READERS)}.",
        )
    return suffix


def sidecar_path(path: Path) -> Path:
    """`feats.json` beside `feats.npy`."""
    return path.with_suffix(".json")


def write_npz(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """Arrays `features` and `diti` (a unicode scalar, so that no pickle is needed)."""
    with replacing(path) as file:
        np.savez(file, features=values, diti=np.array(meta))


def write_safetensors(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """Tensor `features`, the JSON in the header's metadata. Holds one copy of the rows in memory."""
    write_tensors(path, {FEATURES_KEY: np.ascontiguousarray(values)}, {META_KEY: meta})


def write_parquet(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """One row per image: `file` and `features` (fixed-size list), written in groups of 8,192 rows."""
    width = values.shape[1]
    fields = [pa.field(FILE_COLUMN, pa.string()), pa.field(FEATURES_KEY, pa.list_(pa.float32(), width))]
    schema = pa.schema(fields, metadata={META_KEY: meta})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(values), _PARQUET_ROWS):
            rows = np.ascontiguousarray(values[start : start + _PARQUET_ROWS])
            lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width)
            names = pa.array([_utf8(name) for name in files[start : start + _PARQUET_ROWS]], pa.string())
            writer.write_table(pa.Table.from_arrays([names, lists], schema=schema))


def _utf8(name: str) -> str:
    """A file name as Arrow can store it: bytes that are no UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_npy(path: Path) -> tuple[Array, str | None]:
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise ValueError("it is a zip archive, not a single array")
    return values, None


def _read_npz(path: Path) -> tuple[Array, str | None]:
    with np.load(path, allow_pickle=False) as archive:
        meta = str(archive[META_KEY]) if META_KEY in archive else None
        return archive[FEATURES_KEY], meta


def _read_safetensors(path: Path) -> tuple[Array, str | None]:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(FEATURES_KEY), (file.metadata() or {}).get(META_KEY)


def _read_parquet(path: Path) -> tuple[Array, str | None]:
    """Own files, and foreign ones whose columns beside `file` are numbers (z0, z1, ...) or one list."""
    table = pq.read_table(path, partitioning=None)  # a folder called a=1 is no column
    meta = (table.schema.metadata or {}).get(META_KEY.encode())
    columns = [name for name in table.column_names if name != FILE_COLUMN]
    if FEATURES_KEY in columns:
        lists = table.column(FEATURES_KEY).combine_chunks()
        if lists.null_count:
            raise ValueError(f"{lists.null_count} rows of {FEATURES_KEY} are null")
        values = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)
    else:
        values = np.stack([table.column(name).to_numpy() for name in columns], axis=1)
    return values, meta.decode() if meta else None


Reader = Callable[[Path], tuple[Array, str | None]]
Writer = Callable[[Path, Array, Sequence[str], str], None]

READERS: dict[str, Reader] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
CONVERTERS: dict[str, Writer] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    ".parquet": write_parquet,
}
