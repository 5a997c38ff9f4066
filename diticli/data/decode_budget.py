"""How many pixels one process decodes at a time.

Each picture is bounded by itself, but threads that all meet large ones would add up: a few hundred bytes of
file can stand for gigabytes of pixels. Small pictures never wait.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

SMALL = 2**21
"""Pictures of at most this many pixels need no budget: dozens of them are less than one large one."""


class _Reserved:
    """Pixels that the threads of one process have reserved."""

    def __init__(self) -> None:
        self.pixels = 0
        self.changed = threading.Condition()


class DecodeBudget:
    """A budget of `pixels` pixels, shared by the threads of a process; a forked child begins with all of it.

    Args:
        pixels: a picture larger than this is decoded alone.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        # The threads that reserved pixels are not in a forked child, nor will they give their lock back there.
        self._reserved: dict[int, _Reserved] = {}

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until the budget has room for a picture, and keep it within this context."""
        if pixels <= SMALL:
            yield
            return
        reserved = self._reserved.setdefault(os.getpid(), _Reserved())
        with reserved.changed:
            reserved.changed.wait_for(lambda: reserved.pixels == 0 or reserved.pixels + pixels <= self.pixels)
            reserved.pixels += pixels
        try:
            yield
        finally:
            _give_back()
            with reserved.changed:
                reserved.pixels -= pixels
                reserved.changed.notify_all()


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps it in an arena for each thread, where the others cannot use it."""
    if trim := _malloc_trim():
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
