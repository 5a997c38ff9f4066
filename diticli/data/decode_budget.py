"""How many pixels one process decodes at a time.

Each picture is bounded by itself, but threads that all meet large ones would add up: a few hundred bytes of
file can stand for gigabytes of pixels. Small pictures never wait.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

SMALL = 2**21
"""Pictures of at most this many pixels need no room: dozens of them are less than one large one."""


class DecodeBudget:
    """Room for `pixels` pixels, shared by the threads of a process; a forked child begins with all of it.

    Args:
        pixels: a picture larger than this is decoded alone.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._restart()
        _budgets.add(self)

    @contextmanager
    def reserve(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for a picture, and keep it within this context."""
        if pixels <= SMALL:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + pixels <= self.pixels)
            self._taken += pixels
        try:
            yield
        finally:
            _give_back()
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()

    def _restart(self) -> None:
        self._taken = 0
        self._changed = threading.Condition()


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps it in an arena for each thread, where the others cannot use it."""
    if _trim is not None:
        _trim(0)


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_budgets: weakref.WeakSet[DecodeBudget] = weakref.WeakSet()


def _after_fork() -> None:
    # The threads that had taken room are not in the child, nor will they give their lock back there.
    for budget in list(_budgets):
        budget._restart()


os.register_at_fork(after_in_child=_after_fork)
