"""The modules of a `UNet2DModel` in plain PyTorch, from the same config; see `diticli.models.plain_blocks` for why.

It has no forward: `diticli.models.unet` runs it, as it runs diffusers' own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from diticli.models.plain import Config, PlainNetwork
from diticli.models.plain_blocks import PlainAttention, PlainDownsample, PlainResnet, PlainUpsample

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
HEADS = "attention_heads"
"""A setting that diffusers lacks, see `diticli.models.heads`."""
# `UNet2DModel`'s arguments and their defaults.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


class PlainUNet(PlainNetwork):
    """The modules of a base.

    Args:
        config: of a `UNet2DModel` that `diticli.models.gate.check_base` takes; missing entries are its defaults.

    Raises:
        ValueError: for other blocks than those that can be run here, and for unknown settings.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        c = self.config = Config(DEFAULTS | {k: v for k, v in config.items() if not k.startswith("_")})
        if unknown := {*c.down_block_types, *c.up_block_types} - {*DOWN_BLOCKS, *UP_BLOCKS}:
            raise ValueError(f"There are no blocks {sorted(unknown)} here.")
        if unknown := c.keys() - DEFAULTS.keys() - {HEADS}:
            raise ValueError(f"A UNet2DModel has no settings {sorted(unknown)}.")
        widths = c.block_out_channels
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0], c.flip_sin_to_cos, c.freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0], c.time_embedding_dim or 4 * widths[0])
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, kind in enumerate(c.down_block_types):
            inputs = [widths[max(i - 1, 0)]] + [widths[i]] * (c.layers_per_block - 1)
            self.down_blocks.append(_Level(c, kind, inputs, widths[i], last=i == len(widths) - 1))
        self.mid_block = None if c.mid_block_type is None else _Middle(c, widths[-1])
        for i, kind in enumerate(c.up_block_types):
            inputs = _inputs_upwards(widths[::-1], i, c.layers_per_block + 1)
            self.up_blocks.append(_Level(c, kind, inputs, widths[::-1][i], last=i == len(widths) - 1))
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], c.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)


class Timesteps(nn.Module):
    """Sinusoidal embedding [B, channels], float32, of timesteps [B] (DDPM, Ho et al., 2020)."""

    def __init__(self, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.channels, self.flip_sin_to_cos, self.freq_shift = channels, flip_sin_to_cos, freq_shift

    def forward(self, t_B: torch.Tensor) -> torch.Tensor:
        """The embedding."""
        half = self.channels // 2
        exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t_B.device)
        angles = t_B[:, None].float() * torch.exp(exponent / (half - self.freq_shift))[None, :]
        parts = [angles.sin(), angles.cos()]
        return F.pad(torch.cat(parts[::-1] if self.flip_sin_to_cos else parts, dim=-1), (0, self.channels % 2))


class TimestepEmbedding(nn.Module):
    """Two linear layers around a SiLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(channels, width)
        self.act = nn.SiLU()
        self.linear_2 = nn.Linear(width, width)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """[B, width] of [B, channels]."""
        return self.linear_2(self.act(self.linear_1(embedding)))


class _Level(nn.Module):
    """A block of the down or the up path: residual blocks, perhaps attention after each, and a way to the next."""

    def __init__(self, c: Config, kind: str, inputs: Sequence[int], width: int, *, last: bool) -> None:
        super().__init__()
        resnets, attentions = [], []
        for channels in inputs:
            resnets.append(_resnet(c, channels, width))
            if kind.startswith("Attn"):
                attentions.append(_attention(c, width, c.norm_num_groups))
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        up = kind in UP_BLOCKS
        sampler = None if last else _sampler(c, kind, width, up=up)
        samplers = None if sampler is None else nn.ModuleList([sampler])
        setattr(self, "upsamplers" if up else "downsamplers", samplers)


class _Middle(nn.Module):
    def __init__(self, c: Config, width: int) -> None:
        super().__init__()
        groups = c.attn_norm_num_groups
        if groups is None and c.resnet_time_scale_shift == "default":
            groups = c.norm_num_groups
        factor = c.mid_block_scale_factor
        first = _resnet(c, width, width, output_scale_factor=factor)
        attention = _attention(c, width, groups, rescale_output_factor=factor) if c.add_attention else None
        self.attentions = nn.ModuleList([attention])  # type: ignore[list-item]  # None, as in diffusers
        self.resnets = nn.ModuleList([first, _resnet(c, width, width, output_scale_factor=factor)])


def _inputs_upwards(widths: Sequence[int], level: int, layers: int) -> list[int]:
    """Input channels, skips included, of each residual block of a level; `widths` begin with the coarsest."""
    before, width = widths[max(level - 1, 0)], widths[level]
    below = [before] + [width] * (layers - 1)
    skips = [width] * (layers - 1) + [widths[min(level + 1, len(widths) - 1)]]
    return [hidden + skip for hidden, skip in zip(below, skips, strict=True)]


def _sampler(c: Config, kind: str, width: int, *, up: bool) -> nn.Module | None:
    if kind.startswith("Resnet"):
        how = "resnet"
    else:
        how = (c.upsample_type if up else c.downsample_type) or "conv" if kind.startswith("Attn") else "conv"
    if how == "resnet":
        return _resnet(c, width, width, up=up, down=not up)
    if how != "conv":
        return None
    return PlainUpsample(width) if up else PlainDownsample(width, c.downsample_padding)


def _resnet(c: Config, inputs: int, width: int, **others: Any) -> PlainResnet:
    return PlainResnet(
        in_channels=inputs,
        out_channels=width,
        temb_channels=c.time_embedding_dim or 4 * c.block_out_channels[0],
        groups=c.norm_num_groups,
        eps=c.norm_eps,
        time_embedding_norm=c.resnet_time_scale_shift,
        dropout=c.dropout,
        **others,
    )


def _attention(c: Config, width: int, groups: int | None, rescale_output_factor: float = 1.0) -> PlainAttention:
    dim_head = width if c.attention_head_dim is None else c.attention_head_dim
    return PlainAttention(
        width, dim_head=dim_head, groups=groups, eps=c.norm_eps, rescale_output_factor=rescale_output_factor
    )
