"""The largest batch that fits in the free memory, from the memory that smaller batches take.

    with batch_fits(len(images), lambda n: encode(images[:n]), device=device):
        encode(images)

Memory is taken to be a line through the peaks of two batches, the larger of which is at least half of the answer, or
on a CPU the first that takes seconds: at few images the gradients of the weights may be the most at once, to which no
image adds. Peaks are counted in tensors, not in what the system gives: a small batch hides in memory that the process
already has.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diticli.errors import DeviceError
from diticli.memory import first_line, is_out_of_memory, not_even_one

LONGEST = 2.0
"""Seconds of a trial after which no larger one is made on a CPU."""
Trial = Callable[[int], object]
"""Computes so many images as the batch would have been, and leaves nothing behind."""

SMALLER_MODEL = "Use --device cpu, a model of a smaller resolution, or a machine with more memory."
SMALLER_NETWORK = "Use a smaller --preset or --resolution, or a machine with more memory."
SHARE = 0.7
"""Of the free memory that a batch may take: operators have workspaces of their own (a quarter more in one convolution
network on a CPU), and freed memory lies in pieces."""


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
    fits: int | None
    try:
        fits = processes * largest_batch(trial, batch_size // processes, device, processes)
    except Exception:  # whatever else a trial meets: the message is about the memory that ran out
        fits = None
    if fits == 0:
        return not_even_one(error, smallest)
    remedy = "Try a smaller --batch-size." if fits is None else f"Use --batch-size {fits}, which fits by measurement."
    return DeviceError(f"A batch of {batch_size:,} images does not fit in memory ({first_line(error)}).", remedy=remedy)


def largest_batch(trial: Trial, below: int, device: torch.device, processes: int = 1, *, rounded: bool = True) -> int:
    """Most images, under `below`, of which a batch fits in the memory that is free now; 0 where not even one does.

    Args:
        trial: computes so many images.
        below: a number of images that does not fit, or is not wanted.
        device: where it computes.
        processes: that compute at the same time; on a CPU they share the machine's memory.
        rounded: down to two digits.
    """
    release_memory()
    small = None
    for _ in range(2 if below > 2 else 0):  # the first may allocate what is then kept
        small = peak_or_none(trial, 2, device)
    if small is None:
        return int(below > 1 and peak_or_none(trial, 1, device) is not None)
    large = peak_or_none(trial, 4, device) if below > 4 else None
    if large is None:
        return 2
    room = SHARE * free_bytes(device) / (processes if device.type == "cpu" else 1)
    tried, each = 4, max((large - small) / 2, 1)
    count = min(below - 1, int(4 + max(0, room - large) / each))
    took = 0.0
    while 2 * tried <= count and (device.type != "cpu" or took < LONGEST):
        began = time.monotonic()
        peak = peak_or_none(trial, 2 * tried, device)
        if peak is None:
            count = tried if device.type == "cpu" else 2 * tried - 1
            break
        took = time.monotonic() - began
        tried, each, large = 2 * tried, max((peak - large) / tried, each), peak
        count = min(below - 1, int(tried + max(0, room - large) / each))
    count = _rounded(count) if rounded else count
    # On a GPU a trial takes a moment: the number that is named was seen to fit.
    while device.type != "cpu" and count > 4 and peak_or_none(trial, count, device) is None:
        count = max(4, count * 3 // 4)
        count = _rounded(count) if rounded else count
    return count


def on_halves(run: Callable[..., torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    """`run` on a batch, or on its halves where memory does not hold it; the results in order, on the CPU.

    Args:
        run: images of a batch in any number to as many results, on the CPU.
        parts: its arguments, of equal length.

    Raises:
        DeviceError: when not even one image fits in memory.
    """
    try:
        return run(*parts)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(parts[0]) == 1:
            raise not_even_one(error, smallest=SMALLER_MODEL) from error
        traceback.clear_frames(error.__traceback__)
    release_memory()  # outside the handler: the traceback holds the failed batch's tensors
    half = len(parts[0]) // 2
    return torch.cat([on_halves(run, *(part[:half] for part in parts)), on_halves(run, *(p[half:] for p in parts))])


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still allocate, of a GPU's memory or of the machine's."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return max(0, min(_machine_limits()))


def _machine_limits() -> Iterator[int]:
    """Free memory of the machine, and what `ulimit -v` and the control group leave of it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # without a limit the file holds the word "max"
        group = Path("/sys/fs/cgroup")
        yield int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())


def peak_or_none(trial: Trial, count: int, device: torch.device) -> int | None:
    """Most bytes at once that `count` images take on the device; None where they do not fit."""
    counter = _Counter(device)
    try:
        with torch.compiler.set_stance("force_eager"), counter:  # compiling for one size takes minutes
            trial(count)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
    else:
        return counter.most
    release_memory()
    return None


class _Counter(TorchDispatchMode):
    """Bytes of the tensors that operators make on a device within the block, and the most that lived at once."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.now = self.most = 0
        self._device, self._known = device, weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._known.update(self._storages((args, kwargs)))
        made = func(*args, **(kwargs or {}))
        for storage in self._storages(made):
            if storage not in self._known:
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return made

    def _storages(self, values: Any) -> list[torch.UntypedStorage]:
        tensors = (value for value in tree_leaves(values) if isinstance(value, torch.Tensor))
        return [tensor.untyped_storage() for tensor in tensors if tensor.device.type == self._device.type]

    def _change(self, by: int) -> None:
        self.now += by
        self.most = max(self.most, self.now)


def _rounded(count: int) -> int:
    """The two leading digits of it."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


def release_memory() -> None:
    """Give what nobody uses any more back to the device or the system."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no GPU
