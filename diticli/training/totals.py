"""Running sums of the losses of a stage, on the device; read only when something is logged."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from diticli.training.objectives import StepLosses

LOSS_BINS = 50
_BINS = ("bin_loss", "bin_count")


class Totals:
    """Sums since they were last taken; `tensors` are those of this process.

    Args:
        accelerator: tells the device, and sums over processes.
        timesteps: T, cut into `LOSS_BINS` bins.
    """

    def __init__(self, accelerator: Accelerator, timesteps: int) -> None:
        self.accelerator, self.timesteps = accelerator, timesteps
        shapes = {"loss": (), "steps": (), "ssl_loss": (), "ssl_steps": ()} | dict.fromkeys(_BINS, (LOSS_BINS,))
        device = accelerator.device
        self.tensors = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def state(self) -> dict[str, torch.Tensor]:
        """State of all processes together, for checkpoints: what one process would have. All of them must ask."""
        if self.accelerator.num_processes == 1:
            return self.tensors
        return {
            name: self.accelerator.reduce(value, "sum" if name in _BINS else "mean")
            for name, value in self.tensors.items()
        }

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take up what `state` gave, on any number of processes."""
        self.tensors = {name: value.to(self.accelerator.device) for name, value in tensors.items()}
        if not self.accelerator.is_main_process:
            for name in _BINS:
                self.tensors[name].zero_()

    def finite(self) -> bool:
        """Whether the loss since it was last taken is a number, on all processes. All of them must ask."""
        return bool(torch.isfinite(self.accelerator.reduce(self.tensors["loss"], "mean")))

    @torch.no_grad()
    def add(self, losses: StepLosses, t_B: torch.Tensor | None) -> None:
        """Count a step, without waiting for the device."""
        self.tensors["loss"] += losses.total_B.double().mean()
        self.tensors["steps"] += 1
        if losses.ssl_B is not None:
            self.tensors["ssl_loss"] += losses.ssl_B.double().mean()
            self.tensors["ssl_steps"] += 1
        if losses.noise_B is not None and t_B is not None:
            bins, noise_B = t_B * LOSS_BINS // self.timesteps, losses.noise_B.double()
            self.tensors["bin_loss"].index_add_(0, bins, noise_B)
            self.tensors["bin_count"].index_add_(0, bins, torch.ones_like(noise_B))

    def take_mean(self) -> float:
        """Mean loss, over all processes."""
        return self._take("loss", "steps")

    def take_mean_ssl(self) -> float | None:
        """Mean self-supervised loss, over all processes; None when no step had one."""
        return self._take("ssl_loss", "ssl_steps") if int(self.tensors["ssl_steps"]) else None

    def take_by_timestep(self) -> torch.Tensor:
        """Mean loss per bin of time-steps [LOSS_BINS], on the CPU; NaN where none fell."""
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
