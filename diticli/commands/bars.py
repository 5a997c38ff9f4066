"""Progress drawn with rich on a terminal."""

from __future__ import annotations

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

from diticli.commands.reporting import fields_text, rate_text
from diticli.reading import printable

_BAR_WIDTH = 55
"""Columns of numbers, rate and times beside a title."""
_SHORTEST, _LONGEST = 1, 40
"""Columns of the bar itself, which gives way to what is said beside it."""
_ELAPSED = 8
"""Columns of the time since the start, which gives way after the bar."""
_TIMES = 35
"""Columns of a rate, both times, the word between them and the spaces between all."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(
            rate_text(task.speed, task.fields["unit"], f" {task.fields['unit']}") if task.speed else "", style="cyan"
        )


class _Elapsed(TimeElapsedColumn):
    left_out = False

    def render(self, task: Task) -> Text:
        return Text("") if self.left_out else super().render(task)


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
        self._column, self._elapsed = BarColumn(), _Elapsed()
        self._shown = ""

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """See `Reporter.start`."""
        self.finish()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            self._column,
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("{task.fields[shown]}", markup=False),
            self._elapsed,
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=60,
        )
        self._shown = ""
        _drawn.add(self)
        self._bar.start()
        title = _short(printable(title), self.console.width)
        self._bar.add_task(title, total=total, completed=done, unit=unit, shown="")
        self._fit()

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""
        if self._bar is None:
            return
        if fields:
            self._shown = fields_text(fields)
            self._fit()
        self._bar.update(self._bar.task_ids[0], advance=amount, shown=self._shown)

    def expect(self, total: int) -> None:
        """See `Reporter.expect`."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def _fit(self) -> None:
        """Rich would break the words beside a bar before it shortens the bar."""
        if self._bar is not None:
            task = self._bar.tasks[0]
            counts = 2 * len(f"{task.total or 0:.0f}") + 1
            words = sum(map(len, (task.description, task.fields["unit"], self._shown)))
            room = self.console.width - words - counts - _TIMES
            self._elapsed.left_out = room < _SHORTEST
            self._column.bar_width = max(_SHORTEST, min(_LONGEST, room + self._elapsed.left_out * _ELAPSED))

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


def _short(title: str, width: int) -> str:
    """Of a path that would leave the bar no room, the last part: "Reading /data/photos" -> "Reading photos"."""
    verb, _, path = title.partition(" ")
    if len(title) + _BAR_WIDTH <= width or not (last := path.rstrip("/").rpartition("/")[2]):
        return title
    return f"{verb} {last}"
