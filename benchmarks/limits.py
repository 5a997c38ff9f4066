"""A limit on the time that a piece of work may take, compiling for instance, within this process."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class OutOfTimeError(BaseException):
    """The work was interrupted. No `Exception`, or compilers would take it for a fault of their own and go on."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the block after so many seconds; at once where there are none.

    Needs the main thread of a Unix process, and does nothing elsewhere. A call into a library is interrupted when it
    comes back.

    Raises:
        OutOfTimeError: where the block was interrupted.
    """
    if seconds <= 0:
        raise OutOfTimeError
    if math.isinf(seconds) or not hasattr(signal, "setitimer") or not _in_main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise OutOfTimeError


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
