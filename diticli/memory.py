"""Memory that ran out, of a machine or of a GPU, as one error with a remedy that was measured. Imports no torch.

    with batch_fits(len(images), lambda n: encode(images[:n]), device=device):
        encode(images)

A batch that does not fit is answered with the size of one that does, see `diticli.models.largest_batch`.
"""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from diticli.errors import DeviceError

if TYPE_CHECKING:
    import torch

Trial = Callable[[int], object]
"""Computes so many images as the batch would have been, and leaves nothing behind."""

SMALLER_MODEL = "Use --device cpu, a model of a smaller resolution, or a machine with more memory."
SMALLER_NETWORK = "Use a smaller --preset or --resolution, or a machine with more memory."
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


@contextlib.contextmanager
def batch_fits(
    batch_size: int,
    trial: Trial,
    *,
    device: torch.device,
    processes: int = 1,
    smallest: str = SMALLER_NETWORK,
) -> Iterator[None]:
    """Turn a failure to allocate memory within the block into an error that names a batch size which fits.

    Args:
        batch_size: images of the batch that may fail, of all processes together.
        trial: the same computation with fewer images; called after a failure, with the numbers of this process alone.
        device: where it computes.
        processes: that share a batch.
        smallest: remedy where not even one image fits.

    Raises:
        DeviceError: when a batch of `batch_size` images does not fit in memory.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as caught:
        if not is_out_of_memory(caught):
            raise
        error = caught
    # Outside the handler, and without the locals of what failed: they hold the memory of the failed batch.
    traceback.clear_frames(error.__traceback__)
    raise _too_large(error, batch_size, trial, device, processes, smallest) from error


def _too_large(
    error: BaseException, batch_size: int, trial: Trial, device: torch.device, processes: int, smallest: str
) -> DeviceError:
    from diticli.models.largest_batch import largest_batch

    fits: int | None
    try:
        fits = processes * largest_batch(trial, batch_size // processes, device, processes)
    except Exception:  # whatever else a trial meets: the message is about the memory that ran out
        fits = None
    if fits == 0:
        return not_even_one(error, smallest)
    remedy = "Try a smaller --batch-size." if fits is None else f"Use --batch-size {fits}, which fits by measurement."
    return DeviceError(
        f"A batch of {batch_size:,} images does not fit in memory ({_first_line(error)}).", remedy=remedy
    )


def not_even_one(error: BaseException, smallest: str) -> DeviceError:
    """The error for memory that does not hold one image.

    Args:
        error: what said so.
        smallest: the remedy.
    """
    return DeviceError(f"Not even one image fits in memory ({_first_line(error)}).", remedy=smallest)


def _first_line(error: BaseException) -> str:
    """What the error says of the memory, in short; PyTorch puts its own source file first."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = next((line for line in lines if _NO_MEMORY.search(line)), lines[0]).strip()
    return re.sub(r"^\[enforce fail [^]]*\][^A-Z]*", "", text).rstrip(".")[:160]


def device_failure(error: BaseException) -> DeviceError | None:
    """The error for memory that ran out, or for a GPU that failed; None for anything else."""
    if is_out_of_memory(error):
        return DeviceError(f"Memory ran out ({_first_line(error)}).", remedy=SMALLER)
    if any(kind.__name__ == "AcceleratorError" for kind in type(error).__mro__):
        return DeviceError(
            f"The GPU failed ({_first_line(error)}).",
            remedy="Try again; `diti doctor` looks at the machine, CUDA_LAUNCH_BLOCKING=1 shows where it happens.",
        )
    return None
