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
    root = Path(name_or_path).expanduser()
    if (root / "base").is_dir():
        root = root / "base"
    source = str(root) if root.exists() else name_or_path
    has_unet_folder = (root / "unet").is_dir() if root.exists() else _hub_has_unet(name_or_path)
    try:
        unet = UNet2DModel.from_pretrained(source, subfolder="unet" if has_unet_folder else None)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"Cannot load a base from {name_or_path!r}: {first_line(error)}",
            remedy="Give a folder saved by diffusers (with config.json and safetensors weights) or a Hub id.",
        ) from error
    check_base(unet, resolution=resolution)
    return unet.requires_grad_(False).eval(), _load_scheduler(source, root)


def _hub_has_unet(repo_id: str) -> bool:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi().file_exists(repo_id, "unet/config.json")
    except HFValidationError as error:
        raise ModelError(
            f"{repo_id!r} is neither a folder nor a Hub id.", remedy="Check the path given to --base."
        ) from error
    except (HfHubHTTPError, OSError):
        return False


def _load_scheduler(source: str, root: Path) -> DDPMScheduler:
    subfolder = "scheduler" if not root.exists() or (root / "scheduler").is_dir() else None
    try:
        scheduler = DDPMScheduler.from_pretrained(source, subfolder=subfolder)
    except (OSError, ValueError):  # a bare UNet comes without one: the schedule of the DDPM paper
        return DDPMScheduler(clip_sample=False)
    if scheduler.config.prediction_type != "epsilon":
        raise ModelError(
            f"The base predicts {scheduler.config.prediction_type}, the method needs noise (epsilon) prediction.",
            remedy="Use another base.",
        )
    return scheduler


def first_line(error: BaseException) -> str:
    """First line of an exception's text, for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
