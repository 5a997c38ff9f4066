"""A stage of a training: its settings, what goes into a step, the learning rate, and whether a batch fits."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from diticli.config_groups import StageConfig
from diticli.distributed import Rank
from diticli.models.largest_batch import batch_fits
from diticli.training.augment import StepViews
from diticli.training.batches import ImageFeed, StepNoise
from diticli.training.objectives import Objective, StepLosses
from diticli.training.pace import Horizon, Pace


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Settings and inputs of one training stage."""

    name: str
    """`base` or `features`."""
    objective: Objective
    budget: StageConfig
    feed: ImageFeed
    images: int
    """Number of distinct images in the feed."""
    resolution: int
    """Their width and height in pixels."""
    channels: int = field(default=3, kw_only=True)
    seed: int
    flip: bool
    log_every: int
    checkpoint_every: int
    sample_every: int
    checkpoints: Path
    identity: str
    """What a checkpoint must agree with to be resumed: a hash of the settings and the data."""
    views: StepViews | None = None
    """Two views of each image, for a self-supervised loss."""
    views_from: int = 0
    """First step (zero-based) that gets views."""
    beta: Callable[[float], float] = field(default=lambda progress: 0.0)
    """KL weight of the features by the share of the steps that is done."""
    before_checkpoint: Callable[[], None] = field(default=lambda: None)
    """Called by all processes before a checkpoint is written, which an error prevents."""
    on_sample: Callable[[int, torch.Tensor], None] = field(default=lambda step, losses: None)
    """Called with the moving average in place, as (step, mean loss per timestep bin)."""
    pace: Pace | None = None
    """The stage's clock, where time is its budget; the steps of `budget` are the first plan."""

    def noise(self, rank: Rank, batch_size: int) -> StepNoise:
        """What the steps of this process draw, for batches of so many images over all processes."""
        return StepNoise(
            seed=self.seed,
            stage=self.name,
            timesteps=self.objective.timesteps,
            batch_size=batch_size,
            flip=self.flip,
            rank=rank,
        )


def draw_inputs(
    stage: Stage,
    noise: StepNoise,
    views: StepViews | None,
    step: int,
    images_BCHW: torch.Tensor,
    whole: Horizon | None = None,
) -> dict[str, torch.Tensor]:
    """Arguments of the stage's objective, by name, for a step (zero-based) with these uint8 images.

    `whole`: the plan of the steps. Default: as many as in the stage's budget.
    """
    objective = stage.objective
    inputs: dict[str, torch.Tensor] = {}
    if objective.timesteps:
        inputs |= zip(("x0_BCHW", "t_B", "noise_BCHW"), noise.draw(step, images_BCHW), strict=True)
    if objective.feature_noise:
        inputs["feature_noise_BD"] = noise.draw_features(step, objective.feature_noise, images_BCHW.device)
        # A scalar on the host: it multiplies tensors of any device without waiting for it.
        inputs["beta"] = torch.tensor(stage.beta((whole or Horizon(stage.budget.steps)).share(step)))
    if views is not None:
        inputs["views_2BCHW"] = views.draw(step, images_BCHW)
    return inputs


def learning_rate(budget: StageConfig, step: int, decay: Horizon | None = None) -> float:
    """Learning rate of step `step` (zero-based): linear warm-up, then constant or cosine to 1 %.

    `decay`: the plan of the steps after the warm-up. Default: as many as in the budget.
    """
    warmup = budget.warmup_steps
    if step < warmup:
        return budget.peak_learning_rate * (step + 1) / (warmup + 1)
    if budget.decay == "constant":
        return budget.peak_learning_rate
    progress = (decay or Horizon(budget.steps, since=warmup)).share(step)
    return budget.peak_learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def fitting(stage: Stage, accelerator: Accelerator) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Context in which a batch of the stage that does not fit is an error with the size of one that does."""
    return functools.partial(
        batch_fits,
        stage.budget.batch_size,
        functools.partial(trial_step, stage, accelerator),
        device=accelerator.device,
        processes=accelerator.num_processes,
    )


def trial_inputs(stage: Stage, count: int, device: torch.device) -> dict[str, torch.Tensor]:
    """`draw_inputs` of the first step for `count` black images, whatever other processes do."""
    images = torch.zeros(count, stage.channels, stage.resolution, stage.resolution, dtype=torch.uint8, device=device)
    views = None if stage.views is None else stage.views.with_batch_size(count)
    return draw_inputs(stage, stage.noise(Rank(), count), views, 0, images)


def trial_step(stage: Stage, accelerator: Accelerator, count: int) -> None:
    """Losses and gradients of `count` black images: no weight changes, and no other process is waited for."""
    objective = stage.objective.to(accelerator.device)
    # As much as the optimizer's two moments and the moving average take.
    kept = [torch.empty_like(p) for p in objective.parameters() if p.requires_grad for _ in range(3)]
    with accelerator.autocast():
        losses = StepLosses.coerce(objective(**trial_inputs(stage, count, accelerator.device)))
    losses.total_B.mean().backward()
    objective.zero_grad(set_to_none=True)
    del kept
