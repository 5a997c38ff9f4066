"""Ctrl-C and SIGTERM as a request: the step in flight finishes, a checkpoint is written, then the run stops."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped on request; everything up to `step` is saved."""

    def __init__(self, stage: str, step: int, steps: int) -> None:
        super().__init__(f"Stopped in stage {stage} at step {step:,} of {steps:,}; everything is saved.")
        self.stage, self.step, self.steps = stage, step, steps


class StopRequest:
    """Context in which the first SIGINT or SIGTERM sets `requested`; a second one interrupts at once.

    Outside the main thread, where signals cannot be handled, it only carries the flag.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

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
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
