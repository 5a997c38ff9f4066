"""Progress of long work: the core calls a `Reporter`, the command line draws it.

The core never prints. A notebook that wants no output passes nothing and gets `SilentReporter`.
"""

from __future__ import annotations

import logging
import warnings
from typing import Protocol


class Reporter(Protocol):
    """Receiver of progress. All methods return at once and never raise."""

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """Begin a task of `total` units (None: unknown), `done` of them earlier; a running task is closed first."""

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """`amount` more units are done; `fields` are shown beside the bar (e.g. loss=0.123)."""

    def expect(self, total: int) -> None:
        """The running task has `total` units after all."""

    def finish(self) -> None:
        """The running task is done."""

    def note(self, message: str) -> None:
        """One line of information, e.g. where a picture was written."""

    def warn(self, message: str) -> None:
        """One line that asks for attention, e.g. images that were skipped."""


class SilentReporter:
    """Discards everything."""

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """See `Reporter.start`."""

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""

    def expect(self, total: int) -> None:
        """See `Reporter.expect`."""

    def finish(self) -> None:
        """See `Reporter.finish`."""

    def note(self, message: str) -> None:
        """See `Reporter.note`."""

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""


class LoggingReporter(SilentReporter):
    """For work that pauses where nobody passes a reporter: notes are logged, warnings become Python's own.

    Python shows notes on stderr unless logging is configured otherwise: without them a program seems to hang.
    """

    def note(self, message: str) -> None:
        """See `Reporter.note`."""
        logging.getLogger(__name__).warning(message)

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        warnings.warn(message, RuntimeWarning, stacklevel=2)


LEAST_SAID = 5.0
"""Seconds from which on it is worth saying how long a task will take."""


def say_duration(reporter: Reporter, what: str, seconds: float) -> None:
    """One line that says how long a task will take, where that is long."""
    if seconds >= LEAST_SAID:
        reporter.note(f"{what}: about {duration(seconds)}.")


def duration(seconds: float) -> str:
    """Roughly, e.g. 40 s, 12 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
