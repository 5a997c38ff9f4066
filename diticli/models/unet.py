"""The base: a frozen, unconditional `UNet2DModel` (or its plain twin), run in two halves.

The shift branch needs the base's down-path features, so the UNet's own parts are called in turn here.

Legend of shape suffixes: B batch, C channels, H height, W width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from diticli.errors import ModelError
from diticli.models.blocks import run_attention, run_downsample, run_resnet, run_upsample
from diticli.models.heads import restore_heads
from diticli.models.hub import first_line, local_folder
from diticli.models.layout import in_layout
from diticli.models.modulation import Modulation, PathWeights, gather_weights, modulate
from diticli.models.norms import norm_silu
from diticli.models.plain_blocks import is_resnet
from diticli.models.plain_unet import DOWN_BLOCKS, UP_BLOCKS

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel
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
        t_B: integer time-steps [B], or [1] for all samples.
    """
    return predict_noise(unet, run_down_path(unet, x_BCHW, t_B))


def run_down_path(
    unet: UNet2DModel | PlainUNet, x_BCHW: torch.Tensor, t_B: torch.Tensor, weights: PathWeights | None = None
) -> DownFeatures:
    """First half of `unet`: noisy images [B, C, H, W] at time-steps [B], or [1] for all samples.

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


def check_base(unet: UNet2DModel, *, resolution: int | None = None) -> None:
    """Refuse a base that the method cannot stand on.

    Raises:
        ModelError: for a fourier or learned time embedding, class conditioning, a learned variance, blocks, an
            activation or attention heads that cannot be run here, or another resolution or channel count than the
            data's.
    """
    config = unet.config
    unknown = sorted({*config.down_block_types, *config.up_block_types} - {*DOWN_BLOCKS, *UP_BLOCKS})
    problems = {
        f"it uses a {config.time_embedding_type} time embedding": config.time_embedding_type != "positional",
        "it is class-conditional": config.class_embed_type is not None or config.num_class_embeds is not None,
        f"it predicts a variance ({config.out_channels} outputs for {config.in_channels} inputs)": config.out_channels
        == 2 * config.in_channels,
        f"it has {config.in_channels} input and {config.out_channels} output channels, images have 3": (
            config.in_channels != 3 or config.out_channels not in (3, 6)
        ),
        f"its blocks are {', '.join(unknown)}": bool(unknown),
        f"its activation is {config.act_fn}": config.act_fn not in ("silu", "swish"),
        f"its attention heads ({config.attention_head_dim} channels) are wider than one of its levels": any(
            getattr(module, "heads", 1) == 0 for module in unet.modules()
        ),
    }
    for what, broken in problems.items():
        if broken:
            raise ModelError(
                f"This base cannot be used: {what}.",
                remedy="Use an unconditional UNet2DModel that predicts noise with a positional time embedding, "
                "or leave --base out to train one.",
            )
    size = config.sample_size
    size = size[0] if isinstance(size, list | tuple) else size
    if resolution is not None and size is not None and size != resolution:
        raise ModelError(
            f"The base was trained at {size} px, the run wants {resolution} px.",
            remedy=f"Use --resolution {size}, or another base.",
        )


def load_base(name_or_path: str, *, resolution: int | None = None) -> tuple[UNet2DModel, DDPMScheduler]:
    """A base and its scheduler from a diffusers folder (pipeline, UNet, or run) or a Hub id.

    Raises:
        ModelError: when nothing can be loaded from there, or `check_base` refuses it.
    """
    folder = local_folder(name_or_path)
    if (folder / "base").is_dir():
        folder = folder / "base"
    unet = _load_unet(folder / "unet" if (folder / "unet").is_dir() else folder)
    check_base(unet, resolution=resolution)
    return unet.requires_grad_(False).eval(), _load_scheduler(folder)


def _load_unet(folder: Path) -> UNet2DModel:
    from diffusers import UNet2DModel

    remedy = "Give a folder saved by diffusers (with config.json and safetensors weights) or a Hub id."
    try:
        # Without safetensors diffusers would unpickle.
        unet, report = UNet2DModel.from_pretrained(str(folder), output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"Cannot load a base from {folder}: {first_line(error)}", remedy=remedy) from error
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or extra:
        raise ModelError(
            f"The weights in {folder} are not those of its config: missing {missing[:3]}, left over {extra[:3]}.",
            remedy=remedy,
        )
    return restore_heads(unet)


def _load_scheduler(folder: Path) -> DDPMScheduler:
    from diffusers import DDPMScheduler

    if (folder / "scheduler").is_dir():
        folder = folder / "scheduler"
    if not (folder / "scheduler_config.json").is_file():
        # A bare UNet comes without one: the schedule of the DDPM paper.
        return DDPMScheduler(clip_sample=False)
    try:
        scheduler = DDPMScheduler.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"Cannot read the scheduler in {folder}: {first_line(error)}") from error
    if scheduler.config.prediction_type != "epsilon":
        raise ModelError(
            f"The base predicts {scheduler.config.prediction_type}, the method needs noise (epsilon) prediction.",
            remedy="Use another base.",
        )
    if len(scheduler.betas) != scheduler.config.num_train_timesteps:
        raise ModelError(
            f"The scheduler in {folder} has {len(scheduler.betas):,} betas, its config says "
            f"{scheduler.config.num_train_timesteps:,} timesteps.",
            remedy=f"Save it with num_train_timesteps={len(scheduler.betas)}.",
        )
    return scheduler
