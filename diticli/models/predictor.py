"""The shifted noise estimate: base, shift branch and chunk mask in one place for training and sampling.

Method: DiTi (arXiv 2401.11430), eq. 6; PDAE (arXiv 2212.12990), eq. 9-12.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, T timesteps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from diticli.chunks import ChunkLayout
from diticli.models.frozen import FrozenBase
from diticli.models.unet import DownFeatures, predict_noise, run_down_path

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from diticli.models.plain_unet import PlainUNet
    from diticli.models.shift_body import ShiftBody


class Prediction(NamedTuple):
    """The base's noise estimate and the shift G, both [B, C, H, W]."""

    noise: torch.Tensor
    shift: torch.Tensor


class ChunkWindows(nn.Module):
    """The layout's tables on the device: what a timestep sees of z, and which of it gets gradient."""

    visible_T2: torch.Tensor
    own_T2: torch.Tensor

    def __init__(self, layout: ChunkLayout) -> None:
        super().__init__()
        self.latent_dim = layout.latent_dim
        self.register_buffer("visible_T2", torch.from_numpy(layout.visible_dims()), persistent=False)
        self.register_buffer("own_T2", torch.from_numpy(layout.own_dims()), persistent=False)


def run_base(
    base: UNet2DModel | PlainUNet | FrozenBase, x_BCHW: torch.Tensor, t_B: torch.Tensor
) -> tuple[torch.Tensor, DownFeatures]:
    """Noise estimate [B, C, H, W] and down-path features of a base in eval mode, without gradient.

    Args:
        base: the base, or its inference copy.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
    """
    if isinstance(base, FrozenBase):
        return base(x_BCHW, t_B)
    with torch.no_grad():
        down = run_down_path(base, x_BCHW, t_B)
        return predict_noise(base, down), down


def predict(
    base: UNet2DModel | PlainUNet | FrozenBase,
    decoder: ShiftBody,
    x_BCHW: torch.Tensor,
    t_B: torch.Tensor,
    *z_mods: torch.Tensor,
) -> list[Prediction]:
    """One prediction per set of features; the frozen base runs once, without gradient.

    Args:
        base: in eval mode.
        decoder: its shift branch.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
        z_mods: projected features, one or more sets; see `ShiftDecoder.project`.
    """
    noise, down = run_base(base, x_BCHW, t_B)
    return [Prediction(noise, decoder(down, z_mod)) for z_mod in z_mods]
