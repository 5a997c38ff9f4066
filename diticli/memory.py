"""Memory that ran out, of a machine or of a GPU, as one error with a remedy. Imports no torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from diticli.errors import DeviceError

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
    smaller = f"Try --batch-size {batch_size // 2}." if batch_size > 1 else "Use a smaller network or resolution."
    images = f"A batch of {batch_size:,} images does" if batch_size > 1 else "Even one image does"
    return DeviceError(f"{images} not fit in memory ({_first_line(error)}).", remedy=smaller)


def _first_line(error: BaseException) -> str:
    """What the error says, in short; PyTorch puts its own source file first."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.split("] . ")[-1].rstrip(".")[:160]


def device_failure(error: BaseException) -> DeviceError | None:
    """The error for memory that ran out, or for a GPU that failed; None for anything else."""
    if is_out_of_memory(error):
        return DeviceError(f"Memory ran out ({_first_line(error)}).", remedy="Try a smaller --batch-size.")
    if any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__):
        return DeviceError(
            f"The GPU failed ({_first_line(error)}).",
            remedy="Try again; `diti doctor` looks at the machine, CUDA_LAUNCH_BLOCKING=1 shows where it happens.",
        )
    return None
