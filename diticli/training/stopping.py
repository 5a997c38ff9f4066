"""Ctrl-C and SIGTERM as a request: the step in flight finishes, a checkpoint is written, then the run stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

REPEAT_SECONDS = 1.0
"""Signals this close are one request."""
LAUNCHED_SECONDS = 10.0
"""The same under a launcher: `torchrun` passes on, when it gets to it, what a terminal has already sent to all."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request; everything up to `step` is saved.

    Attributes:
        signal: number of the signal that asked for it.
    """

    def __init__(self, stage: str, step: int, steps: int, number: int = signal.SIGINT) -> None:
        super().__init__(f"Stopped in stage {stage} at step {step:,} of {steps:,}; everything is saved.")
        self.stage, self.step, self.steps, self.signal = stage, step, steps, int(number)


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is remembered; a later one interrupts at once.

    Outside the main thread, where signals cannot be handled, it only carries the request.

    Args:
        agree: what this process was asked (a signal's number, or 0) -> what all processes of the run do.

    Attributes:
        signal: number of the first signal, 0 before.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.signal = 0
        self._agree = agree
        self._since = 0.0
        self._patience = LAUNCHED_SECONDS if os.environ.get("WORLD_SIZE", "1") != "1" else REPEAT_SECONDS
        self._previous: dict[int, Any] = {}

    def now(self) -> int:
        """Number of the signal for which all processes stop after this step, or 0; all must ask at each step."""
        return self._agree(self.signal)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > self._patience:
            raise KeyboardInterrupt
