"""Asynchronous copies of tensors between the host and a GPU.

The host never waits here: copies run on a stream of their own, from and into pinned memory, and the stream that
computes waits for their event. On a CPU there is nothing to copy, and everything passes through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

DEPTH = 2
_Item = TypeVar("_Item")


def prefetched(items: Iterator[_Item], depth: int = DEPTH) -> Iterator[_Item]:
    """The same items in the same order, made by a thread up to `depth` ahead; its errors are raised here."""
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(next, items, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, items, end))
            yield item  # type: ignore[misc]  # not `end`
    finally:
        pool.shutdown(cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def upload(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`host` on `device`, without waiting for the device; what computes on the current stream sees it complete."""
    if device.type != "cuda":
        return host.to(device)
    return _pinned(host).to(device, non_blocking=True)


def uploaded(batches: Iterator[torch.Tensor], device: torch.device, depth: int = DEPTH) -> Iterator[torch.Tensor]:
    """The batches on `device`, each copied while earlier ones are computed on.

    Args:
        batches: host tensors; pinned ones are copied as they lie.
        device: a CPU passes them through.
        depth: batches on the device at a time, the one in use included.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
    for batch in batches:
        ahead.append(_send(batch, stream))
        if len(ahead) >= depth:
            yield _receive(*ahead.popleft())
    while ahead:
        yield _receive(*ahead.popleft())


class Download:
    """A copy of a tensor to the host, under way; `wait` returns it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._host = tensor.cpu()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.current_stream(tensor.device).record_event()

    def wait(self) -> torch.Tensor:
        """The tensor on the CPU; waits for this copy alone."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


def fits_in_memory(size: int, device: torch.device, share: float) -> bool:
    """Whether `size` bytes are at most `share` of the memory of a GPU that is free now; never on a CPU."""
    if device.type != "cuda":
        return False
    return size <= share * torch.cuda.mem_get_info(device)[0]


def _pinned(host: torch.Tensor) -> torch.Tensor:
    return host if host.is_pinned() else host.pin_memory()


def _send(batch: torch.Tensor, stream: torch.cuda.Stream) -> tuple[torch.Tensor, torch.cuda.Event]:
    # Allocated on the copying stream: memory of the computing one may still be read by kernels under way.
    with torch.cuda.stream(stream):
        copy = _pinned(batch).to(stream.device, non_blocking=True)
    return copy, stream.record_event()


def _receive(copy: torch.Tensor, arrived: torch.cuda.Event) -> torch.Tensor:
    current = torch.cuda.current_stream(copy.device)
    current.wait_event(arrived)
    copy.record_stream(current)
    return copy
