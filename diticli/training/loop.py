"""The training loop of both stages. It knows an objective, a feed and a budget, and nothing of the method."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from diticli.config_groups import StageConfig
from diticli.errors import TrainingDivergedError
from diticli.progress import Reporter, SilentReporter
from diticli.training.augment import StepViews
from diticli.training.batches import DataOrder, ImageFeed, Share, StepNoise, fold_seed
from diticli.training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    list_checkpoints,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from diticli.training.compilation import compiler_for
from diticli.training.journal import Journal
from diticli.training.objectives import Objective, StepLosses
from diticli.training.stopping import StopRequest, TrainingInterrupted
from diticli.training.totals import Totals


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's work order."""

    name: str
    """`base` or `features`."""
    objective: Objective
    budget: StageConfig
    feed: ImageFeed
    images: int
    """Number of distinct images in the feed."""
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
    price: Callable[[float], float] = field(default=lambda progress: 0.0)
    """Price of a nat in the features by the share of the steps that is done."""
    on_sample: Callable[[int, torch.Tensor], None] = field(default=lambda step, losses: None)
    """Called with the moving average in place, as (step, mean loss per time-step bin)."""


class StageTrainer:
    """State of a stage in progress: weights, moving average, optimizer and running totals.

    Args:
        stage: what is trained.
        accelerator: device, precision and processes.
        compile: compile the parts of the objective; their weights keep their names.
        reporter: told where that fails.
    """

    def __init__(
        self, stage: Stage, accelerator: Accelerator, *, compile: bool = False, reporter: Reporter | None = None
    ) -> None:
        self.stage, self.accelerator = stage, accelerator
        self.step = 0
        self.parameters = [p for p in stage.objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=stage.budget.peak_learning_rate, fused=True)
        stage.objective.to(accelerator.device)
        self.averaged = [p for m in stage.objective.trained_modules().values() for p in m.parameters()]
        self.ema = EMAModel(self.averaged, decay=stage.budget.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        if compile:
            stage.objective.compile_parts(compiler_for(reporter or SilentReporter()))
        with warnings.catch_warnings():  # torch 2.13 has another name for it, older ones have not
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            self.module, self.optimizer = accelerator.prepare(stage.objective, self.optimizer)
        self.totals = Totals(accelerator, stage.objective.timesteps)

    def resume(self) -> bool:
        """Go on from the newest checkpoint of this stage, if there is one."""
        found = list_checkpoints(self.stage.checkpoints)
        if not found:
            return False
        checkpoint = load_checkpoint(found[-1])
        if checkpoint.state["stage"] != self.stage.name:
            return False
        _check_identity(checkpoint, self.stage, found[-1])
        named = self._state()
        with torch.no_grad():
            for name, value in checkpoint.tensors["weights"].items():
                named[name].copy_(value)
            for i, shadow in enumerate(self.ema.shadow_params):
                shadow.copy_(checkpoint.tensors["ema"][str(i)])
        restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
        self.ema.optimization_step = checkpoint.state["ema_step"]
        self.totals.restore(checkpoint.tensors["totals"])
        self.step = checkpoint.state["step"]
        return True

    def _state(self) -> dict[str, torch.Tensor]:
        """All that training changes in the objective: parameters and buffers, such as those of batch norm."""
        frozen = {name for name, p in self.stage.objective.named_parameters() if not p.requires_grad}
        return {name: v for name, v in self.stage.objective.state_dict().items() if name not in frozen}

    def save(self) -> None:
        """Write a checkpoint of this moment, by the main process; all of them must ask for it."""
        totals = self.totals.state()
        if not self.accelerator.is_main_process:
            return
        tensors = {
            "weights": self._state(),
            "ema": {str(i): p for i, p in enumerate(self.ema.shadow_params)},
            "optimizer": flatten_optimizer(self.optimizer),
            "totals": totals,
        }
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "images": self.step * self.stage.budget.batch_size,
            "ema_step": self.ema.optimization_step,
            "identity": self.stage.identity,
        }
        save_checkpoint(self.stage.checkpoints, Checkpoint(tensors, state))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The moving average in place of the weights, and eval mode, within the block."""
        modes = {m: m.training for m in self.stage.objective.modules()}
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        self.stage.objective.eval()
        try:
            yield
        finally:
            self.ema.restore(self.averaged)
            for module, mode in modes.items():
                module.training = mode

    def train_step(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """One optimizer step; adds to the totals without waiting for the device.

        Args:
            inputs: arguments of the objective by name.
        """
        budget = self.stage.budget
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(budget, self.step)
        with self.accelerator.autocast():
            losses = StepLosses.of(self.module(**inputs))
        self.accelerator.backward(losses.total_B.mean())
        if budget.grad_clip:
            self.accelerator.clip_grad_norm_(self.parameters, budget.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.averaged)
        self.step += 1
        self.totals.add(losses, inputs.get("t_B"))

    def take_mean_loss(self) -> float:
        """Mean loss since the last call, over all processes.

        Raises:
            TrainingDivergedError: when it is NaN or infinite.
        """
        mean = self.totals.take_mean()
        if not math.isfinite(mean):
            raise TrainingDivergedError(
                f"The loss of stage {self.stage.name} became {mean} by step {self.step:,}.",
                remedy="The last good checkpoint is kept. Lower the learning rate (--lr) or use --precision fp32; "
                "with other settings the run needs a new --out.",
            )
        return mean


def run_stage(trainer: StageTrainer, journal: Journal, reporter: Reporter, stop: StopRequest) -> None:
    """Train to the end of the budget; leaves the moving average in the weights.

    Raises:
        TrainingInterrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        TrainingDivergedError: when the loss is no number any more.
    """
    stage, accelerator = trainer.stage, trainer.accelerator
    share = Share(rank=accelerator.process_index, world=accelerator.num_processes)
    budget = stage.budget
    order = DataOrder(stage.images, budget.batch_size, fold_seed(stage.seed, stage.name, "order"))
    noise = StepNoise(
        seed=stage.seed,
        stage=stage.name,
        timesteps=stage.objective.timesteps,
        batch_size=budget.batch_size,
        flip=stage.flip,
        share=share,
    )
    stage.objective.train()
    journal.forget_after(stage.name, trainer.step)
    done = trainer.step * budget.batch_size
    reporter.start(f"Stage {stage.name}", budget.steps * budget.batch_size, unit="images", done=done)
    started, first_step = time.perf_counter(), trainer.step
    for images in stage.feed.batches(order, trainer.step, budget.steps, share, accelerator.device):
        views = stage.views if trainer.step >= stage.views_from else None
        trainer.train_step(draw_inputs(stage, noise, views, trainer.step, images))
        last = trainer.step == budget.steps
        fields: dict[str, Any] = {}
        if trainer.step % stage.log_every == 0 or last:
            rate = (trainer.step - first_step) * budget.batch_size / (time.perf_counter() - started)
            fields["loss"] = trainer.take_mean_loss()
            if (ssl_loss := trainer.totals.take_mean_ssl()) is not None:
                fields["ssl_loss"] = ssl_loss
            journal.log(
                stage=stage.name,
                step=trainer.step,
                images=trainer.step * budget.batch_size,
                **fields,
                lr=learning_rate(budget, trainer.step - 1),
                images_per_second=rate,
            )
        reporter.advance(budget.batch_size, **fields)
        if stage.sample_every and (trainer.step % stage.sample_every == 0 or last):
            losses = trainer.totals.take_by_timestep()
            if accelerator.is_main_process:
                with trainer.averaged_weights():
                    stage.on_sample(trainer.step, losses)
        stopping = stop.now()
        if stopping or trainer.step % stage.checkpoint_every == 0 or last:
            _check_finite(trainer)
            trainer.save()
        if stopping and not last:
            raise TrainingInterrupted(stage.name, trainer.step, budget.steps, stopping)
    trainer.ema.copy_to(trainer.averaged)
    stage.objective.eval()
    reporter.finish()


def draw_inputs(
    stage: Stage, noise: StepNoise, views: StepViews | None, step: int, images_BCHW: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Arguments of the stage's objective, by name, for a step (zero-based) with these uint8 images."""
    objective = stage.objective
    inputs: dict[str, torch.Tensor] = {}
    if objective.timesteps:
        inputs |= zip(("x0_BCHW", "t_B", "noise_BCHW"), noise.draw(step, images_BCHW), strict=True)
    if objective.feature_noise:
        inputs["feature_noise_BD"] = noise.draw_features(step, objective.feature_noise, images_BCHW.device)
        # A scalar on the host: it multiplies tensors of any device without waiting for it.
        inputs["price"] = torch.tensor(stage.price(step / stage.budget.steps))
    if views is not None:
        inputs["views_2BCHW"] = views.draw(step, images_BCHW)
    return inputs


def learning_rate(budget: StageConfig, step: int) -> float:
    """Learning rate of step `step` (zero-based): linear warm-up, then constant or cosine to 1 %."""
    warmup = budget.warmup_steps
    if step < warmup:
        return budget.peak_learning_rate * (step + 1) / (warmup + 1)
    if budget.decay == "constant":
        return budget.peak_learning_rate
    progress = (step - warmup) / max(budget.steps - warmup, 1)
    return budget.peak_learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _check_finite(trainer: StageTrainer) -> None:
    """A checkpoint must be a good one: look at the loss since the last log line before writing."""
    if not trainer.totals.finite():
        trainer.take_mean_loss()


def _check_identity(checkpoint: Checkpoint, stage: Stage, path: Path) -> None:
    from diticli.errors import CheckpointError

    if checkpoint.state["identity"] != stage.identity:
        raise CheckpointError(
            f"{path} was written with other settings or other images.",
            remedy="Give the run a new --out, or restore the settings and images it was started with.",
        )
