"""Rows of many shards as one array that is read where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from diticli.types import FloatArray

_Item = TypeVar("_Item")

OPEN_SHARDS = 2
"""Shards that are mapped (`.npy`) or in memory (Parquet) at a time."""


class FeatureRows(Protocol):
    """float32 [N, d]: an array, a memory map, or a `ShardedRows`; `values[rows]` gives an array of these rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, d)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any, /) -> Any:
        """Rows by an index, a slice, or an array of indices or of N booleans."""


class ShardedRows:
    """float32 [N, d] whose rows lie in shards, in order.

    Only rows are indexed: by a number, a slice, a list or array of numbers (negative ones count from the end), or N
    booleans. The result is a copy in memory, so the peak is the rows asked for and `OPEN_SHARDS` shards. Rows in
    ascending order open each shard once; `np.asarray` reads all.

    Args:
        counts: [S] rows of each shard, may be 0.
        width: d.
        load: float32 [counts[s], d] of shard s.

    Attributes:
        shape: (N, d).
        dtype: float32.
        ndim: 2.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, counts: Sequence[int], width: int, load: Callable[[int], FloatArray]) -> None:
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))
        self._load = lru_cache(maxsize=OPEN_SHARDS)(load)
        self.shape = (int(self._ends[-1]) if len(self._ends) else 0, width)

    def __len__(self) -> int:
        """N."""
        return self.shape[0]

    def __getitem__(self, index: Any) -> FloatArray:
        """[d] for a number, else [M, d].

        Raises:
            IndexError: for a row that does not exist, or an index of columns.
        """
        if isinstance(index, tuple):
            raise IndexError("only rows can be indexed; write values[rows][:, columns]")
        if isinstance(index, slice):
            return self._take(np.arange(*index.indices(len(self))))
        rows = np.asarray(index)
        if rows.size == 0 and rows.dtype != np.bool_:
            rows = rows.astype(np.int64)
        if rows.dtype == np.bool_:
            if rows.shape != (len(self),):
                raise IndexError(f"{list(rows.shape)} booleans for {len(self)} rows")
            return self._take(np.flatnonzero(rows))
        if rows.ndim > 1 or not np.issubdtype(rows.dtype, np.integer):
            raise IndexError("rows are indexed by numbers, slices, or arrays of one dimension")
        taken = self._take(np.atleast_1d(rows).astype(np.int64))
        return taken[0] if rows.ndim == 0 else taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All rows in memory."""
        if copy is False:
            raise ValueError("rows of shards become one array only by a copy")
        return self[:] if dtype is None else self[:].astype(dtype)

    def _take(self, rows: npt.NDArray[np.int64]) -> FloatArray:
        count = len(self)
        if rows.size and not -count <= rows.min() <= rows.max() < count:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {count}")
        rows = np.where(rows < 0, rows + count, rows)
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        for shard, places, within in split_by_shard(self._ends, rows):
            out[places] = self._load(shard)[within]
        return out


class ShardedItems(Sequence[_Item]):
    """One sequence whose items come shard by shard; the last shard read is kept.

    Args:
        counts: [S] items of each shard, may be 0.
        load: the items of shard s.
    """

    def __init__(self, counts: Sequence[int], load: Callable[[int], Sequence[_Item]]) -> None:
        self._counts = tuple(counts)
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))
        self._load = lru_cache(maxsize=1)(load)

    def __len__(self) -> int:
        """Items of all shards."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __iter__(self) -> Iterator[_Item]:
        """All items, with one shard in memory at a time."""
        for shard, count in enumerate(self._counts):
            if count:
                yield from self._load(shard)

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_Item]: ...
    def __getitem__(self, index: int | slice) -> _Item | Sequence[_Item]:
        """An item, or a tuple of those of a slice."""
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, place, side="right"))
        return self._load(shard)[int(place - self._ends[shard] + self._counts[shard])]


def split_by_shard(
    ends: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(shard, places in `rows`, rows within the shard), shards ascending.

    Args:
        ends: [S] exclusive end of each shard's rows.
        rows: in [0, N), in any order.
    """
    if not len(rows):
        return
    shards = np.searchsorted(ends, rows, side="right")
    order = np.argsort(shards, kind="stable")
    used, first = np.unique(shards[order], return_index=True)
    for shard, places in zip(used.tolist(), np.split(order, first[1:]), strict=True):
        yield shard, places, rows[places] - (ends[shard - 1] if shard else 0)
