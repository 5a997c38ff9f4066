"""What a run cannot foresee, said in words: a full disk, a folder that is no longer writable, a decoder that dies."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from diticli.errors import CheckpointError, DataError, DeviceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad alloc|alloc failed", re.IGNORECASE)
"""What PyTorch says where it has no type for it: the CPU's allocator and CUDA's libraries raise a RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine (also NumPy's) or of a GPU."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # without importing torch
    return isinstance(error, MemoryError) or named or (isinstance(error, RuntimeError) and _is_short(str(error)))


def _is_short(text: str) -> bool:
    return _NO_MEMORY.search(text) is not None


@contextlib.contextmanager
def batch_fits(batch_size: int) -> Iterator[None]:
    """Turn a failure to allocate memory within the block into an error with a remedy.

    Raises:
        DeviceError: when a batch of `batch_size` images does not fit in memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, batch_size) from error


def out_of_memory(error: BaseException, batch_size: int) -> DeviceError:
    """The error for a batch that does not fit."""
    what = (str(error).strip().splitlines() or ["no memory"])[0].split("] . ")[-1]
    smaller = f"Try --batch-size {batch_size // 2}." if batch_size > 1 else "Use a smaller network or resolution."
    images = f"A batch of {batch_size:,} images does" if batch_size > 1 else "Even one image does"
    return DeviceError(f"{images} not fit in memory ({what[:160]}).", remedy=smaller)


@contextlib.contextmanager
def explained(out: Path) -> Iterator[None]:
    """Turn what the system says within the block into typed errors with a remedy.

    Args:
        out: the run directory.

    Raises:
        CheckpointError: when something could not be written below `out`.
        DataError: when a process that decodes images died.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_CLOSED):
            raise
        raise write_error(out, error) from error
    except RuntimeError as error:
        # PyTorch has no type for it, and raises it from a signal handler, wherever the run is.
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"A process that decodes images died: {str(error).splitlines()[0]}",
            remedy="Often memory ran out: try fewer --workers. The same command goes on from the last checkpoint.",
        ) from error


def write_error(path: Path, error: Exception) -> CheckpointError:
    """The error for a file or folder that could not be written."""
    name = getattr(error, "filename", None) or path
    reason = getattr(error, "strerror", None) or error
    closed = isinstance(error, OSError) and error.errno in _CLOSED
    begin = "Make it writable" if closed else "Free some disk space"
    return CheckpointError(
        f"Cannot write {name}: {reason}.",
        remedy=f"{begin}, then run the same command again: it goes on from the last checkpoint.",
    )
