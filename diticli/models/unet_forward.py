"""Running the base in two halves, for the shift decoder needs the features of its down path.

Legend of shape suffixes: B batch, C channels, H height, W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from diticli.models.blocks import run_attention, run_downsample, run_resnet, run_upsample
from diticli.models.layout import in_layout
from diticli.models.modulation import Modulation, PathWeights, gather_weights, modulate
from diticli.models.modules import Downsample, ResnetBlock, Upsample
from diticli.models.norms import norm_silu
from diticli.models.unet import Level, Middle, UNet


class DownFeatures(NamedTuple):
    """The outputs of the down path: the deepest map, all skips, and the time embedding."""

    hidden: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    temb: torch.Tensor


class UpPath(Protocol):
    """Anything with a UNet's middle and up blocks."""

    mid_block: Middle | None
    up_blocks: nn.ModuleList


def estimate_noise(unet: UNet, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """The noise estimate [B, C, H, W] of `unet`: what the forward of a `UNet2DModel` computes, faster.

    Args:
        unet: the base.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
    """
    return predict_noise(unet, run_down_path(unet, x_BCHW, t_B))


def run_down_path(
    unet: UNet, x_BCHW: torch.Tensor, t_B: torch.Tensor, weights: PathWeights | None = None
) -> DownFeatures:
    """First half of `unet`: noisy images [B, C, H, W] at timesteps [B], or [1] for all samples.

    `weights` are those of `down_resnets(unet)`, where they are kept ready.
    """
    if unet.config.center_input_sample:
        x_BCHW = 2 * x_BCHW - 1.0
    temb = unet.time_embedding(unet.time_proj(t_B).to(unet.time_embedding.linear_1.weight.dtype))
    resnets = down_resnets(unet)
    modulations = modulate(resnets, weights or gather_weights(resnets), temb)
    h = unet.conv_in(in_layout(x_BCHW))
    skips = [h]
    for level in _levels(unet.down_blocks):
        for resnet, attention in level.layers():
            h = run_resnet(resnet, h, next(modulations))
            h = h if attention is None else run_attention(attention, h)
            skips.append(h)
        sampler = level.resampler()
        if isinstance(sampler, ResnetBlock):
            skips.append(h := run_resnet(sampler, h, next(modulations)))
        elif isinstance(sampler, Downsample):
            skips.append(h := run_downsample(sampler, h))
    return DownFeatures(h, tuple(skips), temb)


def run_up_path(
    path: UpPath, h: torch.Tensor, skips: Sequence[torch.Tensor], modulations: Iterator[Modulation]
) -> torch.Tensor:
    """Middle and up blocks of `path` on the down path's output; `modulations` are those of `up_resnets(path)`."""
    h = run_middle(path, h, modulations)
    remaining = list(skips)
    for level in _levels(path.up_blocks):
        h = run_up_level(level, h, remaining, modulations)
    return h


def run_middle(path: UpPath, h: torch.Tensor, modulations: Iterator[Modulation]) -> torch.Tensor:
    """The middle block of `path`, where it has one, on the down path's output."""
    if path.mid_block is not None:
        for resnet, attention in path.mid_block.layers():
            h = run_resnet(resnet, h, next(modulations))
            h = h if attention is None else run_attention(attention, h)
    return h


def run_up_level(
    level: Level, h: torch.Tensor, remaining: list[torch.Tensor], modulations: Iterator[Modulation]
) -> torch.Tensor:
    """One up block, which takes its skips from the end of `remaining`."""
    for resnet, attention in level.layers():
        h = run_resnet(resnet, h, next(modulations), remaining.pop())
        h = h if attention is None else run_attention(attention, h)
    sampler = level.resampler()
    if isinstance(sampler, ResnetBlock):
        h = run_resnet(sampler, h, next(modulations))
    elif isinstance(sampler, Upsample):
        h = run_upsample(sampler, h)
    return h


def predict_noise(unet: UNet, down: DownFeatures, weights: PathWeights | None = None) -> torch.Tensor:
    """Second half of `unet`: its noise estimate [B, C, H, W] from the down-path features.

    `weights` are those of `up_resnets(unet)`, where they are kept ready.
    """
    resnets = up_resnets(unet)
    modulations = modulate(resnets, weights or gather_weights(resnets), down.temb)
    return unet.conv_out(norm_silu(unet.conv_norm_out, run_up_path(unet, down.hidden, down.skips, modulations)))


def down_resnets(unet: UNet) -> list[ResnetBlock]:
    """Residual blocks of the down path, in the order in which they run."""
    return [resnet for level in _levels(unet.down_blocks) for resnet in level.all_resnets()]


def up_resnets(path: UpPath) -> list[ResnetBlock]:
    """Residual blocks of the middle and the up path, in the order in which they run."""
    middle = [] if path.mid_block is None else [resnet for resnet, _ in path.mid_block.layers()]
    return middle + [resnet for level in _levels(path.up_blocks) for resnet in level.all_resnets()]


def _levels(blocks: nn.ModuleList) -> list[Level]:
    levels: list[Any] = [*blocks]
    return levels
