"""The blocks of a `UNet2DModel` in plain PyTorch: parameters under diffusers' names, in diffusers' order.

Importing diffusers takes longer than editing a pair of images, and of its blocks nothing but the parameters is used
here: `diticli.models.blocks` runs them. So what only runs a network builds it from these. They draw the initial
weights that diffusers would draw.
"""

from __future__ import annotations

import torch
from torch import nn


class PlainResnet(nn.Module):
    """`ResnetBlock2D`.

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

    skip_time_act = False

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
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        rows = 2 * out_channels if time_embedding_norm == "scale_shift" else out_channels
        self.time_emb_proj = nn.Linear(temb_channels, rows)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.upsample = nn.Upsample(scale_factor=2.0) if up else None
        self.downsample = nn.AvgPool2d(2) if down else None
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)


class PlainAttention(nn.Module):
    """Diffusers' `Attention` as its UNets use it: self-attention over pixels, with a norm and a residual of its own.

    Args:
        channels: of its input and output.
        dim_head: channels of a head.
        groups: of the norm; None leaves it out.
        eps: of the norm.
        rescale_output_factor: what the sum with the residual is divided by.
    """

    residual_connection = True

    def __init__(
        self, channels: int, *, dim_head: int, groups: int | None, eps: float, rescale_output_factor: float = 1.0
    ) -> None:
        super().__init__()
        self.heads = channels // dim_head
        self.inner_dim = self.heads * dim_head
        self.rescale_output_factor, self.fused_projections = rescale_output_factor, False
        self.group_norm = None if groups is None else nn.GroupNorm(groups, channels, eps)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, self.inner_dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(self.inner_dim, channels), nn.Dropout(0.0)])

    @torch.no_grad()
    def fuse_projections(self) -> None:
        """q, k and v at once, by `to_qkv`, as diffusers' method of this name."""
        parts = (self.to_q, self.to_k, self.to_v)
        with torch.device("meta"):
            self.to_qkv = nn.Linear(self.to_q.in_features, 3 * self.inner_dim)
        self.to_qkv.weight = nn.Parameter(torch.cat([part.weight for part in parts]))
        self.to_qkv.bias = nn.Parameter(torch.cat([part.bias for part in parts]))
        self.fused_projections = True


class PlainDownsample(nn.Module):
    """`Downsample2D` with a convolution.

    Args:
        channels: of its input and output.
        padding: 0 pads right and below.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)


class PlainUpsample(nn.Module):
    """`Upsample2D` with a convolution."""

    use_conv, use_conv_transpose = True, False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)


def is_resnet(module: object) -> bool:
    """Whether it is a residual block, diffusers' or the one here."""
    return hasattr(module, "time_emb_proj")


def is_attention(module: object) -> bool:
    """Whether it is an attention block, diffusers' or the one here."""
    return hasattr(module, "to_q")


def is_upsampling(module: object) -> bool:
    """Whether it doubles maps and then convolves them, diffusers' block or the one here."""
    return hasattr(module, "use_conv_transpose") and bool(getattr(module, "use_conv", False))
