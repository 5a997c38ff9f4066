"""The base: a frozen, unconditional `UNet2DModel` (or its plain twin), run in two halves.

The shift branch needs the base's down-path features, so the UNet's own parts are called in turn here.

Legend of shape suffixes: B batch, C channels, H height, W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from diticli.models.blocks import run_attention, run_downsample, run_resnet, run_upsample
from diticli.models.layout import in_layout
from diticli.models.modulation import Modulation, PathWeights, gather_weights, modulate
from diticli.models.norms import norm_silu
from diticli.models.plain_blocks import is_resnet

if TYPE_CHECKING:
    from diffusers import UNet2DModel
    from diffusers.models.resnet import ResnetBlock2D

    from diticli.models.plain_unet import PlainUNet


class DownFeatures(NamedTuple):
    """What the down path hands on: the deepest map, all skips, and the time embedding."""

    hidden: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    temb: torch.Tensor


class UpPath(Protocol):
    """Anything with a UNet's middle and up blocks."""

    mid_block: Any
    up_blocks: Any


def estimate_noise(unet: UNet2DModel | PlainUNet, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """The noise estimate [B, C, H, W] of `unet`: what its own forward computes, faster.

    Args:
        unet: a base that passes `check_base`.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
    """
    return predict_noise(unet, run_down_path(unet, x_BCHW, t_B))


def run_down_path(
    unet: UNet2DModel | PlainUNet, x_BCHW: torch.Tensor, t_B: torch.Tensor, weights: PathWeights | None = None
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
    down_blocks: Any = unet.down_blocks
    for block in down_blocks:
        for resnet, attention in _layers(block):
            h = run_resnet(resnet, h, next(modulations))
            h = h if attention is None else run_attention(attention, h)
            skips.append(h)
        for sampler in block.downsamplers or ():
            if is_resnet(sampler):
                h = run_resnet(sampler, h, next(modulations))
            else:
                h = run_downsample(sampler, h)
            skips.append(h)
    return DownFeatures(h, tuple(skips), temb)


def run_up_path(
    path: UpPath, h: torch.Tensor, skips: Sequence[torch.Tensor], modulations: Iterator[Modulation]
) -> torch.Tensor:
    """Middle and up blocks of `path` on the down path's output; `modulations` are those of `up_resnets(path)`."""
    if path.mid_block is not None:
        first, *others = path.mid_block.resnets
        h = run_resnet(first, h, next(modulations))
        for attention, resnet in zip(path.mid_block.attentions, others, strict=True):
            h = h if attention is None else run_attention(attention, h)
            h = run_resnet(resnet, h, next(modulations))
    remaining = list(skips)
    for block in path.up_blocks:
        for resnet, attention in _layers(block):
            h = run_resnet(resnet, h, next(modulations), remaining.pop())
            h = h if attention is None else run_attention(attention, h)
        for sampler in block.upsamplers or ():
            if is_resnet(sampler):
                h = run_resnet(sampler, h, next(modulations))
            else:
                h = run_upsample(sampler, h)
    return h


def predict_noise(
    unet: UNet2DModel | PlainUNet, down: DownFeatures, weights: PathWeights | None = None
) -> torch.Tensor:
    """Second half of `unet`: its noise estimate [B, C, H, W] from the down-path features.

    `weights` are those of `up_resnets(unet)`, where they are kept ready.
    """
    resnets = up_resnets(unet)
    modulations = modulate(resnets, weights or gather_weights(resnets), down.temb)
    return unet.conv_out(norm_silu(unet.conv_norm_out, run_up_path(unet, down.hidden, down.skips, modulations)))


def down_resnets(unet: UNet2DModel | PlainUNet) -> list[ResnetBlock2D]:
    """Residual blocks of the down path, in the order in which they run."""
    return [resnet for block in unet.down_blocks for resnet in _resnets(block, block.downsamplers)]


def up_resnets(path: UpPath) -> list[ResnetBlock2D]:
    """Residual blocks of the middle and the up path, in the order in which they run."""
    middle = [] if path.mid_block is None else list(path.mid_block.resnets)
    return middle + [resnet for block in path.up_blocks for resnet in _resnets(block, block.upsamplers)]


def _resnets(block: Any, samplers: Any) -> list[ResnetBlock2D]:
    return [*block.resnets, *(sampler for sampler in samplers or () if is_resnet(sampler))]


def _layers(block: Any) -> Iterator[tuple[ResnetBlock2D, Any]]:
    """Residual blocks, each with the attention block that follows it, or None."""
    return zip(block.resnets, getattr(block, "attentions", [None] * len(block.resnets)), strict=True)
