"""Checks of base, noise schedule and weights that every model passes, however it is loaded or built.

The base is run by `diticli.models.unet_forward`, not by diffusers' own forward, so every setting that would change that
forward is either computed there too or refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diticli.errors import ModelError
from diticli.models.bounds import scheduler_problem, unet_problem
from diticli.reading import quoted, shortened

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
HEADS = "attention_heads"
"""A setting that diffusers lacks: the number of heads of every attention block, in place of their width.

Guided-diffusion's configs may fix how many heads a block has, so that a head is wider where the block is. Diffusers
keeps the entry in a config, and ignores it with a warning.
"""
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

# Settings of diffusers' `EMAModel`, which it keeps in the config of the averaged UNet.
_EMA_SETTINGS = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
_KNOWN = {*DEFAULTS, *_EMA_SETTINGS, HEADS}
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
BASE_REMEDY = (
    "Use an unconditional UNet2DModel that predicts noise with a positional time embedding, "
    "or leave --base out to train one."
)


def check_base_config(config: Mapping[str, Any], *, resolution: int | None = None, channels: int | None = None) -> None:
    """Refuse the config of a base that cannot be run here; missing entries are the defaults of `UNet2DModel`.

    Raises:
        ModelError: for another class of network, a fourier or learned time embedding, class conditioning, a learned
            variance, blocks or settings that cannot be run here, or another resolution or channel count than the
            data's.
    """
    try:
        problem = _problem(config)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"This base cannot be used: its config has a wrong value ({shortened(error)}).", remedy=BASE_REMEDY
        ) from error
    if problem:
        raise ModelError(f"This base cannot be used: {shortened(problem)}.", remedy=BASE_REMEDY)
    size = (DEFAULTS | dict(config))["sample_size"]
    size = size[0] if isinstance(size, list | tuple) else size
    if resolution is not None and size is not None and size != resolution:
        raise ModelError(
            f"The base was trained at {size} px, the run wants {resolution} px.",
            remedy=f"Use --resolution {size}, or another base.",
        )
    own = (DEFAULTS | dict(config))["in_channels"]
    if channels is not None and own != channels:
        raise ModelError(
            f"The base was trained on pictures of {own} channels, the run wants {channels}.",
            remedy=f"Use --channels {own}, or another base.",
        )


def _problem(config: Mapping[str, Any]) -> str | None:
    """The first reason why a base of this config cannot be run here."""
    network = config.get("_class_name", "UNet2DModel")
    if network != "UNet2DModel":
        return f"it is a {network}"
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    c = DEFAULTS | own
    if out_of_bounds := unet_problem(c):
        return out_of_bounds
    foreign = sorted(key for key in own.keys() - _KNOWN if own[key] is not None and own[key] is not False)
    blocks = [*c["down_block_types"], *c["up_block_types"]]
    unknown = sorted({*blocks} - {*DOWN_BLOCKS, *UP_BLOCKS})
    misplaced = sorted({*c["down_block_types"]} & {*UP_BLOCKS} | {*c["up_block_types"]} & {*DOWN_BLOCKS})
    widths = [int(width) for width in c["block_out_channels"]]
    lengths = [len(c["down_block_types"]), len(widths), len(c["up_block_types"])]
    sides = c["sample_size"] if isinstance(c["sample_size"], list | tuple) else [c["sample_size"]]
    head, fewest = c["attention_head_dim"], min(widths, default=0)
    inputs, outputs = c["in_channels"], c["out_channels"]
    embedding = c["time_embedding_type"]
    problems = {
        f"it uses a {embedding} time embedding": embedding != "positional",
        "it is class-conditional": c["class_embed_type"] is not None or c["num_class_embeds"] is not None,
        f"it predicts a variance ({outputs} outputs for {inputs} inputs)": outputs == 2 * inputs,
        f"it has {inputs} input and {outputs} output channels, images have 1 or 3": inputs != outputs
        or inputs not in (1, 3),
        f"its blocks are {', '.join(unknown)}": bool(unknown),
        f"its blocks {', '.join(misplaced)} are on the wrong path": bool(misplaced),
        f"it has {lengths[0]} down blocks, {lengths[1]} widths and {lengths[2]} up blocks": len({*lengths}) != 1,
        f"its activation is {c['act_fn']}": c["act_fn"] not in ("silu", "swish"),
        f"its blocks take the time embedding by {quoted(c['resnet_time_scale_shift'])}": c["resnet_time_scale_shift"]
        not in ("default", "scale_shift"),
        f"it resamples by {quoted(c['downsample_type'])} and {quoted(c['upsample_type'])}": any(
            how not in ("conv", "resnet", None) for how in (c["downsample_type"], c["upsample_type"])
        ),
        f"its downsampling pads by {c['downsample_padding']}": c["downsample_padding"] not in (0, 1),
        f"its attention heads of {head} channels are wider than a block of {fewest}": head is not None
        and any(block.startswith("Attn") for block in blocks)
        and not 0 < head <= fewest,
        f"its images are not square ({sides})": len({*sides}) != 1,
        f"it has settings that are unknown here ({', '.join(foreign)})": bool(foreign),
    }
    return next((what for what, holds in problems.items() if holds), None)


def check_scheduler(config: Mapping[str, Any], where: str) -> None:
    """Refuse the config of a scheduler that predicts something else than noise, or whose schedule has no betas.

    Args:
        config: of a diffusers scheduler.
        where: which one, for the message.

    Raises:
        ModelError: naming what it lacks or predicts.
    """
    # Until diffusers 0.9 `predict_epsilon: false` said what `prediction_type: sample` says now.
    predicts = config.get("prediction_type") or "epsilon"
    if config.get("predict_epsilon") is False:
        predicts = "sample"
    if predicts != "epsilon":
        raise ModelError(
            f"The base predicts {predicts}, the method needs noise (epsilon) prediction ({where}).",
            remedy="Use another base.",
        )
    if missing := [name for name in _BETAS if name not in config]:
        raise ModelError(
            f"The {config.get('_class_name', 'scheduler')} in {where} is not a schedule of betas: "
            f"it has no {', '.join(missing)}.",
            remedy="Use a base that was trained with a DDPM or DDIM scheduler.",
        )
    if problem := scheduler_problem(config):
        raise ModelError(f"The scheduler in {where} cannot be used: {problem}.", remedy="Copy it again.")
    given, timesteps = config.get("trained_betas"), config["num_train_timesteps"]
    if given is not None and len(given) != timesteps:
        raise ModelError(
            f"The scheduler in {where} has {len(given):,} betas, its config says {timesteps:,} timesteps.",
            remedy=f"Save it with num_train_timesteps={len(given)}.",
        )


def check_finite(networks: Mapping[str, nn.Module], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        networks: by name.
        where: what they are, for the message.

    Raises:
        ModelError: naming the first of them.
    """
    tensors = ((f"{part}.{name}", p) for part, net in networks.items() for name, p in net.named_parameters())
    if broken := [name for name, value in tensors if not (value.is_meta or _is_finite(value.detach()))]:
        raise ModelError(
            f"{where} has weights that are not finite (NaN or infinite): {', '.join(broken[:3])}"
            f"{' and more' if len(broken) > 3 else ''}.",
            remedy="Its training diverged or its file is damaged: use an earlier checkpoint, or copy it again.",
        )


def _is_finite(value: torch.Tensor) -> bool:
    # The sum needs no mask in memory; only a sum that overflows asks for one.
    return bool(value.sum(dtype=torch.float32).isfinite()) or bool(value.isfinite().all())
