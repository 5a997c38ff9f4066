"""Many names in little memory: their bytes in one block, 8 bytes each for where they end."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

_ERRORS = "surrogateescape"


class PackedNames(Sequence[str]):
    """Names that take the bytes of their text and 8 more each; a list of `str` takes about 60 more.

    Args:
        names: in order. Surrogates that stand for bytes of a foreign encoding come back as they were.
    """

    def __init__(self, names: Sequence[str] | Iterator[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name."""
        self._text += name.encode("utf-8", _ERRORS)
        self._ends.append(len(self._text))

    def raw(self, index: int) -> bytes:
        """The bytes of a name, `index` in [0, N)."""
        return bytes(self._text[self._ends[index - 1] if index else 0 : self._ends[index]])

    def __len__(self) -> int:
        """N."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        """A name, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        return self.raw(place).decode("utf-8", _ERRORS)

    def keep(self, indices: npt.NDArray[np.int64]) -> PackedNames:
        """Those names alone, in that order."""
        kept = PackedNames()
        for index in indices.tolist():
            kept._text += self.raw(index)
            kept._ends.append(len(kept._text))
        return kept

    def hashes(self, prefix: bytes = b"") -> npt.NDArray[np.uint64]:
        """[N] 64-bit hashes of `prefix` and name together."""
        start = hashlib.blake2b(prefix, digest_size=8)
        words = array("Q")
        for index in range(len(self)):
            digest = start.copy()
            digest.update(self.raw(index))
            words.append(int.from_bytes(digest.digest(), "little"))
        return np.frombuffer(words, dtype=np.uint64) if len(words) else np.empty(0, dtype=np.uint64)

    def digest(self, update: Callable[[bytes | bytearray], object]) -> None:
        """Feed all names, and where each ends, to a hash."""
        update(self._text)
        update(self._ends.tobytes())


def last_of_equals(names: PackedNames) -> npt.NDArray[np.int64]:
    """Ascending indices of the names, of equal ones the last; 16 bytes a name while it runs."""
    hashes = names.hashes()
    last: dict[bytes, int] = {}
    dropped = []
    for index in np.flatnonzero(_shared(hashes)).tolist():
        name = names.raw(index)
        if name in last:
            dropped.append(last[name])
        last[name] = index
    return np.setdiff1d(np.arange(len(names)), np.array(dropped, dtype=np.int64), assume_unique=True)


def prefixes_that_tell_apart(roots: Sequence[Path], names: Sequence[PackedNames]) -> list[str]:
    """What to put in front of the names of each root so that all differ: as few trailing folders as possible, or "".

    The rule of `diticli.data.names.unique_names` in 16 bytes a name.

    Args:
        roots: [T] absolute and distinct.
        names: [T] names of each, distinct within it.
    """
    for parents in range(max((len(root.parts) for root in roots), default=0) + 1):
        prefixes = [
            "/".join(root.parts[max(1, len(root.parts) - parents) :]) + "/" if parents else "" for root in roots
        ]
        if _all_differ(prefixes, names):
            break
    return prefixes


def _all_differ(prefixes: Sequence[str], names: Sequence[PackedNames]) -> bool:
    if len(names) < 2:
        return True
    starts = [prefix.encode("utf-8", _ERRORS) for prefix in prefixes]
    shared = _shared(np.concatenate([own.hashes(start) for start, own in zip(starts, names, strict=True)]))
    seen: set[bytes] = set()
    ends = np.cumsum([len(own) for own in names])
    for place in np.flatnonzero(shared).tolist():
        root = int(np.searchsorted(ends, place, side="right"))
        full = starts[root] + names[root].raw(int(place - ends[root] + len(names[root])))
        if full in seen:
            return False
        seen.add(full)
    return True


def _shared(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """[N] whether a hash occurs more than once."""
    ordered = np.sort(hashes)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.isin(hashes, twice)
