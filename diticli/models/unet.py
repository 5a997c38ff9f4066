"""The base: the modules of diffusers' `UNet2DModel` in plain PyTorch, from the same settings, under the same names.

Importing diffusers takes longer than editing a pair of images, and of its UNet nothing but the parameters is used here:
`diticli.models.unet_forward` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from diticli.errors import ModelError
from diticli.models.gate import DEFAULTS, HEADS, UP_BLOCKS, check_base_config
from diticli.models.modules import Downsample, ResnetBlock, SelfAttention, Upsample
from diticli.models.network import Config, Network


class UNet(Network):
    """A base, which predicts noise; `diticli.models.unet_forward.estimate_noise` runs it.

    Args:
        config: settings of a `UNet2DModel`, perhaps with `attention_heads`; missing ones are its defaults, and those
            that do not shape a network are left out.

    Raises:
        ModelError: for settings that the gate refuses (`diticli.models.gate`), and for heads that do not divide a
            block's width.
    """

    STORED_AS = "UNet2DModel"

    def __init__(self, **config: Any) -> None:
        super().__init__()
        check_base_config(config)
        own = {key: value for key, value in config.items() if key in DEFAULTS or (key == HEADS and value is not None)}
        c = self.config = Config(DEFAULTS | own)
        widths = c.block_out_channels
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_proj = Timesteps(widths[0], c.flip_sin_to_cos, c.freq_shift)
        self.time_embedding = TimestepEmbedding(widths[0], c.time_embedding_dim or 4 * widths[0])
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, kind in enumerate(c.down_block_types):
            inputs = [widths[max(i - 1, 0)]] + [widths[i]] * (c.layers_per_block - 1)
            self.down_blocks.append(Level(c, kind, inputs, widths[i], last=i == len(widths) - 1))
        self.mid_block = None if c.mid_block_type is None else Middle(c, widths[-1])
        for i, kind in enumerate(c.up_block_types):
            inputs = _inputs_upwards(widths[::-1], i, c.layers_per_block + 1)
            self.up_blocks.append(Level(c, kind, inputs, widths[::-1][i], last=i == len(widths) - 1))
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], c.norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    @classmethod
    def _known(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """All settings among the entries of a `config.json`; the gate knows them."""
        return {key: value for key, value in config.items() if not key.startswith("_")}


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


class Level(nn.Module):
    """A block of the down or the up path: residual blocks, perhaps attention after each, and a way to the next."""

    def __init__(self, c: Config, kind: str, inputs: Sequence[int], width: int, *, last: bool) -> None:
        super().__init__()
        resnets, attentions = [], []
        for channels in inputs:
            resnets.append(_resnet(c, channels, width))
            if kind.startswith("Attn"):
                attentions.append(_attention(c, width, c.norm_num_groups))
        self.attentions = nn.ModuleList(attentions) if attentions else None
        self.resnets = nn.ModuleList(resnets)
        up = kind in UP_BLOCKS
        sampler = None if last else _sampler(c, kind, width, up=up)
        samplers = None if sampler is None else nn.ModuleList([sampler])
        self.downsamplers: nn.ModuleList | None = None if up else samplers
        self.upsamplers: nn.ModuleList | None = samplers if up else None

    def layers(self) -> list[tuple[ResnetBlock, SelfAttention | None]]:
        """Residual blocks, each with the attention block that follows it."""
        attentions: Any = [None] * len(self.resnets) if self.attentions is None else self.attentions
        resnets: Any = self.resnets
        return list(zip(resnets, attentions, strict=True))

    def resampler(self) -> nn.Module | None:
        """What halves or doubles the maps at the end of the level."""
        samplers = self.downsamplers or self.upsamplers
        return samplers[0] if samplers else None

    def all_resnets(self) -> list[ResnetBlock]:
        """Residual blocks in the order in which they run, one that resamples included."""
        blocks = [*self.resnets, self.resampler()]
        return [block for block in blocks if isinstance(block, ResnetBlock)]


class Middle(nn.Module):
    """The block between the down and the up path: two residual blocks, perhaps with attention between them."""

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

    def layers(self) -> list[tuple[ResnetBlock, SelfAttention | None]]:
        """Residual blocks, each with the attention block that follows it."""
        (first, second), (attention,) = [*self.resnets], [*self.attentions]
        assert isinstance(first, ResnetBlock)
        assert isinstance(second, ResnetBlock)
        assert attention is None or isinstance(attention, SelfAttention)
        return [(first, attention), (second, None)]


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
    return Upsample(width) if up else Downsample(width, c.downsample_padding)


def _resnet(c: Config, inputs: int, width: int, **others: Any) -> ResnetBlock:
    return ResnetBlock(
        in_channels=inputs,
        out_channels=width,
        temb_channels=c.time_embedding_dim or 4 * c.block_out_channels[0],
        groups=c.norm_num_groups,
        eps=c.norm_eps,
        time_embedding_norm=c.resnet_time_scale_shift,
        dropout=c.dropout,
        **others,
    )


def _attention(c: Config, width: int, groups: int | None, rescale_output_factor: float = 1.0) -> SelfAttention:
    dim_head = width if c.attention_head_dim is None else c.attention_head_dim
    heads = width // dim_head
    if by_number := c.get(HEADS):
        if heads * dim_head % by_number:
            raise ModelError(
                f"{by_number} attention heads do not divide a block of {heads * dim_head} channels.",
                remedy="Make the model again with heads that do.",
            )
        heads, dim_head = by_number, heads * dim_head // by_number
    return SelfAttention(
        width,
        heads=heads,
        dim_head=dim_head,
        groups=groups,
        eps=c.norm_eps,
        rescale_output_factor=rescale_output_factor,
    )
