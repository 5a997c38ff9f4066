"""Memory that ran out, of a machine or of a GPU, as an error with a remedy. Imports no torch."""

from __future__ import annotations

import ctypes
import functools
import platform
import re

from diticli.errors import DeviceError

SMALLER = "Use a smaller --batch-size where there is one, fewer or smaller images, or a machine with more memory."
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|bad alloc|alloc failed|unable to allocate", re.IGNORECASE
)
"""What PyTorch says where it has no type for it: the CPU's allocator and CUDA's libraries raise a RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine (also NumPy's) or of a GPU."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)  # without importing torch
    short = isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError) or named or short


def not_even_one(error: BaseException, smallest: str) -> DeviceError:
    """The error for memory that does not hold one image.

    Args:
        error: what said so.
        smallest: the remedy.
    """
    return DeviceError(f"Not even one image fits in memory ({first_line(error)}).", remedy=smallest)


def first_line(error: BaseException) -> str:
    """What the error says of the memory, in short; PyTorch puts its own source file first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = next((line for line in lines if _NO_MEMORY.search(line)), lines[0]).strip()
    return re.sub(r"^\[enforce fail [^]]*\][^A-Z]*", "", text).rstrip(".")[:160]


def device_failure(error: BaseException) -> DeviceError | None:
    """The error for memory that ran out, or for a GPU that failed; None for anything else."""
    if is_out_of_memory(error):
        return DeviceError(f"Memory ran out ({first_line(error)}).", remedy=SMALLER)
    if any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__):
        return DeviceError(
            f"The GPU failed ({first_line(error)}).",
            remedy="Try again; `diti doctor` looks at the machine, CUDA_LAUNCH_BLOCKING=1 shows where it happens.",
        )
    return None


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next tensors; returns whether its C library can be told so.

    By default glibc gives large blocks back to the system, which clears them page by page when they are asked for
    again: in every step of a training. What the process holds at most stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    most_mapped, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(most_mapped, 0))
