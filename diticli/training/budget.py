"""`--minutes`: as many training images as fit into a time budget, planned from the speed of the run's first seconds.

The plan is part of the run's settings: its config.json keeps it. While a stage trains, the number of its steps is
planned anew from the speed of the last minutes (`diticli.training.pace`); its checkpoints keep that.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from diticli.config import RunConfig
from diticli.config_groups import StageConfig
from diticli.errors import ConfigError
from diticli.progress import Reporter, SilentReporter, duration
from diticli.reading import read_regular
from diticli.training.images import fits_in_memory, open_source, reading_workers
from diticli.training.pace import Pace
from diticli.training.plan import RunPlan, make_plan, seconds_of_a_picture, seconds_to_read
from diticli.training.rundir import RunDirectory
from diticli.training.stage_two import STAGE

TIMED_SHARE = 0.02
"""Share of the budget that goes to timing each stage."""
CLOSING = 3.0
"""Seconds to save the models."""
DRAWING_SHARE = 0.1
"""Largest share of the time that sample pictures may take."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a run's time is made of.

    Attributes:
        training: stage -> images per second.
        compiling: stage -> seconds of compiling.
        loading: seconds of reading all images into memory before the first step.
        drawing: seconds to draw one of the built-in faces, where these are the data and their number is free.
    """

    training: dict[str, float]
    compiling: dict[str, float]
    loading: float = 0.0
    drawing: float = 0.0


class TooShortError(ConfigError):
    """A budget without time for ten steps of each stage; `minutes` would be enough."""

    def __init__(self, message: str, *, minutes: float) -> None:
        self.minutes = math.ceil(10 * minutes) / 10
        remedy = f"Give at least --minutes {self.minutes:.1f}, or a smaller --batch-size or --resolution."
        super().__init__(message, remedy=remedy)


class TimeBudget:
    """What is left of a run's time, stage by stage.

    Args:
        seconds: for all stages from now on; None: as the checkpoint says that the run goes on from, if there is one.
        planned: stage -> seconds that it would take, in the order of the stages.
        clock: seconds.
    """

    def __init__(
        self, seconds: float | None, planned: dict[str, float], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.planned, self.clock = planned, clock
        self._ends = None if seconds is None else clock() + seconds
        self._last: Pace | None = None

    def pace(self, stage: str) -> Pace:
        """The clock of a stage that begins now."""
        if self._last is None:
            seconds = None if self._ends is None else self._ends - self.clock()
        else:
            seconds = None if self._last.seconds_left is None else self._last.seconds_left + self._last.later
        if seconds is not None:
            names = list(self.planned)
            to_come = [self.planned[name] for name in names[names.index(stage) :]] if stage in names else [1.0]
            own = seconds * to_come[0] / sum(to_come)
            self._last = Pace(own, later=seconds - own, clock=self.clock)
        else:
            self._last = Pace(None, clock=self.clock)
        return self._last


def fit_to_minutes(
    config: RunConfig,
    out: Path,
    *,
    started: float,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[RunConfig, TimeBudget]:
    """The settings with as many images in each stage as fit into `config.minutes`, or as the run in `out` was planned.

    Also the time that is left for them.

    Args:
        config: resolved settings with `minutes`.
        out: run directory.
        started: when the budget began, by `clock`.
        reporter: receives the plan.
        clock: seconds.

    Raises:
        ConfigError: when the budget is too short to train anything.
        DiTiError: as `diticli.training.run.train` would.
    """
    reporter = reporter or SilentReporter()
    if kept := _kept_plan(config, out):
        return kept, TimeBudget(None, {}, clock)
    timed = TIMED_SHARE * 60 * config.minutes
    if timed >= 1:
        fit = f"that tells how many images fit into {config.minutes:g} min"
        reporter.note(f"Each stage is timed for {duration(timed)} first: {fit}.")
    plan = make_plan(config, seconds=timed, reading=False, reporter=reporter)
    speeds = _speeds(plan, config)
    fitted = within(config, 60 * config.minutes - (clock() - started), speeds)
    # Each process times for itself; all must have one plan.
    shared = [(fitted.data, fitted.base, fitted.features, fitted.sample_every)]
    broadcast_object_list(shared)
    data, base, features, sample_every = shared[0]
    fitted = replace(fitted, data=data, base=base, features=features, sample_every=sample_every)
    stages = ", ".join(
        f"stage {name} {_budget(fitted, name).images:,} images at {rate:,.0f}/s"
        for name, rate in speeds.training.items()
    )
    reporter.note(f"Planned for {config.minutes:g} min: {stages}.")
    planned = {
        name: speeds.compiling.get(name, 0.0) + _budget(fitted, name).images / rate
        for name, rate in speeds.training.items()
    }
    return fitted, TimeBudget(60 * config.minutes - (clock() - started) - CLOSING, planned, clock)


def within(config: RunConfig, seconds: float, speeds: Speeds) -> RunConfig:
    """The settings with stages that take `seconds` together, in the proportion of their own images.

    Of built-in faces no more are drawn than the longer stage sees, and sample pictures are left out where they would
    take more than `DRAWING_SHARE` of the time.

    Raises:
        TooShortError: when there is no time for ten steps of each stage.
    """
    rates = speeds.training
    samples_of = {name: seconds_of_a_picture(name, rate) for name, rate in rates.items()}
    sampled = config.sample_every > 0 and sum(samples_of.values()) <= DRAWING_SHARE * seconds
    left = seconds - speeds.loading - CLOSING - sum(speeds.compiling.values()) - sampled * sum(samples_of.values())
    if speeds.drawing:
        # n images of the longer stage take n / rate, and those of them that are new take the time to draw them.
        usual = _shares(config, rates)
        most = max(share * rates[name] for name, share in usual.items())
        left = max(left / (1 + most * speeds.drawing), left - config.data.faces_count * speeds.drawing)
    least = sum(10 * _budget(config, name).batch_size / rate for name, rate in rates.items())
    if left < least:
        raise TooShortError(
            f"--minutes {config.minutes:g} is too short on this machine, busy as it is: ten steps of each stage take "
            f"{least:.0f} s, and starting, timing and saving {60 * config.minutes - left:.0f} s.",
            minutes=1.1 * (60 * config.minutes + least - left) / 60,  # the next try will not be exactly as fast
        )
    stages: dict[str, StageConfig] = {}
    every: list[int] = []
    for name, share in _shares(config, rates).items():
        budget = _budget(config, name)
        steps = max(1, round(left * share * rates[name] / budget.batch_size))
        stages[name] = replace(budget, images=steps * budget.batch_size)
        every.append(-(-steps // max(1, int(DRAWING_SHARE * left * share / samples_of[name]))))
    seen = max(stage.images for stage in stages.values())
    faces = min(config.data.faces_count, seen) if speeds.drawing else config.data.faces_count
    return replace(
        config,
        data=replace(config.data, faces_count=faces),
        base=stages.get("base", config.base),
        features=stages[STAGE],
        sample_every=max(config.sample_every, *every) if sampled else 0,
    )


def _shares(config: RunConfig, rates: dict[str, float]) -> dict[str, float]:
    """Share of the time that each stage would take with its own images."""
    usual = {name: _budget(config, name).images / rate for name, rate in rates.items()}
    return {name: seconds / sum(usual.values()) for name, seconds in usual.items()}


def _budget(config: RunConfig, stage: str) -> StageConfig:
    return config.base if stage == "base" else config.features


def _kept_plan(config: RunConfig, out: Path) -> RunConfig | None:
    """The plan of the run that `out` holds, when it has the same budget; what else differs is refused later.

    Without a checkpoint or a result of that run there is nothing to keep to.
    """
    if not RunDirectory(out).begun:
        return None
    try:
        saved = json.loads(read_regular(out / "config.json"))["config"]
        if saved.get("minutes") != config.minutes:
            return None
        return replace(
            config,
            data=replace(config.data, faces_count=saved["data"]["faces_count"]),
            base=replace(config.base, images=saved["base"]["images"]),
            features=replace(config.features, images=saved["features"]["images"]),
            sample_every=saved["sample_every"],
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # no run, or a damaged one, which is refused later


def _speeds(plan: RunPlan, config: RunConfig) -> Speeds:
    source = open_source(config)
    reading = seconds_to_read(source) / reading_workers(config)
    training = {stage.name: stage.images_per_second for stage in plan.stages}
    loading = drawing = 0.0
    if config.data.source == "faces":
        drawing = reading
    elif fits_in_memory(config, source):
        loading = reading * len(source)
    elif plan.device == "cpu":  # training and reading share the cores
        training = {name: 1 / (1 / rate + reading) for name, rate in training.items()}
    else:
        training = {name: min(rate, 1 / reading) for name, rate in training.items()}
    compiling = {stage.name: stage.compile_seconds for stage in plan.stages}
    return Speeds(training=training, compiling=compiling, loading=loading, drawing=drawing)
