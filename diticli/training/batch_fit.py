"""`--batch-size auto`: the largest batch of each stage that fits in memory, measured once and kept in config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from diticli.config import RunConfig
from diticli.memory import not_even_one
from diticli.models.device import global_generators_kept
from diticli.models.largest_batch import SMALLER_NETWORK, release_memory
from diticli.progress import Reporter, SilentReporter
from diticli.reading import read_regular
from diticli.training.accelerator import make_accelerator
from diticli.training.plan import MOST_IMAGES, largest_for, stage_of, stages_of
from diticli.training.rundir import RunDirectory
from diticli.training.stage_two import STAGE


def fit_batches(config: RunConfig, out: Path, *, reporter: Reporter | None = None) -> RunConfig:
    """The settings with the largest batches that fit in the memory that is free now, or with those of the run in `out`.

    Args:
        config: resolved settings with `fit_batch`.
        out: run directory.
        reporter: receives a note of each batch.

    Raises:
        DeviceError: when not even one image fits.
        DiTiError: as `diticli.training.run.train` would.
    """
    reporter = reporter or SilentReporter()
    if (kept := _kept(config, out)) is not None:
        return kept
    accelerator = make_accelerator(config)
    with global_generators_kept(accelerator.device):
        own = dict(_measured(config, accelerator))
    # Each process measures its own GPU; all must have one batch.
    sizes = {name: min(each[name] for each in gather_object([own])) for name in own}
    if 0 in sizes.values():  # said by all processes
        raise not_even_one(MemoryError("a step of one image was tried"), SMALLER_NETWORK)
    for name, size in sizes.items():
        given = config.stage(name)
        config = _with_batch(config, name, size)
        change = f", with a learning rate of {config.stage(name).peak_learning_rate:g} instead of "
        change += f"{given.peak_learning_rate:g} at the preset's {given.batch_size}"
        reporter.note(f"Batch of stage {name}: {size:,} images{change if size != given.batch_size else ''}.")
    return config


def _most(config: RunConfig, name: str) -> int:
    """Images that a batch is tried with at most: on a CPU as many as in the settings, for more make it no faster."""
    given = config.stage(name).batch_size
    return max(MOST_IMAGES, given) if config.device.startswith("cuda") else given


def _measured(config: RunConfig, accelerator: Accelerator) -> Iterator[tuple[str, int]]:
    """Name and largest batch of each stage."""
    for name, objective, _ in stages_of(config):
        stage = stage_of(name, objective, config, accelerator)
        yield name, largest_for(stage, accelerator, _most(config, name))
        del stage, objective
        release_memory()


def _kept(config: RunConfig, out: Path) -> RunConfig | None:
    """The batches of the run that `out` holds; None without a checkpoint or a result of it."""
    if not RunDirectory(out).begun:
        return None
    try:
        saved = json.loads(read_regular(out / "config.json"))["config"]
        for name in ("base", STAGE):
            config = _with_batch(config, name, saved[name]["batch_size"])
        return config
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # no run, or a damaged one, which is refused later


def _with_batch(config: RunConfig, name: str, size: int) -> RunConfig:
    stage = replace(config.stage(name), batch_size=size)
    return replace(config, base=stage) if name == "base" else replace(config, features=stage)
