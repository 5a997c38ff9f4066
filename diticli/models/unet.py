"""The base: a frozen, unconditional `UNet2DModel`, run in two halves.

The shift branch needs the base's down-path features, so the UNet's own parts are called in turn here.

Legend of shape suffixes: B batch, C channels, H height, W width, E embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from diticli.errors import ModelError
from diticli.models.heads import restore_heads
from diticli.models.hub import first_line, local_folder


class DownFeatures(NamedTuple):
    """What the down path hands on: the deepest map, all skips, and the time embedding."""

    hidden: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    temb: torch.Tensor


class UpPath(Protocol):
    """Anything with a UNet's middle and up blocks."""

    mid_block: nn.Module | None
    up_blocks: nn.ModuleList


def run_down_path(unet: UNet2DModel, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> DownFeatures:
    """First half of `unet`: noisy images [B, C, H, W] at time-steps [B]."""
    if unet.config.center_input_sample:
        x_BCHW = 2 * x_BCHW - 1.0
    temb = unet.time_embedding(unet.time_proj(t_B).to(unet.dtype))
    h = unet.conv_in(x_BCHW)
    skips: tuple[torch.Tensor, ...] = (h,)
    for block in unet.down_blocks:
        h, new_skips = block(hidden_states=h, temb=temb)
        skips += tuple(new_skips)
    return DownFeatures(h, skips, temb)


def run_up_path(path: UpPath, h: torch.Tensor, skips: tuple[torch.Tensor, ...], temb: Any) -> torch.Tensor:
    """Middle and up blocks of `path` on the down path's output; `temb` travels through untouched."""
    if path.mid_block is not None:
        h = path.mid_block(h, temb)
    for block in path.up_blocks:
        count = len(block.resnets)  # type: ignore[arg-type]
        skips, now = skips[:-count], skips[-count:]
        h = block(h, now, temb)
    return h


def predict_noise(unet: UNet2DModel, down: DownFeatures) -> torch.Tensor:
    """Second half of `unet`: its noise estimate [B, C, H, W] from the down-path features."""
    h = run_up_path(unet, down.hidden, down.skips, down.temb)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


def check_base(unet: UNet2DModel, *, resolution: int | None = None) -> None:
    """Refuse a base that the method cannot stand on.

    Raises:
        ModelError: for a fourier or learned time embedding, class conditioning, a learned variance, blocks
            with their own skip convolutions, or another resolution or channel count than the data's.
    """
    config = unet.config
    problems = {
        f"it uses a {config.time_embedding_type} time embedding": config.time_embedding_type != "positional",
        "it is class-conditional": config.class_embed_type is not None or config.num_class_embeds is not None,
        f"it predicts a variance ({config.out_channels} outputs for {config.in_channels} inputs)": config.out_channels
        == 2 * config.in_channels,
        f"it has {config.in_channels} input and {config.out_channels} output channels, images have 3": (
            config.in_channels != 3 or config.out_channels not in (3, 6)
        ),
        "its blocks carry their own skip convolutions": any(
            hasattr(b, "skip_conv") for b in (*unet.down_blocks, *unet.up_blocks)
        ),
        "it was built with a resampling that cannot be copied": any(
            "Skip" in kind or "KDown" in kind for kind in config.down_block_types
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
    remedy = "Give a folder saved by diffusers (with config.json and safetensors weights) or a Hub id."
    try:
        unet, report = UNet2DModel.from_pretrained(str(folder), output_loading_info=True)
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
    return scheduler
