"""The losses of both stages, as modules whose forward returns one loss per image.

A module per stage keeps the loop blind to the method, and lets DDP and torch.compile wrap the whole step.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Self

import torch
from diffusers import UNet2DModel
from torch import nn

from diticli.chunks import ChunkLayout
from diticli.models.encoder import SemanticEncoder
from diticli.models.predictor import ChunkWindows, predict
from diticli.models.shift_decoder import ShiftDecoder
from diticli.schedule import NoiseSchedule, per_sample


class NoiseObjective(nn.Module):
    """Stage 1: the simple DDPM loss (Ho et al., 2020, eq. 14), mean over elements of (noise - estimate)^2."""

    def __init__(self, unet: UNet2DModel, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = schedule

    def forward(self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        """Loss [B] of images in [-1, 1] at integer time-steps."""
        x_t = self.schedule.add_noise(x0_BCHW, noise_BCHW, t_B)
        estimate = self.unet(x_t, t_B).sample
        return (noise_BCHW - estimate.float()).square().mean(dim=(1, 2, 3))

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the optimizer and the moving average see."""
        return {"unet": self.unet}


class FeatureObjective(nn.Module):
    """Stage 2: encoder and shift decoder learn what the frozen base lost.

    L = mean over elements of w_t (noise - base - c_t G(x_t, t, m_t z))^2 (PDAE eq. 13 with the chunk mask of
    DiTi eq. 6). `cumulative` lets gradient reach the whole visible prefix of z, `detached` only the slice of
    t's own chunk (same value), `dual` is the sum of both.

    Args:
        unet: the base; kept frozen and in eval mode.
        gradient: "cumulative", "detached" or "dual".
    """

    def __init__(
        self,
        unet: UNet2DModel,
        encoder: SemanticEncoder,
        shift_decoder: ShiftDecoder,
        schedule: NoiseSchedule,
        layout: ChunkLayout,
        gradient: str,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False).eval()
        self.encoder = encoder
        self.shift_decoder = shift_decoder
        self.schedule = schedule
        self.windows = ChunkWindows(layout)
        self.detach_earlier = {"cumulative": (False,), "detached": (True,), "dual": (False, True)}[gradient]

    def train(self, mode: bool = True) -> Self:
        """Switch encoder and shift decoder; the base stays in eval mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        """Loss [B] of images in [-1, 1] at integer time-steps."""
        x_t = self.schedule.add_noise(x0_BCHW, noise_BCHW, t_B)
        z = self.encoder(x0_BCHW)
        seen = [self.windows.see(z, t_B, detach_earlier=detach) for detach in self.detach_earlier]
        coefficient = per_sample(self.schedule.shift_coef, t_B)
        weight = self.schedule.loss_weight[t_B]
        total = x0_BCHW.new_zeros(len(x0_BCHW))
        for noise, shift in predict(self.unet, self.shift_decoder, x_t, t_B, *seen):
            estimate = noise.float() + coefficient * shift.float()
            total = total + weight * (noise_BCHW - estimate).square().mean(dim=(1, 2, 3))
        return total

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the optimizer and the moving average see."""
        return {"encoder": self.encoder, "shift_decoder": self.shift_decoder}


Objective = NoiseObjective | FeatureObjective
