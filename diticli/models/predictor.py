"""The shifted noise estimate: base, shift branch and chunk mask in one place for training and sampling.

Method: DiTi (arXiv 2401.11430), eq. 6; PDAE (arXiv 2212.12990), eq. 9-12.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, T time-steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from torch import nn

from diticli.chunks import ChunkLayout
from diticli.models.unet import predict_noise, run_down_path


class Prediction(NamedTuple):
    """The base's noise estimate and the shift G, both [B, C, H, W]."""

    noise: torch.Tensor
    shift: torch.Tensor


class SeenFeatures(NamedTuple):
    """Features of which each sample sees dims [0, end) and sends gradient to dims [start, end)."""

    z_BD: torch.Tensor
    start_B: torch.Tensor
    end_B: torch.Tensor


class ChunkWindows(nn.Module):
    """The layout's tables on the device: what a time-step sees of z, and which of it gets gradient."""

    visible_T: torch.Tensor
    own_start_T: torch.Tensor

    def __init__(self, layout: ChunkLayout) -> None:
        super().__init__()
        self.latent_dim = layout.latent_dim
        self.register_buffer("visible_T", torch.from_numpy(layout.visible_dims()), persistent=False)
        self.register_buffer("own_start_T", torch.from_numpy(layout.own_start()), persistent=False)

    def see(self, z_BD: torch.Tensor, t_B: torch.Tensor, *, detach_earlier: bool = False) -> SeenFeatures:
        """m_t * z. With `detach_earlier` gradient reaches the own chunk's slice only; the value is the same."""
        end = self.visible_T[t_B]
        return SeenFeatures(z_BD, self.own_start_T[t_B] if detach_earlier else torch.zeros_like(end), end)

    def see_all(self, z_BD: torch.Tensor) -> SeenFeatures:
        """z without a mask."""
        end = torch.full((len(z_BD),), self.latent_dim, device=z_BD.device)
        return SeenFeatures(z_BD, torch.zeros_like(end), end)


def predict(
    unet: UNet2DModel, decoder: nn.Module, x_BCHW: torch.Tensor, t_B: torch.Tensor, *seen: SeenFeatures
) -> list[Prediction]:
    """One prediction per set of features; the frozen base runs once, without gradient.

    Args:
        unet: the base, in eval mode.
        decoder: the `ShiftDecoder` (or its DDP or compiled wrapper).
        x_BCHW: noisy images.
        t_B: integer time-steps.
        seen: features and what is visible of them, one or more sets.
    """
    with torch.no_grad():
        down = run_down_path(unet, x_BCHW, t_B)
        noise = predict_noise(unet, down)
    return [Prediction(noise, decoder(down, *features)) for features in seen]
