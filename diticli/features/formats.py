"""Feature files on disk: float32 [N, d] with its metadata as `.npy`, `.npz`, `.safetensors` or `.parquet`.

The suffix chooses the format. All but `.npy` carry the metadata inside, as one JSON string; `.npy` is plain
so that `np.load(path, mmap_mode="r")` opens it, and has the same JSON in a sidecar beside it.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from diticli.errors import FeatureFileError
from diticli.files import replacing, write_tensors
from diticli.reading import check_regular, parse_json, quoted, read_regular

if TYPE_CHECKING:  # its import takes 35 ms, and Parquet alone needs it
    import pyarrow as pa
    import pyarrow.parquet as pq

Array = npt.NDArray[Any]

FEATURES_KEY = "features"
META_KEY = "diti"
FILE_COLUMN = "file"
_PARQUET_ROWS = 8192
_LEAST_BYTES = 2**24
_MOST_UNPACKED = 100
"""Bytes that a byte of a packed file may become; float features pack to a third at best."""

DAMAGE: tuple[type[Exception], ...] = (
    *(OSError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, MemoryError, OverflowError),
    *(NotImplementedError, RecursionError, SyntaxError, tokenize.TokenError, struct.error, zlib.error),
    *(zipfile.BadZipFile, SafetensorError),
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


def is_own(path: Path) -> bool:
    """Whether `diti encode` wrote a feature file, by the metadata in it or beside it; or is still writing it."""
    if path.with_name(f"{path.name}.partial.json").is_file():
        return True
    try:
        check_regular(path)
        match path.suffix.lower():
            case ".npz":
                with zipfile.ZipFile(path) as packed:
                    return f"{META_KEY}.npy" in packed.namelist()
            case ".safetensors":
                with safe_open(path, framework="numpy") as file:
                    return META_KEY in (file.metadata() or {})
            case ".parquet":
                with _arrow() as pq:
                    return META_KEY.encode() in (pq.read_schema(path).metadata or {})
        facts = parse_json(read_regular(sidecar_path(path)))
        return isinstance(facts, dict) and bool(facts.get("version")) and "files" in facts
    except DAMAGE:
        return False


def write_npz(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """Arrays `features` and `diti` (a unicode scalar, so that no pickle is needed)."""
    with replacing(path) as file:
        np.savez(file, features=values, diti=np.array(meta))


def write_safetensors(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """Tensor `features`, the JSON in the header's metadata. Holds one copy of the rows in memory."""
    write_tensors(path, {FEATURES_KEY: np.ascontiguousarray(values)}, {META_KEY: meta})


def write_parquet(path: Path, values: Array, files: Sequence[str], meta: str) -> None:
    """One row per image: `file` and `features` (fixed-size list), written in groups of 8,192 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    with zipfile.ZipFile(path) as packed:
        _check_unpacked(path, sum(member.file_size for member in packed.infolist()))
        for member in packed.infolist():
            _check_declared(packed, member)
    with np.load(path, allow_pickle=False) as archive:
        meta = str(archive[META_KEY]) if META_KEY in archive else None
        return archive[FEATURES_KEY], meta


def _check_unpacked(path: Path, size: int) -> None:
    """Refuse a file that stands for much more than its size warrants.

    Raises:
        ValueError: with both sizes.
    """
    most = max(_LEAST_BYTES, _MOST_UNPACKED * path.stat().st_size)
    if size > most:
        raise ValueError(f"it unpacks to {size:,} bytes, more than the {most:,} that a file of its size may hold")


def _check_declared(packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header declares more bytes than the member holds: NumPy would make room for them first.

    Raises:
        ValueError: with both sizes.
    """
    if not member.filename.endswith(".npy"):
        return
    with packed.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        declared, held = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if declared != held and not dtype.hasobject:
        raise ValueError(f"{quoted(member.filename)} declares {declared:,} bytes and holds {held:,}")


def _read_safetensors(path: Path) -> tuple[Array, str | None]:
    with safe_open(path, framework="numpy") as file:
        return file.get_tensor(FEATURES_KEY), (file.metadata() or {}).get(META_KEY)


def _read_parquet(path: Path) -> tuple[Array, str | None]:
    """Own files, and foreign ones whose columns beside `file` are numbers (z0, z1, ...) or one list."""
    with _arrow() as pq, pq.ParquetFile(path) as file:
        meta = (file.schema_arrow.metadata or {}).get(META_KEY.encode())
        columns = [name for name in file.schema_arrow.names if name != FILE_COLUMN]
        columns = [FEATURES_KEY] if FEATURES_KEY in columns else columns
        _check_unpacked(path, _unpacked_bytes(file, columns))
        values: Array | None = None
        start = 0
        for group in range(file.num_row_groups):
            rows = _group_values(file.read_row_group(group, columns=columns))
            if values is None:
                values = np.empty((file.metadata.num_rows, *rows.shape[1:]), rows.dtype)
            values[start : start + len(rows)] = rows
            start += len(rows)
    if values is None or start != len(values):
        raise ValueError("it has fewer rows than it declares")
    return values, meta.decode() if meta else None


@contextmanager
def _arrow() -> Iterator[Any]:
    """PyArrow's Parquet module; what it raises on damaged bytes is a ValueError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield pq
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def _unpacked_bytes(file: pq.ParquetFile, columns: Sequence[str]) -> int:
    """Of the values that the groups of rows declare, however few bytes stand for them."""
    groups = (file.metadata.row_group(group) for group in range(file.num_row_groups))
    parts = (group.column(at) for group in groups for at in range(group.num_columns))
    wanted = (part for part in parts if part.path_in_schema.split(".")[0] in columns)
    return sum(part.num_values * (4 if part.physical_type in ("FLOAT", "INT32") else 8) for part in wanted)


def _group_values(table: pa.Table) -> Array:
    """[rows, d] of one group."""
    if table.column_names != [FEATURES_KEY]:
        return np.stack([table.column(name).to_numpy() for name in table.column_names], axis=1)
    lists = table.column(FEATURES_KEY).combine_chunks()
    if lists.null_count:
        raise ValueError(f"{lists.null_count} rows of {FEATURES_KEY} are null")
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)


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
