"""Holding a stage to its time: its number of steps is planned anew while it trains, and the learning rate follows.

A plan is a function of the step: weights and learning rates depend on when the clock was read only by the numbers of
steps that came of it, and checkpoints keep these. A run that goes on therefore continues the plan that it had.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diticli.reading import quoted
from diticli.training.checkpoint import MAX_STEP

CHECKS = 20
"""The next look at the clock comes after one in so many of the steps that are left."""
WINDOW = 0.1
"""Share of a stage's time over which its speed is measured."""
MIN_CHANGE = 0.01
"""A plan stays while the steps that are left differ from it by no more than this share, or by a single one."""


@dataclass(frozen=True)
class Horizon:
    """How much of a stage is done at a step, when the number of its steps may have changed on the way.

    Attributes:
        steps: planned steps of the stage.
        since: step of the last change, or the one from which on is counted.
        done: share that was done then.
    """

    steps: int
    since: float = 0.0
    done: float = 0.0

    def share(self, step: int) -> float:
        """Share that is done at `step`: `done` at `since`, 1 at `steps`, linear between them."""
        return self.done + (1 - self.done) * ((step - self.since) / max(self.steps - self.since, 1))

    @classmethod
    def restored(cls, saved: Any) -> Horizon:
        """From the values of a checkpoint.

        Raises:
            ValueError: when they are no plan.
        """
        steps, since, done = saved
        if (
            type(steps) is not int
            or not 1 <= steps <= MAX_STEP
            or not _finite(since) >= 0
            or not 0 <= _finite(done) <= 1
        ):
            raise ValueError(f"its plan is {quoted(saved)}")
        return cls(steps, since, done)

    def moved(self, step: int, steps: int) -> Horizon:
        """The plan from `step` on with another number of steps; what is done stays done."""
        if step <= self.since:
            return replace(self, steps=steps)
        return Horizon(steps, step, self.share(step))


class Pace:
    """Clock of one stage: how many steps fit into its time.

    Args:
        seconds: for the stage from now on; None: no plan is changed until a checkpoint brings its own.
        later: seconds that are kept for stages after it.
        clock: seconds.
    """

    def __init__(
        self, seconds: float | None, *, later: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.seconds, self.later, self.clock = seconds, later, clock
        self._began = clock()
        self._apart = self._longest = 0.0
        self._first: int | None = None
        self._next = 0
        self._marks: list[tuple[int, float]] = []

    @property
    def seconds_left(self) -> float | None:
        """Of the stage's time; None without a budget."""
        return None if self.seconds is None else self.seconds - self._active()

    def due(self, step: int) -> bool:
        """Whether the clock is read after `step` steps; the same on all processes."""
        if self._first is None:
            self._first, self._next = step - 1, step  # the first step may compile: time counts from its end
        return self.seconds is not None and step >= self._next

    def plan(self, step: int, steps: int) -> int:
        """Number of steps in all that fit into the time, after `step` of `steps`."""
        busy = self._active() - self._apart
        self._marks.append((step, busy))
        left = (self.seconds_left or 0.0) - self._longest
        window = min(WINDOW * (self.seconds or 0.0), left)
        while len(self._marks) > 2 and busy - self._marks[1][1] >= window:
            self._marks.pop(0)
        (earlier, then), began = self._marks[0], self._first or 0
        if step == earlier:
            return steps
        each = (busy - then) / (step - earlier) + self._apart / (step - began)
        fitting = step + max(0, int(left / each)) if each > 0 else steps
        return fitting if abs(fitting - steps) > max(1, MIN_CHANGE * (steps - step)) else steps

    def planned(self, step: int, steps: int) -> None:
        """Keep to `steps` until the next look at the clock."""
        self._next = step + max(1, (steps - step) // CHECKS)

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What is no step: sample pictures and checkpoints."""
        began = self.clock()
        yield
        self._apart += (took := self.clock() - began)
        self._longest = max(self._longest, took)

    def _active(self) -> float:
        return self.clock() - self._began

    def to_dict(self) -> dict[str, Any] | None:
        """JSON form, for a checkpoint."""
        if self.seconds is None:
            return None
        return {
            "seconds": self.seconds,
            "later": self.later,
            "active": self._active(),
            "apart": self._apart,
            "longest": self._longest,
            "first": self._first,
            "next": self._next,
            "marks": self._marks,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on as the stage stood when `saved` was made; the time since then does not count.

        Raises:
            ValueError, KeyError, TypeError: when `saved` is no state of a clock.
        """
        times = {key: _finite(saved[key]) for key in ("seconds", "later", "active", "apart", "longest")}
        marks = [(_count(step), _finite(busy)) for step, busy in saved["marks"]]
        following, first = _count(saved["next"]), None if saved["first"] is None else _count(saved["first"])
        self.seconds, self.later, self._began = times["seconds"], times["later"], self.clock() - times["active"]
        self._apart, self._longest = times["apart"], times["longest"]
        self._first, self._next, self._marks = first, following, marks


def _finite(value: Any) -> float:
    """A number of a file.

    Raises:
        ValueError: when it is none, or not finite.
    """
    if type(value) not in (int, float) or not abs(value) <= MAX_STEP:
        raise ValueError(f"its clock holds {quoted(value)}")
    return value


def _count(value: Any) -> int:
    """A number of steps of a file.

    Raises:
        ValueError: when it is none.
    """
    if type(value) is not int or not 0 <= value <= MAX_STEP:
        raise ValueError(f"its clock holds the step {quoted(value)}")
    return value
