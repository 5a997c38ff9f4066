"""The base as training and sampling run it: a copy in one dtype, with all that its weights imply computed once.

The copy holds diffusers' own modules, some exchanged for their equals: attention projects q, k and v at once
(diffusers' `fuse_projections`), and repetition followed by a 3x3 convolution becomes one transposed convolution.
"""

from __future__ import annotations

import copy
from typing import Self

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from diticli.models.modulation import PathWeights, gather_weights
from diticli.models.unet import DownFeatures, down_resnets, predict_noise, run_down_path, up_resnets


class FrozenBase(nn.Module):
    """An inference copy of a base: no gradient, no autocast, always in eval mode.

    The time embedding and all that modulates stay in float32; they cost next to nothing.

    Args:
        unet: a base that passes `diticli.models.unet.check_base`; left as it is.
        dtype: in which the copy computes.
    """

    def __init__(self, unet: UNet2DModel, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype
        self.unet = copy.deepcopy(unet).requires_grad_(False).eval()
        for name, blocks in (("down", down_resnets(self.unet)), ("up", up_resnets(self.unet))):
            for field, value in gather_weights(blocks)._asdict().items():
                self.register_buffer(f"{name}_{field}", value.float(), persistent=False)
        for module in self.unet.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
            if isinstance(module, Attention):
                module.fuse_projections()
                module.to_qkv.to(dtype), module.to_out.to(dtype)

    def forward(self, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, DownFeatures]:
        """Noise estimate [B, C, H, W] and down-path features, in the copy's dtype (the time embedding in float32).

        Args:
            x_BCHW: noisy images, of any floating dtype.
            t_B: integer time-steps [B], or [1] for all samples.
        """
        with torch.no_grad(), torch.autocast(x_BCHW.device.type, enabled=False):
            down = run_down_path(self.unet, x_BCHW.to(self.dtype), t_B, self._weights("down"))
            return predict_noise(self.unet, down, self._weights("up")), down

    def train(self, mode: bool = True) -> Self:
        """Nothing: the copy stays in eval mode."""
        return self

    def _weights(self, path: str) -> PathWeights:
        return PathWeights(*(getattr(self, f"{path}_{field}") for field in PathWeights._fields))
