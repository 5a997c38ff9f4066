"""`--minutes`: as many training images as fit into a time budget, planned from the speed of the run's first seconds.

The plan is part of the run's settings: its config.json keeps it, and a run that goes on keeps to it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate.utils import broadcast_object_list

from diticli.config import RunConfig
from diticli.config_groups import StageConfig
from diticli.data.decode import UnreadableImageError
from diticli.data.images import ImageSource
from diticli.errors import ConfigError
from diticli.progress import Reporter, SilentReporter
from diticli.training import samples
from diticli.training.images import fits_in_memory, open_source, reading_workers
from diticli.training.plan import Plan, make_plan
from diticli.training.stage_two import STAGE

TIMED_SHARE = 0.02
"""Share of the budget that goes to timing each stage."""
CLOSING = 3.0
"""Seconds to save the models."""
DRAWING_SHARE = 0.1
"""Largest share of a stage that sample pictures beyond its last one may take."""
_FORWARD = 1 / 3
"""Time of a noise estimate in a sample picture, compared with that of training on an image."""
_ESTIMATES = {"base": samples.COUNT * 2 * samples.STEPS, STAGE: samples.COUNT * 3 * samples.STEPS}
"""Noise estimates in one sample picture."""


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a run's time is made of.

    Attributes:
        training: stage -> images per second.
        compiling: stage -> seconds of compiling.
        loading: seconds of reading images into memory before the first step.
    """

    training: dict[str, float]
    compiling: dict[str, float]
    loading: float = 0.0


def fit_to_minutes(
    config: RunConfig,
    out: Path,
    *,
    started: float,
    reporter: Reporter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RunConfig:
    """The settings with as many images in each stage as fit into `config.minutes`, or as the run in `out` was planned.

    Args:
        config: resolved settings with `minutes`.
        out: run directory.
        started: when the budget began, by `clock`.
        reporter: is told the plan.
        clock: seconds.

    Raises:
        ConfigError: when the budget is too short to train anything.
        DiTiError: as `diticli.training.run.train` would.
    """
    reporter = reporter or SilentReporter()
    if kept := _kept_plan(config, out):
        return kept
    plan = make_plan(config, seconds=TIMED_SHARE * 60 * config.minutes, reporter=reporter)
    speeds = _speeds(plan, config)
    fitted = within(config, 60 * config.minutes - (clock() - started), speeds)
    # Each process times for itself; all must have one plan.
    shared = [(fitted.base, fitted.features, fitted.sample_every)]
    broadcast_object_list(shared)
    base, features, sample_every = shared[0]
    fitted = replace(fitted, base=base, features=features, sample_every=sample_every)
    stages = ", ".join(
        f"stage {name} {_budget(fitted, name).images:,} images at {rate:,.0f}/s"
        for name, rate in speeds.training.items()
    )
    reporter.note(f"Planned for {config.minutes:g} min: {stages}.")
    return fitted


def within(config: RunConfig, seconds: float, speeds: Speeds) -> RunConfig:
    """The settings with stages that take `seconds` together, in the proportion of their own images.

    Raises:
        ConfigError: when that is less than the last sample pictures and ten steps of each stage take.
    """
    fixed = speeds.loading + CLOSING + sum(speeds.compiling.values())
    drawing = {name: _FORWARD * _ESTIMATES[name] / rate for name, rate in speeds.training.items()}
    if config.sample_every and not config.ssl.only:
        fixed += sum(drawing.values())
    usual = {name: _budget(config, name).images / rate for name, rate in speeds.training.items()}
    left = seconds - fixed
    least = {name: 10 * _budget(config, name).batch_size / rate for name, rate in speeds.training.items()}
    if left < sum(least.values()):
        needed = 60 * config.minutes + sum(least.values()) - left
        raise ConfigError(
            f"{config.minutes:g} minutes are too short: all but training takes {config.minutes * 60 - left:.0f} s.",
            remedy=f"Give at least --minutes {needed / 60 + 0.1:.1f}, a smaller --resolution, or fewer images.",
        )
    stages: dict[str, StageConfig] = {}
    every: list[int] = []
    for name, rate in speeds.training.items():
        budget = _budget(config, name)
        share = left * usual[name] / sum(usual.values())
        steps = max(1, round(share * rate / budget.batch_size))
        stages[name] = replace(budget, images=steps * budget.batch_size)
        pictures = int(DRAWING_SHARE * share / drawing[name])
        every.append(-(-steps // max(1, pictures)))
    return replace(
        config,
        base=stages.get("base", config.base),
        features=stages[STAGE],
        sample_every=max(config.sample_every, *every) if config.sample_every else 0,
    )


def _budget(config: RunConfig, stage: str) -> StageConfig:
    return config.base if stage == "base" else config.features


def _kept_plan(config: RunConfig, out: Path) -> RunConfig | None:
    """The plan of the run that `out` holds, when it has the same budget; what else differs is refused later."""
    try:
        saved = json.loads((out / "config.json").read_bytes())["config"]
        if saved["minutes"] != config.minutes:
            return None
        return replace(
            config,
            base=replace(config.base, images=saved["base"]["images"]),
            features=replace(config.features, images=saved["features"]["images"]),
            sample_every=saved["sample_every"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no run, or a damaged one, which is refused later


def _speeds(plan: Plan, config: RunConfig) -> Speeds:
    source = open_source(config)
    reading = _seconds_to_read(source) / reading_workers(config)
    training = {stage.name: stage.images_per_second for stage in plan.stages}
    loading = 0.0
    if fits_in_memory(config, source):
        loading = reading * len(source)
    elif plan.device == "cpu":  # training and reading share the cores
        training = {name: 1 / (1 / rate + reading) for name, rate in training.items()}
    else:
        training = {name: min(rate, 1 / reading) for name, rate in training.items()}
    compiling = {stage.name: stage.compile_seconds for stage in plan.stages}
    return Speeds(training=training, compiling=compiling, loading=loading)


def _seconds_to_read(source: ImageSource, most: int = 64, limit: float = 1.0) -> float:
    """Seconds of one core to read and decode an image, from images spread over the source."""
    started = time.perf_counter()
    count = 0
    for i in range(0, len(source), -(-len(source) // most)):
        with contextlib.suppress(UnreadableImageError):
            source.load(i)
        count += 1
        if time.perf_counter() - started > limit:
            break
    return (time.perf_counter() - started) / count
