"""Times of several sides of a comparison, taken in turn in one process.

Machines drift: clocks fall, neighbours come and go. So every round runs each side once, in a new random order, and
what counts is the ratio of two sides within a round. The interval of a median comes from order statistics, which
assume nothing of the distribution. One side runs twice under two names; where these two differ by more than 2 %, the
machine was too noisy to believe anything else of that measurement.

A side and its twin do the same, so that the median of their ratio comes to 1 as rounds are added, however noisy the
machine: a control that fails says that there were too few rounds for the noise. So rounds are added until it holds, as
far as there is time (`retries`), and may end once it is sure to hold (`settle`). Neither looks at any other side.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

CONTROL_BAND = (0.98, 1.02)
CONFIDENCE = 0.95
TWIN = " (again)"
LEAST_ROUNDS = 3
SETTLED_ROUNDS = 30


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way of doing the work.

    Attributes:
        name: unique among the sides of a measurement.
        run: does the work once.
        note: what it is, for the table.
    """

    name: str
    run: Callable[[], None]
    note: str = ""


@dataclass(frozen=True)
class Ratio:
    """Median of a ratio per round, and the interval of that median (infinite ends where the rounds are too few)."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """JSON form; None for an end that is not known."""
        ends = {"low": self.low, "high": self.high}
        return {"median": self.median} | {k: v if math.isfinite(v) and v > 0 else None for k, v in ends.items()}


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of every side, round by round; `control` names the side that also ran as its own twin."""

    seconds: Mapping[str, list[float]]
    control: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, slow: str, fast: str) -> Ratio:
        """How many times longer `slow` took than `fast`."""
        return median_interval([a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)])

    def quantiles(self, name: str) -> tuple[float, float, float]:
        """Seconds at 20, 50 and 80 % of the rounds."""
        low, middle, high = (quantile(self.seconds[name], q) for q in (0.2, 0.5, 0.8))
        return low, middle, high

    @property
    def control_ratio(self) -> Ratio | None:
        """A side against its twin: 1 on a quiet machine; None without a twin."""
        return self.ratio(self.control, self.control + TWIN) if self.control else None

    @property
    def trustworthy(self) -> bool:
        """Whether the control's median lies within 0.98-1.02."""
        control = self.control_ratio
        return control is not None and CONTROL_BAND[0] <= control.median <= CONTROL_BAND[1]

    @property
    def settled(self) -> bool:
        """Whether the whole interval of the control's ratio lies within the band, after 30 rounds at least."""
        control = self.control_ratio if self.rounds >= SETTLED_ROUNDS else None
        return control is not None and CONTROL_BAND[0] <= control.low and control.high <= CONTROL_BAND[1]

    @property
    def rounds(self) -> int:
        """How often every side ran."""
        return min(map(len, self.seconds.values()))

    def to_dict(self) -> dict[str, Any]:
        """JSON form: quantiles, all seconds, and the control."""
        control = self.control_ratio
        return {
            "sides": {
                name: {
                    "seconds_p20_p50_p80": self.quantiles(name),
                    "rounds": len(seconds),
                    "seconds": [round(s, 6) for s in seconds],
                }
                for name, seconds in self.seconds.items()
            },
            "control": None if control is None else {"side": self.control, **control.to_dict()},
            "control_passed": self.trustworthy,
            "rounds": self.rounds,
            "failures": dict(self.failures),
        }


def measure(
    sides: Sequence[Side],
    *,
    rounds: int,
    warmup: int = 1,
    budget_seconds: float = math.inf,
    control: str = "",
    retries: int = 0,
    settle: bool = False,
    synchronise: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> Timings:
    """Run all sides in turn.

    Args:
        sides: what to compare; one that raises in its warm-up is left out and listed in `failures`.
        rounds: how often each side runs. Fewer when the budget is spent, but at least three.
        warmup: untimed runs of each side first (compilation, caches, choice of algorithms).
        budget_seconds: of the timed rounds.
        control: name of the side that runs a second time in every round, as its own twin.
        retries: how often as many rounds, and as much time, are added while the control fails.
        settle: end as soon as the control is sure to hold, after 30 rounds at least, and retry until it is.
        synchronise: waits for the device.
        clock: seconds.
        seed: of the order within a round.

    Raises:
        ValueError: when two sides share a name, or all of them fail.
    """
    if len({side.name for side in sides}) != len(sides):
        raise ValueError(f"Sides need distinct names, got {[side.name for side in sides]}.")
    usable, failures = _warm_up(sides, warmup, synchronise)
    if not usable:
        raise ValueError(f"Every side failed: {failures}. Run one by itself to see why.")
    control = control if control in usable else ""
    entries = list(usable.items()) + ([(control + TWIN, usable[control])] if control else [])
    timings = Timings(seconds={name: [] for name, _ in entries}, control=control, failures=failures)
    plan = _Plan(rounds, budget_seconds, retries if control else 0, settle)
    order, started = random.Random(seed), clock()
    while plan.goes_on(timings, clock() - started):
        order.shuffle(entries)
        for name, run in entries:
            timings.seconds[name].append(_time(run, synchronise, clock))
    return timings


@dataclass
class _Plan:
    """How many rounds are wanted, and for how long; both grow while there are retries."""

    rounds: int
    seconds: float
    retries: int
    settle: bool

    def __post_init__(self) -> None:
        self.more = self.rounds, self.seconds

    def goes_on(self, timings: Timings, elapsed: float) -> bool:
        """Whether another round is to be made."""
        done = timings.rounds
        if done < LEAST_ROUNDS:
            return True
        if self.settle and done % 10 == 0 and timings.settled:
            return False
        if done < self.rounds and elapsed * (done + 1) / done <= self.seconds:
            return True
        if not self.retries or (timings.settled if self.settle else timings.trustworthy):
            return False
        self.rounds, self.seconds = done + self.more[0], elapsed + self.more[1]
        self.retries -= 1
        return True


def _warm_up(
    sides: Sequence[Side], warmup: int, synchronise: Callable[[], None]
) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    usable, failures = {}, {}
    for side in sides:
        try:
            for _ in range(warmup):
                side.run()
            synchronise()
        except Exception as error:  # a side that cannot run (memory, a missing compiler) must not cost the others
            failures[side.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        else:
            usable[side.name] = side.run
    return usable, failures


def _time(run: Callable[[], None], synchronise: Callable[[], None], clock: Callable[[], float]) -> float:
    synchronise()
    started = clock()
    run()
    synchronise()
    return clock() - started


def quantile(values: Sequence[float], q: float) -> float:
    """Quantile in [0, 1] by linear interpolation."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """Median and its distribution-free interval.

    The k-th smallest and k-th largest of n values enclose the median with probability 1 - 2 P(Bin(n, 1/2) < k); the
    largest k that keeps `confidence` is taken. Below six values there is none for 95 %.
    """
    ordered, n = sorted(values), len(values)
    k, term, tail = 0, 1, 0  # in units of 2^-n, exactly
    while k < n // 2:
        tail += term
        if 1 - 2 * tail / 2**n < confidence:
            break
        term, k = term * (n - k) // (k + 1), k + 1
    low, high = (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)
    return Ratio(quantile(ordered, 0.5), low, high)
