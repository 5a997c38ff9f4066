"""The noise schedule and the coefficients that the method derives from it.

Source: PDAE (Zhang et al., NeurIPS 2022, arXiv 2212.12990), eq. 9-12; DDPM (Ho et al., 2020), eq. 4-7.

Legend of shape suffixes: B batch, C channels, H height, W width, T timesteps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diticli.errors import ModelError

LOSS_GAMMA = 0.1


class NoiseSchedule(nn.Module):
    """Per-timestep constants as float32 buffers [T], uploaded once with the module.

    Attributes:
        alphas_cumprod: alpha-bar_t, in (0, 1), falling.
        shift_coef: c_t = -sqrt(alpha_t) (1 - alpha-bar_{t-1}) / sqrt(1 - alpha-bar_t), the posterior form.
            c_0 = 0: nothing trains the shift at t = 0.
        loss_weight: w_t = SNR_t^gamma / (1 + SNR_t) with SNR_t = alpha-bar_t / (1 - alpha-bar_t).

    Args:
        alphas_T: 1 - beta_t, float32 [T]. Everything is computed in float32, as the official code does.

    Raises:
        ModelError: when alpha-bar does not fall strictly within (0, 1).
    """

    alphas_cumprod: torch.Tensor
    shift_coef: torch.Tensor
    loss_weight: torch.Tensor

    def __init__(self, alphas_T: torch.Tensor) -> None:
        super().__init__()
        bar = alphas_T.cumprod(0)
        if bar.ndim != 1 or not bool(((bar > 0) & (bar < 1)).all()) or not bool((bar.diff() < 0).all()):
            raise ModelError(
                "The scheduler's alphas_cumprod do not fall strictly within (0, 1).",
                remedy="Use a base whose scheduler has a finite signal-to-noise ratio at every step.",
            )
        bar_prev = torch.cat([bar.new_ones(1), bar[:-1]])
        snr = bar / (1 - bar)
        self.register_buffer("alphas_cumprod", bar, persistent=False)
        self.register_buffer("shift_coef", -alphas_T.sqrt() * (1 - bar_prev) / (1 - bar).sqrt(), persistent=False)
        self.register_buffer("loss_weight", snr**LOSS_GAMMA / (1 + snr), persistent=False)

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """Schedule of a diffusers scheduler."""
        return cls(1.0 - scheduler.betas.float())

    @property
    def timesteps(self) -> int:
        """T."""
        return int(self.alphas_cumprod.shape[0])

    def add_noise(self, x0_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(alpha-bar_t) x_0 + sqrt(1 - alpha-bar_t) noise (DDPM eq. 4)."""
        bar = per_sample(self.alphas_cumprod, t_B)
        return bar.sqrt() * x0_BCHW + (1 - bar).sqrt() * noise_BCHW

    def shift_scale(self, t_B: torch.Tensor, form: str) -> torch.Tensor:
        """Factor of the shift G in the noise estimate, [B, 1, 1, 1].

        `form` "posterior" is c_t, as trained; "score" is -sqrt(1 - alpha-bar_t), as the official sampler
        uses. They differ at small t only.
        """
        if form == "posterior":
            return per_sample(self.shift_coef, t_B)
        return -(1 - per_sample(self.alphas_cumprod, t_B)).sqrt()


def half_log_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """lambda = log(sqrt(alpha-bar) / sqrt(1 - alpha-bar)), half the log signal-to-noise ratio; the time in which the
    solvers of Lu et al. (2022, arXiv 2206.00927, section 3.1) step."""
    return 0.5 * torch.log(alphas_cumprod / (1 - alphas_cumprod))


def per_sample(values_T: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """values[t] as [B, 1, 1, 1]."""
    return values_T[t_B].view(-1, 1, 1, 1)
