"""Progress as plain lines in a log."""

from __future__ import annotations

import time
from typing import TextIO

from diticli.reading import printable

LINE_SECONDS = 15.0


class LineReporter:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._title, self._unit, self._shown = "", "", ""
        self._total: int | None = None
        self._done = self._earlier = 0
        self._began = self._printed = 0.0
        self._said: tuple[int, str] | None = None

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """See `Reporter.start`."""
        self.finish()
        self._title, self._total, self._unit, self._shown = printable(title), total, unit, ""
        self._done = self._earlier = done
        self._said = None
        self._began = self._printed = time.monotonic()

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""
        now = time.monotonic()
        self._done += amount
        if fields:
            self._shown = "  " + fields_text(fields)
        if now - self._printed >= LINE_SECONDS:
            self._printed = now
            self._line(now)

    def expect(self, total: int) -> None:
        """See `Reporter.expect`."""
        self._total = total

    def finish(self) -> None:
        """See `Reporter.finish`."""
        now = time.monotonic()
        if self._title and now - self._began >= 1.0 and self._said != (self._done, self._shown):
            self._line(now)
        self._title = ""

    def note(self, message: str) -> None:
        """See `Reporter.note`."""
        self._say(printable(message))

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        self._say(f"Warning: {printable(message)}")

    def _line(self, now: float) -> None:
        self._said = self._done, self._shown
        seconds = max(now - self._began, 1e-9)
        rate = (self._done - self._earlier) / seconds
        of = f"/{self._total:,}" if self._total else ""
        left = (self._total - self._done) / rate if self._total and rate else 0.0
        ending = f", {_clock(left)} left" if left > 0 else f" in {_clock(seconds)}"
        self._say(f"{self._title}: {self._done:,}{of} {self._unit}, {rate_text(rate, self._unit)}{self._shown}{ending}")

    def _say(self, line: str) -> None:
        self.stream.write(line + "\n")


def rate_text(rate: float, unit: str, plural: str = "") -> str:
    """Units a second; seconds a unit where that is less than one."""
    if rate >= 1 or not rate:
        return f"{rate:,.0f}{plural}/s"
    return f"{1 / rate:,.{0 if rate < 0.1 else 1}f} s/{unit.removesuffix('s')}"


def fields_text(fields: dict[str, str | float]) -> str:
    """Names and values beside a title."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {printable(str(v))}" for k, v in fields.items())


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
