"""Progress drawn with rich on a terminal, or as plain lines in a log."""

from __future__ import annotations

import time
import weakref

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from diticli.reading import printable

LINE_SECONDS = 15.0
_BAR_WIDTH = 55
"""Columns of numbers, rate and times beside a title."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            _rate(task.speed, task.fields["unit"], f" {task.fields['unit']}") if task.speed else "", style="cyan"
        )


_drawn: weakref.WeakSet[RichReporter] = weakref.WeakSet()


def end_bars() -> None:
    """Draw the live bars for the last time, so that what is written next stays the last line."""
    for shown in list(_drawn):
        shown.finish()


class RichReporter:
    """A live bar with rate, fields and ETA."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._shown = ""

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """See `Reporter.start`."""
        self.finish()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("{task.fields[shown]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=60,
        )
        self._shown = ""
        _drawn.add(self)
        self._bar.start()
        self._bar.add_task(
            _short(printable(title), self.console.width), total=total, completed=done, unit=unit, shown=""
        )

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""
        if self._bar is None:
            return
        if fields:
            self._shown = _fields(fields)
        self._bar.update(self._bar.task_ids[0], advance=amount, shown=self._shown)

    def expect(self, total: int) -> None:
        """See `Reporter.expect`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def finish(self) -> None:
        """See `Reporter.finish`."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, message: str) -> None:
        """See `Reporter.note`."""
        self.console.print(printable(message), markup=False)

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        self.console.print(f"Warning: {printable(message)}", markup=False, style="yellow")


class LineReporter:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
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
            self._shown = "  " + _fields(fields)
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
        self.console.print(printable(message), markup=False)

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        self.console.print(f"Warning: {printable(message)}", markup=False)

    def _line(self, now: float) -> None:
        self._said = self._done, self._shown
        seconds = max(now - self._began, 1e-9)
        rate = (self._done - self._earlier) / seconds
        of = f"/{self._total:,}" if self._total else ""
        left = (self._total - self._done) / rate if self._total and rate else 0.0
        ending = f", {_clock(left)} left" if left > 0 else f" in {_clock(seconds)}"
        self.console.print(
            f"{self._title}: {self._done:,}{of} {self._unit}, {_rate(rate, self._unit)}{self._shown}{ending}",
            markup=False,
        )


def _rate(rate: float, unit: str, plural: str = "") -> str:
    """Units a second; seconds a unit where that is less than one."""
    if rate >= 1 or not rate:
        return f"{rate:,.0f}{plural}/s"
    return f"{1 / rate:,.{0 if rate < 0.1 else 1}f} s/{unit.removesuffix('s')}"


def _short(title: str, width: int) -> str:
    """Of a path that would leave the bar no room, the last part: "Reading /data/photos" -> "Reading photos"."""
    verb, _, path = title.partition(" ")
    if len(title) + _BAR_WIDTH <= width or not (last := path.rstrip("/").rpartition("/")[2]):
        return title
    return f"{verb} {last}"


def _fields(fields: dict[str, str | float]) -> str:
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {printable(str(v))}" for k, v in fields.items())


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
