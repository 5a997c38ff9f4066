"""Our training step, built as a training run builds it: `build_objective`, `StageTrainer`, `draw_inputs`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diti_kernels.sites import Mode

from benchmarks.cases import SEED, Case
from diticli.distributed import Rank
from diticli.models.device import gpu_convolutions
from diticli.models.frozen import FrozenBase
from diticli.models.pipeline import DiTiPipeline
from diticli.progress import Reporter, SilentReporter
from diticli.training.accelerator import make_accelerator
from diticli.training.batches import MemoryFeed, StepNoise
from diticli.training.kernels import choose_kernels
from diticli.training.loop import StageTrainer, run_stage
from diticli.training.metrics_log import MetricsLogger
from diticli.training.objectives import FeatureObjective, StepLosses
from diticli.training.pace import Horizon
from diticli.training.stage import Stage, draw_inputs
from diticli.training.stage_two import STAGE, build_objective
from diticli.training.stopping import StopRequest


class OurTrainer:
    """A stage-2 trainer on converted weights.

    Args:
        case: the size.
        pipeline: weights of its size; taken over, so that each trainer needs its own.
        images: uint8 [N, 3, R, R].
        device: where it runs.
        batch_size: images a step.
        precision: "fp32" or "bf16".
        compile: as `diti train --compile`.
        gradient: "cumulative", "detached" or "dual".
        frozen_copy: False computes the base by the UNet itself instead of its inference copy.
        merge: False keeps repetition and convolution apart in the base's copy.
        environment: variables (DITI_KERNELS, ...) that hold while it is built and while it runs.
        reporter: warned where compiling fails, which makes the side another one than its name says.
    """

    def __init__(
        self,
        case: Case,
        pipeline: DiTiPipeline,
        images: torch.Tensor,
        device: torch.device,
        *,
        batch_size: int,
        precision: str,
        compile: bool = False,
        gradient: str = "cumulative",
        frozen_copy: bool = True,
        merge: bool = True,
        environment: Mapping[str, str] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.environment, self.precision = dict(environment or {}), precision
        self.batch_size, self.device = batch_size, device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        config = case.run_config(
            batch_size=batch_size, device=device, precision=precision, gradient=gradient, compile=compile
        )
        with variables(self.environment):
            accelerator = make_accelerator(config)
            assert pipeline.unet is not None
            scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
            objective = build_objective(config, pipeline.unet, scheduler)
            assert isinstance(objective, FeatureObjective)
            if not frozen_copy:
                objective.unet = pipeline.unet.requires_grad_(False).eval()
            elif not merge:
                objective.unet = FrozenBase(pipeline.unet, objective.unet.dtype, merge_up_to=0)
            objective.encoder.load_state_dict(pipeline.encoder.state_dict())
            assert pipeline.shift_decoder is not None
            objective.shift_decoder.load_state_dict(pipeline.shift_decoder.state_dict())
            stage = Stage(
                name=STAGE,
                objective=objective,
                budget=config.features,
                feed=MemoryFeed(images.permute(0, 2, 3, 1).numpy()),
                images=len(images),
                resolution=images.shape[-1],
                seed=SEED,
                flip=False,
                log_every=1_000_000,
                checkpoint_every=1_000_000_000,
                sample_every=0,
                checkpoints=Path(os.devnull),
                identity="",
            )
            self.trainer = StageTrainer(stage, accelerator, compile=compile, reporter=reporter)
            self.trainer.gradients.eager_steps = 1  # else it would be captured while it is timed
        self.objective = objective
        if self.environment:
            _distinguish(objective)
        self.noise = StepNoise(
            seed=SEED, stage=STAGE, timesteps=objective.timesteps, batch_size=batch_size, flip=False, rank=Rank()
        )
        objective.train()
        mode: Mode = "compiled" if compile else "captured" if self.trainer.gradients.captures else "eager"
        with self.active():
            choose_kernels(stage, accelerator, None, None, mode=mode, reporter=reporter or SilentReporter())

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """This trainer's environment and precision; Accelerate keeps one precision for the whole process."""
        state = self.trainer.accelerator.state
        before = state._mixed_precision
        state._mixed_precision = "bf16" if self.precision == "bf16" else "no"
        try:
            with variables(self.environment), gpu_convolutions(self.device, self.dtype, timed=True):
                yield
        finally:
            state._mixed_precision = before

    def step(self, images: torch.Tensor) -> None:
        """One step on uint8 images that lie on the device."""
        with self.active():
            self.trainer.train_step(draw_inputs(self.trainer.stage, self.noise, None, self.trainer.step, images))

    def losses(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Losses [B], through the same wrapped module that `step` runs."""
        with self.active(), self.trainer.accelerator.autocast():
            return StepLosses.coerce(self.trainer.module(x0_BCHW=x0, t_B=t, noise_BCHW=noise)).total_B

    def gradients(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        """Losses [B] and gradients by name."""
        losses = self.losses(x0, t, noise)
        with self.active():
            self.trainer.accelerator.backward(losses.mean())
        parts: dict[str, torch.nn.Module] = {
            "encoder": self.objective.encoder,
            "shift_decoder": self.objective.shift_decoder,
        }
        found = {
            f"{part}.{name}": torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for part, module in parts.items()
            for name, p in module.named_parameters()
        }
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return losses.detach().float(), found

    def unfuse_optimizer(self) -> None:
        """Plain Adam instead of the fused one; before the first step."""
        for group in self.trainer.optimizer.param_groups:
            group["fused"] = False

    def run_with_loader(self, steps: int) -> None:
        """`steps` more steps through the loop of a training run: feed, upload, step, progress."""
        trainer = self.trainer
        images = (trainer.step + steps) * self.batch_size
        stage = replace(trainer.stage, budget=replace(trainer.stage.budget, images=images))
        trainer.stage = stage
        trainer.whole = trainer.decay = Horizon(stage.budget.steps)
        trainer.save = lambda: None  # type: ignore[method-assign]  # a checkpoint is no part of the rate
        trainer.ema.copy_to = lambda parameters: None
        with tempfile.TemporaryDirectory() as folder, self.active():
            metrics = MetricsLogger(Path(folder), active=False)
            run_stage(trainer, metrics, SilentReporter(), StopRequest())
        self.objective.train()


class Heard(SilentReporter):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        """See `Reporter.warn`."""
        if message not in self.warnings:
            self.warnings.append(message)


def _distinguish(objective: torch.nn.Module) -> None:
    """Give our modules classes of their own, so that torch.compile does not hand this side another side's graph.

    Graphs are shared by modules of one class, and an environment variable read while tracing is not guarded.
    """
    for module in objective.modules():
        cls = type(module)
        if cls.__module__.startswith("diticli."):
            module.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that hold within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
