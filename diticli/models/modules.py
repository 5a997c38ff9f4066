"""The blocks of a UNet: parameters under the names of diffusers' `UNet2DModel`, in its order.

They have no forward: `diticli.models.blocks` runs them. They draw the initial weights that diffusers would draw.
"""

from __future__ import annotations

from typing import Literal

import torch
from diti_kernels.winograd import convolve_3x3
from torch import Tensor, nn


class Convolution(nn.Conv2d):
    """A 3x3 convolution with padding 1, on a CPU by Winograd's algorithm where that is faster.

    Args:
        in_channels: of its input.
        out_channels: of its output.
        stride: 1, or 2 for half the height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Literal[1, 2] = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H, W], or [B, D, H / 2, W / 2]."""
        return convolve_3x3(input, self.weight, self.bias, self.stride[0])


class ResnetBlock(nn.Module):
    """A residual block (`ResnetBlock2D` of diffusers).

    Args:
        in_channels: of its input, a skip included.
        out_channels: of its output; None: as `in_channels`.
        temb_channels: width of the time embedding.
        groups: of both norms.
        eps: of both norms.
        time_embedding_norm: "default" or "scale_shift".
        dropout: between the second norm and its convolution.
        output_scale_factor: what the sum with the shortcut is divided by.
        up: doubles height and width.
        down: halves them.
    """

    conv1: nn.Conv2d | nn.ConvTranspose2d

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        temb_channels: int,
        groups: int = 32,
        eps: float = 1e-6,
        time_embedding_norm: str = "default",
        dropout: float = 0.0,
        output_scale_factor: float = 1.0,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.in_channels, self.out_channels, self.up, self.down = in_channels, out_channels, up, down
        self.time_embedding_norm, self.output_scale_factor = time_embedding_norm, output_scale_factor
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = Convolution(in_channels, out_channels)
        rows = 2 * out_channels if time_embedding_norm == "scale_shift" else out_channels
        self.time_emb_proj = nn.Linear(temb_channels, rows)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Convolution(out_channels, out_channels)
        self.upsample = nn.Upsample(scale_factor=2.0) if up else None
        self.downsample = nn.AvgPool2d(2) if down else None
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of a map, with a norm and a residual of its own (`Attention` of diffusers).

    Args:
        channels: of its input and output.
        heads: number of heads.
        dim_head: channels of a head.
        groups: of the norm; None leaves it out.
        eps: of the norm.
        rescale_output_factor: what the sum with the residual is divided by.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        dim_head: int,
        groups: int | None,
        eps: float,
        rescale_output_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.inner_dim = heads, heads * dim_head
        self.rescale_output_factor = rescale_output_factor
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, self.inner_dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, channels), nn.Dropout(0.0)])
        self.to_qkv: nn.Linear | None = None

    @torch.no_grad()
    def fuse_projections(self) -> nn.Linear:
        """Project to q, k and v at once from now on, by the layer that is returned."""
        parts = (self.to_q, self.to_k, self.to_v)
        with torch.device("meta"):
            fused = nn.Linear(self.to_q.in_features, 3 * self.inner_dim)
        fused.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
        fused.bias = nn.Parameter(torch.cat([part.bias for part in parts]))
        self.to_qkv = fused
        return fused


class Downsample(nn.Module):
    """Half the height and width by a strided convolution (`Downsample2D` of diffusers).

    Args:
        channels: of its input and output.
        padding: 0 pads right and below.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = Convolution(channels, channels, 2) if padding == 1 else nn.Conv2d(channels, channels, 3, 2, padding)


class Upsample(nn.Module):
    """Twice the height and width, then a convolution (`Upsample2D` of diffusers); a transposed `conv` does both."""

    conv: nn.Conv2d | nn.ConvTranspose2d

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = Convolution(channels, channels)
