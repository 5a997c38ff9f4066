"""`--dry-run`: what a run would take, from its settings and a few timed steps."""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from diticli.config import RunConfig
from diticli.data.images import ImageSource
from diticli.distributed import Rank
from diticli.errors import UnreadableImageError
from diticli.models.base_files import load_base
from diticli.models.build import build_unet, new_scheduler
from diticli.models.device import global_generators_kept, gpu_convolutions
from diticli.models.largest_batch import largest_batch
from diticli.models.unet import UNet
from diticli.progress import Reporter, SilentReporter
from diticli.sampling import DEFAULT_STEPS
from diticli.schedule import NoiseSchedule
from diticli.training import samples
from diticli.training.accelerator import make_accelerator, resolve
from diticli.training.advice import budget_warnings, few_pictures, images_notes, learning_rate_note
from diticli.training.batches import DataOrder, MemoryFeed
from diticli.training.images import fits_in_memory, open_source, reading_workers
from diticli.training.loop import StageTrainer
from diticli.training.objectives import NoiseObjective, Objective
from diticli.training.stage import Stage, draw_inputs, fitting, trial_step
from diticli.training.stage_two import STAGE, build_objective, step_views

TIMED_STEPS = 4
WARM_STEPS = 2
MOST_STEPS = 1000
MOST_IMAGES = 1024
"""Of a batch that is tried: more make no GPU faster."""
TENSOR_CORES = 8
"""Batches are multiples of it where they are larger: matrix units work on tiles."""
_FORWARD = 1 / 3
"""Time of a noise estimate in a sample picture, compared with that of training on an image."""
_ESTIMATES = {"base": samples.COUNT * 2 * samples.STEPS, STAGE: samples.COUNT * (samples.STEPS + 2 * DEFAULT_STEPS)}
"""Noise estimates in one sample picture."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage would take."""

    name: str
    images: int
    steps: int
    batch_size: int
    learning_rate: float
    """Of the optimizer at its peak."""
    trained_parameters: int
    frozen_parameters: int
    images_per_second: float
    """Measured on random images, without reading."""
    compile_seconds: float
    """What the first step took beyond the others, where it is compiled; else 0."""
    drawing_seconds: float = 0.0
    """Estimated time of the sample pictures."""
    schedule: str = ""
    """The learning rate over the stage, in words."""
    peak_memory_mb: float = 0.0
    """Largest use seen in its timed steps: of the GPU, or of the whole process until then on a CPU."""
    largest_batch: int | None = None
    """Images, at most `MOST_IMAGES`, of the largest batch that fits in the memory that is free; None: not measured."""

    @property
    def seconds(self) -> float:
        """Estimated duration."""
        return self.images / self.images_per_second + self.compile_seconds + self.drawing_seconds


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run would take."""

    preset: str
    device: str
    precision: str
    compile: bool
    """Whether the step is compiled, in the run as in the timed steps."""
    data: str
    data_images: int
    resolution: int
    chunks: int
    latent_dim: int
    ssl: str
    """Method of the self-supervised loss in stage 2, timed as if it had started; or none."""
    stages: tuple[StagePlan, ...]
    peak_memory_mb: float
    """Largest use seen in the timed steps: of the GPU, or of the whole process on the CPU."""
    reading_seconds: float = 0.0
    """Estimated time that reading the images adds; 0 where it was not measured."""
    amounts: tuple[str, ...] = ()
    """The images of each stage in words, and how to change them."""
    warnings: tuple[str, ...] = ()
    """What makes it likely that the features will be of no use."""

    @property
    def seconds(self) -> float:
        """Estimated duration of all stages, with reading."""
        return sum(stage.seconds for stage in self.stages) + self.reading_seconds


def make_plan(
    config: RunConfig,
    *,
    seconds: float = 0.0,
    reading: bool = True,
    reporter: Reporter | None = None,
    memory: bool = False,
) -> RunPlan:
    """Build the networks, time a few steps of each stage as a run takes them, write nothing.

    Args:
        config: settings.
        seconds: to time each stage for, where the first steps are done sooner; longer is more exact. 0 times a few
            steps however long they take.
        reading: also measure how long reading the images takes.
        reporter: told what is measured, and warned where the step cannot be compiled.
        memory: measure the largest batches that fit.

    Raises:
        DiTiError: as `train` would.
    """
    config = resolve(config)
    accelerator = make_accelerator(config)
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    timed = gpu_convolutions(accelerator.device, dtype, timed=True)
    with timed, global_generators_kept(accelerator.device):
        return _plan(config, accelerator, seconds, reading, reporter, memory)


def _plan(
    config: RunConfig,
    accelerator: Accelerator,
    seconds: float,
    reading: bool,
    reporter: Reporter | None,
    memory: bool,
) -> RunPlan:
    source = open_source(config, reporter)
    stages = [
        _plan_stage(name, objective, frozen, config, accelerator, seconds, reporter, memory)
        for name, objective, frozen in stages_of(config, reporter)
    ]
    layout = config.provisional_layout()
    return RunPlan(
        preset=config.preset,
        device=config.device,
        precision=config.precision,
        compile=config.compile is True,
        data=config.data.source,
        data_images=len(source),
        resolution=config.data.resolution,
        chunks=layout.chunks,
        latent_dim=layout.latent_dim,
        ssl=config.ssl.method if config.ssl.active else "none",
        stages=tuple(stages),
        peak_memory_mb=max(stage.peak_memory_mb for stage in stages),
        reading_seconds=_reading_seconds(config, source, stages) if reading else 0.0,
        amounts=images_notes(config),
        warnings=(*budget_warnings(config), *filter(None, [few_pictures(config, len(source))])),
    )


def stages_of(config: RunConfig, reporter: Reporter | None = None) -> Iterator[tuple[str, Objective, UNet | None]]:
    """Name, objective and frozen base of each stage of a run, with random weights where it would train them."""
    if config.ssl.only:
        unet, scheduler = None, new_scheduler()
    elif config.base_model:
        say = (reporter or SilentReporter()).note
        sizes = {"resolution": config.data.resolution, "channels": config.data.channels}
        unet, scheduler = load_base(config.base_model, say=say, **sizes)
    else:
        unet, scheduler = build_unet(config.unet, config.data.resolution, config.data.channels), new_scheduler()
        yield "base", NoiseObjective(unet, NoiseSchedule.from_scheduler(scheduler)), None
        unet.to("cpu")
    yield STAGE, build_objective(_measured(config), unet, scheduler), unet


def _reading_seconds(config: RunConfig, source: ImageSource, stages: Sequence[StagePlan]) -> float:
    """What reading adds: once where the images are held in memory; on a CPU training and reading share the cores."""
    each = seconds_to_read(source) / reading_workers(config)
    if fits_in_memory(config, source):
        return each * len(source)
    own = 0.0 if config.device == "cpu" else 1.0
    return sum(max(0.0, stage.images * (each - own / stage.images_per_second)) for stage in stages)


def seconds_to_read(source: ImageSource, most: int = 64, limit: float = 1.0) -> float:
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


def _measured(config: RunConfig) -> RunConfig:
    """Settings of the same cost that ask for no measured base."""
    auto = config.chunks.partition == "auto"
    return replace(config, chunks=replace(config.chunks, partition="uniform")) if auto else config


def _plan_stage(
    name: str,
    objective: Objective,
    frozen: UNet | None,
    config: RunConfig,
    accelerator: Accelerator,
    seconds: float,
    reporter: Reporter | None,
    memory: bool,
) -> StagePlan:
    budget = config.stage(name)
    reporter = reporter or SilentReporter()
    if seconds:
        reporter.start(f"Timing stage {name}", None, unit="steps")
    else:
        reporter.note(f"Measuring the speed of stage {name}{' and the largest batch' if memory else ''}.")
    _forget_peak(accelerator.device)
    stage = stage_of(name, objective, config, accelerator)
    with fitting(stage, accelerator)():
        stage = replace(stage, feed=_random_feed(budget.batch_size, config.data.resolution, config.data.channels))
        trainer = StageTrainer(stage, accelerator, compile=config.compile is True, reporter=reporter)
        first, usual = _time_steps(trainer, seconds)
    if seconds:
        reporter.finish()
    peak, trained = _peak_memory_mb(accelerator.device), sum(p.numel() for p in trainer.parameters)
    trainer.release()
    del trainer
    largest = largest_for(stage, accelerator, max(MOST_IMAGES, budget.batch_size)) if memory else None
    rate = budget.batch_size / usual
    pictures = -(-budget.steps // config.sample_every) if config.sample_every and not config.ssl.only else 0
    return StagePlan(
        name=name,
        images=budget.steps * budget.batch_size,
        steps=budget.steps,
        batch_size=budget.batch_size,
        learning_rate=budget.peak_learning_rate,
        trained_parameters=trained,
        frozen_parameters=0 if frozen is None else sum(p.numel() for p in frozen.parameters()),
        images_per_second=rate,
        compile_seconds=max(0.0, first - usual) if config.compile is True else 0.0,
        drawing_seconds=pictures * seconds_of_a_picture(name, rate),
        schedule=learning_rate_note(name, budget),
        peak_memory_mb=peak,
        largest_batch=largest,
    )


def largest_for(stage: Stage, accelerator: Accelerator, most: int) -> int:
    """Images, at most `most`, of the largest global batch of a stage that fits in the memory that is free now.

    0 where not even one image for each process does.
    """
    each = largest_batch(
        functools.partial(trial_step, stage, accelerator),
        most // accelerator.num_processes + 1,
        accelerator.device,
        accelerator.num_processes,
        rounded=False,
    )
    if TENSOR_CORES < each < most // accelerator.num_processes:
        each -= each % TENSOR_CORES
    return each * accelerator.num_processes


def seconds_of_a_picture(stage: str, images_per_second: float) -> float:
    """Seconds to draw one sample picture of a stage that trains at this speed."""
    return _FORWARD * _ESTIMATES[stage] / images_per_second


def _random_feed(images: int, resolution: int, channels: int) -> MemoryFeed:
    shape = (images, resolution, resolution, channels)
    return MemoryFeed(np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8))


def stage_of(name: str, objective: Objective, config: RunConfig, accelerator: Accelerator) -> Stage:
    """A stage of one image that neither reads nor writes."""
    budget = config.stage(name)
    return Stage(
        name=name,
        objective=objective.train(),
        budget=budget,
        feed=_random_feed(1, config.data.resolution, config.data.channels),
        images=budget.batch_size,
        resolution=config.data.resolution,
        channels=config.data.channels,
        seed=0,
        flip=config.data.horizontal_flip,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        sample_every=0,
        checkpoints=Path(),
        identity="",
        views=step_views(config, accelerator) if name == STAGE else None,
    )


def _time_steps(trainer: StageTrainer, seconds: float) -> tuple[float, float]:
    """Seconds of the first step, and of one of the timed steps: `TIMED_STEPS`, or more for at least so many seconds."""
    stage, device = trainer.stage, trainer.accelerator.device
    size = stage.budget.batch_size
    rank = Rank.from_accelerator(trainer.accelerator)
    order = DataOrder(stage.images, size, seed=0)
    noise = stage.noise(rank, size)
    # In a few seconds there is no time for more than one step to warm up, and every step is looked at.
    warm, timed = (1, 1) if seconds else (WARM_STEPS, TIMED_STEPS)
    trainer.gradients.eager_steps = 0  # captured, where they will be, before they are timed
    marks = [time.perf_counter()]
    for images in stage.feed.batches(order, 0, warm + MOST_STEPS, rank, device):
        trainer.train_step(draw_inputs(stage, noise, stage.views, trainer.step, images))
        if seconds:
            trainer.reporter.advance()
        if trainer.step <= warm or (trainer.step - warm) % timed == 0:
            _wait(device)
            marks.append(time.perf_counter())
            if trainer.step > warm and marks[-1] - marks[warm] >= seconds:
                break
    return marks[1] - marks[0], (marks[-1] - marks[warm]) / (trainer.step - warm)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
