"""Running sums of the losses of a stage, on the device; read only when something is logged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from diticli.training.checkpoint import check_fits
from diticli.training.objectives import StepLosses

LOSS_BINS = 50
MAX_COUNT = 2.0**53
"""Largest whole number up to which a float64 counts."""
_BINS = ("bin_loss", "bin_count")
_SKIPPED = ("skipped", "skipped_in_a_row", "most_skipped_in_a_row")
"""Counted alike on all processes, over the whole stage."""


@dataclass(frozen=True, kw_only=True)
class SkippedSteps:
    """Steps whose gradients were not finite."""

    new: int
    """Since this was last asked."""
    all: int
    """Of the stage."""
    most_in_a_row: int


class Totals:
    """Sums since they were last taken; `tensors` are those of this process.

    Args:
        accelerator: tells the device, and sums over processes.
        timesteps: T, cut into `LOSS_BINS` bins.
    """

    def __init__(self, accelerator: Accelerator, timesteps: int) -> None:
        self.accelerator, self.timesteps = accelerator, timesteps
        shapes: dict[str, tuple[int, ...]]
        shapes = dict.fromkeys(("loss", "steps", "ssl_loss", "ssl_steps", *_SKIPPED), ())
        shapes |= dict.fromkeys(_BINS, (LOSS_BINS,))
        device = accelerator.device
        self.tensors = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        self._reported = 0

    def state(self) -> dict[str, torch.Tensor]:
        """State of all processes together, for checkpoints: what one process would have. All of them must ask."""
        if self.accelerator.num_processes == 1:
            return self.tensors
        return {
            name: self.accelerator.reduce(value, "sum" if name in _BINS else "mean")
            for name, value in self.tensors.items()
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave, on any number of processes.

        Raises:
            ValueError: for other names, shapes or types, and for numbers of steps that cannot be.
        """
        check_fits("totals", tensors, self.tensors, partly=True)  # those of earlier versions do not count skipped steps
        for name in tensors.keys() - {"loss", "ssl_loss", "bin_loss"}:
            if not bool(((tensors[name] >= 0) & (tensors[name] <= MAX_COUNT)).all()):
                raise ValueError(f"totals: {name} is no count")
        self.tensors |= {name: value.to(self.accelerator.device) for name, value in tensors.items()}
        self._reported = int(self.tensors["skipped"])
        if not self.accelerator.is_main_process:
            for name in _BINS:
                self.tensors[name].zero_()

    def skipped(self) -> SkippedSteps:
        """Steps that were skipped. Waits for the device."""
        total, most = torch.stack([self.tensors["skipped"], self.tensors["most_skipped_in_a_row"]]).long().tolist()
        new, self._reported = total - self._reported, total
        return SkippedSteps(new=new, all=total, most_in_a_row=most)

    @torch.no_grad()
    def add(self, losses: StepLosses, t_B: torch.Tensor | None, skipped: torch.Tensor) -> None:
        """Count a step, without waiting for the device.

        Args:
            losses: of this process.
            t_B: timesteps of the images.
            skipped: 1 where the optimizer skipped the step, whose losses then do not count; else 0.
        """
        skip, kept = skipped.bool(), 1 - skipped.double()
        self.tensors["skipped"] += skipped
        self.tensors["skipped_in_a_row"] = (self.tensors["skipped_in_a_row"] + 1) * skipped.double()
        self.tensors["most_skipped_in_a_row"] = torch.maximum(
            self.tensors["most_skipped_in_a_row"], self.tensors["skipped_in_a_row"]
        )
        self.tensors["loss"] += losses.total_B.double().mean().masked_fill(skip, 0)
        self.tensors["steps"] += kept
        if losses.ssl_B is not None:
            self.tensors["ssl_loss"] += losses.ssl_B.double().mean().masked_fill(skip, 0)
            self.tensors["ssl_steps"] += kept
        if losses.noise_B is not None and t_B is not None:
            bins, noise_B = t_B * LOSS_BINS // self.timesteps, losses.noise_B.double().masked_fill(skip, 0)
            self.tensors["bin_loss"].index_add_(0, bins, noise_B)
            self.tensors["bin_count"].index_add_(0, bins, kept.expand_as(noise_B))

    def take_mean(self) -> float | None:
        """Mean loss, over all processes; None when every step was skipped."""
        return self._take("loss", "steps") if int(self.tensors["steps"]) else None

    def take_mean_ssl(self) -> float | None:
        """Mean self-supervised loss, over all processes; None when no step had one."""
        return self._take("ssl_loss", "ssl_steps") if int(self.tensors["ssl_steps"]) else None

    def take_by_timestep(self) -> torch.Tensor:
        """Mean loss per bin of timesteps [LOSS_BINS], on the CPU; NaN where none fell."""
        sums = self.accelerator.reduce(torch.stack([self.tensors["bin_loss"], self.tensors["bin_count"]]), "sum")
        self.tensors["bin_loss"].zero_()
        self.tensors["bin_count"].zero_()
        mean: torch.Tensor = (sums[0] / sums[1]).cpu()
        return mean

    def _take(self, total: str, count: str) -> float:
        mean: float = self.accelerator.reduce(self.tensors[total] / self.tensors[count].clamp(min=1), "mean").item()
        self.tensors[total].zero_()
        self.tensors[count].zero_()
        return mean
