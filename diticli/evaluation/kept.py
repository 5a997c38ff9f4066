"""Arrays that took long to make, kept in a folder, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from diticli.files import write_atomically
from diticli.identity import cache_key, digest
from diticli.reading import check_regular

Arrays = dict[str, npt.NDArray[Any]]
_SEAL = "diti:seal"


class KeptArrays:
    """What was made before, each entry under a hash of everything that it depends on, the code included.

    Args:
        folder: made when something is written; None keeps nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def get(self, what: str, facts: list[Any], make: Callable[[], Arrays]) -> Arrays:
        """The arrays of an entry, made and kept where they are missing or damaged.

        Args:
            what: name of the entry.
            facts: what the arrays depend on, as JSON can say it; see `content`.
            make: gives the arrays.

        Raises:
            DataError: when they cannot be written.
        """
        if self.folder is None:
            return make()
        from safetensors.numpy import save

        path = self.folder / f"{what}-{cache_key(what, facts)}.safetensors"
        try:
            return _read(path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            pass  # not made yet, made only in part, or not made by this class
        arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
        write_atomically(path, "intermediate result", save(arrays, {_SEAL: _seal(path, arrays)}))
        return arrays


def _read(path: Path) -> Arrays:
    """What was kept.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: when it is not there, or is anything else.
    """
    check_regular(path)
    with safe_open(path, framework="numpy") as file:
        arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if file.metadata()[_SEAL] != _seal(path, arrays):
            raise ValueError("it was changed")
    return arrays


def _seal(path: Path, arrays: Arrays) -> str:
    """Hash of entry, names and values, which the file of another entry or another program would lack."""
    return digest([path.name, *([name, content(array)] for name, array in sorted(arrays.items()))])


def content(*arrays: torch.Tensor | npt.NDArray[Any]) -> str:
    """16 hex digits of shapes, types and values."""
    hasher = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array)
        hasher.update(f"{values.dtype}{values.shape}".encode())
        hasher.update(repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes())
    return hasher.hexdigest()[:16]


def labels_content(columns: Mapping[str, Any]) -> list[list[str]]:
    """The same of columns of labels, by name."""
    return [[name, column.kind, content(np.asarray(column.values))] for name, column in columns.items()]
