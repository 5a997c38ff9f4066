"""`--dry-run`: what a run would take, from its settings and a few timed steps."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from diticli.config import RunConfig
from diticli.models.build import build_unet, new_scheduler
from diticli.models.unet import load_base
from diticli.schedule import NoiseSchedule
from diticli.training.batches import Share, StepNoise
from diticli.training.loop import draw_inputs
from diticli.training.objectives import NoiseObjective, Objective, StepLosses
from diticli.training.run import make_accelerator, open_source, resolve
from diticli.training.stage_two import STAGE, build_objective, step_views

TIMED_STEPS = 4
WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage would take."""

    name: str
    images: int
    steps: int
    batch_size: int
    learning_rate: float
    trained_parameters: int
    frozen_parameters: int
    images_per_second: float
    """Measured on random images, without reading."""

    @property
    def seconds(self) -> float:
        """Estimated duration."""
        return self.images / self.images_per_second


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would take."""

    preset: str
    device: str
    precision: str
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

    @property
    def seconds(self) -> float:
        """Estimated duration of all stages."""
        return sum(stage.seconds for stage in self.stages)


def make_plan(config: RunConfig) -> Plan:
    """Build the networks, time a few steps of each stage, write nothing.

    Raises:
        DiTiError: as `train` would.
    """
    config = resolve(config)
    accelerator = make_accelerator(config)
    source = open_source(config)
    layout = config.layout()
    stages = []
    if config.ssl.only:
        unet, scheduler = None, new_scheduler()
    elif config.base_model:
        unet, scheduler = load_base(config.base_model, resolution=config.data.resolution)
    else:
        unet, scheduler = build_unet(config.unet, config.data.resolution), new_scheduler()
        base = NoiseObjective(unet, NoiseSchedule.from_scheduler(scheduler))
        stages.append(_time_stage("base", base, config, accelerator))
    stages.append(_time_stage(STAGE, build_objective(config, unet, scheduler, accelerator), config, accelerator))
    return Plan(
        preset=config.preset,
        device=config.device,
        precision=config.precision,
        data=config.data.source,
        data_images=len(source),
        resolution=config.data.resolution,
        chunks=layout.chunks,
        latent_dim=layout.latent_dim,
        ssl=config.ssl.method if config.ssl.active else "none",
        stages=tuple(stages),
        peak_memory_mb=_peak_memory_mb(accelerator.device),
    )


def _time_stage(name: str, objective: Objective, config: RunConfig, accelerator: Accelerator) -> StagePlan:
    budget = config.base if name == "base" else config.features
    objective.to(accelerator.device).train()
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.0, fused=True)
    local = budget.batch_size // accelerator.num_processes
    shape = (local, 3, config.data.resolution, config.data.resolution)
    images = torch.randint(256, shape, dtype=torch.uint8, device=accelerator.device)
    views = step_views(config, accelerator) if name == STAGE else None
    noise = StepNoise(
        seed=0,
        stage=name,
        timesteps=objective.timesteps,
        batch_size=budget.batch_size,
        flip=config.data.horizontal_flip,
        share=Share(rank=accelerator.process_index, world=accelerator.num_processes),
    )
    for step in range(WARM_STEPS + TIMED_STEPS):
        if step == WARM_STEPS:
            _wait(accelerator.device)
            started = time.perf_counter()
        with accelerator.autocast():
            losses = StepLosses.of(objective(**draw_inputs(objective, noise, views, step, images)))
        losses.total_B.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    _wait(accelerator.device)
    seconds = time.perf_counter() - started
    return StagePlan(
        name=name,
        images=budget.steps * budget.batch_size,
        steps=budget.steps,
        batch_size=budget.batch_size,
        learning_rate=budget.peak_learning_rate,
        trained_parameters=_count(objective, trained=True),
        frozen_parameters=_count(objective, trained=False),
        images_per_second=TIMED_STEPS * budget.batch_size / seconds,
    )


def _count(module: nn.Module, *, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad == trained)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
