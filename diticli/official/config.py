"""Official configs -> ours: which UNet, encoder and noise schedule they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diticli.errors import ModelError
from diticli.models.bounds import MAX_LAYERS, MAX_LEVELS, MAX_WIDTH, scheduler_problem, unet_problem
from diticli.models.gate import DEFAULTS, HEADS
from diticli.models.pipeline import DDPMScheduler
from diticli.official.chunks import NOT_CONVERTIBLE, RESTORE_CONFIG
from diticli.reading import quoted

GROUPS = 32
MAX_COUNT = 1_000_000
MAX_TIMESTEPS = 10_000
"""Of an official run, whose tables of chunks cost timesteps x chunks."""


class EncoderShape(NamedTuple):
    """Output channels of each stride-2 convolution, and the images' height and width."""

    widths: tuple[int, ...]
    resolution: int


_AT_128 = EncoderShape((64, 128, 256, 256, 256), 128)
ENCODERS = {
    "CELEBA64Encoder": EncoderShape((64, 128, 128, 128), 64),
    "FFHQEncoder": _AT_128,
    "BEDROOMEncoder": _AT_128,
    "CELEBAHQEncoder": _AT_128,
    "HORSEEncoder": _AT_128,
}


def encoder_config(model: str, latent_dim: int) -> dict[str, Any]:
    """`SemanticEncoder` config of an official encoder class.

    Raises:
        ModelError: for a class that is not one of `ENCODERS`.
    """
    if model not in ENCODERS:
        why = " (a ResNet with batch normalisation, another architecture)" if "ResNet" in str(model) else ""
        raise ModelError(
            f"The encoder {quoted(model)}{why} cannot be converted.", remedy=f"Known encoders: {', '.join(ENCODERS)}."
        )
    shape = ENCODERS[model]
    return {"sample_size": shape.resolution, "widths": shape.widths, "latent_dim": latent_dim}


def unet_config(denoise_fn_config: Mapping[str, Any], resolution: int | None) -> dict[str, Any]:
    """`UNet2DModel` config, perhaps with `attention_heads`, of an official `denoise_fn_config`.

    Raises:
        ModelError: for a shape that `UNet2DModel` cannot express, and for values that are missing or impossible.
    """
    c = denoise_fn_config
    _refuse(c)
    base = integer(c, "base_channel", MAX_WIDTH)
    layers = integer(c, "num_residual_blocks_of_a_block", MAX_LAYERS)
    multipliers = _numbers(c, "channel_multiplier")
    if not 1 <= len(multipliers) <= MAX_LEVELS:
        raise ModelError(
            f"The config's channel_multiplier has {len(multipliers):,} levels, not 1 to {MAX_LEVELS}.",
            remedy="Check the run's config.",
        )
    channels = [int(m * base) for m in multipliers]
    at = _numbers(c, "attention_resolutions")
    with_attention = [2**level in at for level in range(len(channels))]
    if channels[0] != base or any(width % GROUPS for width in channels):
        raise ModelError(
            f"A UNet whose levels are {channels} channels wide (base_channel {base}) cannot be expressed: the first "
            f"must be as wide as base_channel, and all must be multiples of {GROUPS}.",
            remedy=NOT_CONVERTIBLE,
        )
    config = {
        "sample_size": resolution,
        "in_channels": integer(c, "input_channel"),
        "out_channels": integer(c, "input_channel"),
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in with_attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(with_attention)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,
        "norm_eps": 1e-5,
        "dropout": float(c.get("dropout") or 0.0),
        **_heads(c, {ch for ch, a in zip(channels, with_attention, strict=True) if a} | {channels[-1]}),
    }
    if problem := unet_problem(DEFAULTS | config):
        raise ModelError(f"This UNet cannot be converted: {problem}.", remedy="Copy the config again.")
    return config


def new_qkv_order(denoise_fn_config: Mapping[str, Any]) -> bool:
    """Whether the fused qkv holds q, k, v first and the heads within each."""
    return bool(denoise_fn_config.get("use_new_attention_order", False))


def official_scheduler(diffusion_config: Mapping[str, Any]) -> DDPMScheduler:
    """The noise schedule of an official `diffusion_config`.

    Raises:
        ModelError: for one that is not linear (the official code knows no other), or impossible values.
    """
    kind = diffusion_config.get("betas_type", "linear")
    if kind != "linear":
        raise ModelError(
            f"The noise schedule {quoted(kind)} cannot be converted: only linear betas can.", remedy=NOT_CONVERTIBLE
        )
    try:
        start, end = (float(diffusion_config[f"linear_beta_{side}"]) for side in ("start", "end"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"diffusion_config lacks linear_beta_start or linear_beta_end: {error}.", remedy=RESTORE_CONFIG
        ) from error
    config = {
        "num_train_timesteps": integer(diffusion_config, "timesteps", MAX_TIMESTEPS),
        "beta_start": start,
        "beta_end": end,
    }
    if problem := scheduler_problem(config):
        raise ModelError(f"The noise schedule cannot be converted: {problem}.", remedy="Copy the config again.")
    return DDPMScheduler(**config, clip_sample=False)


def integer(config: Mapping[str, Any], key: str, most: int = MAX_COUNT) -> int:
    """A whole number of a config, from 1 to `most`.

    Raises:
        ModelError: when it is missing or another thing.
    """
    value = config.get(key)
    try:
        number = int(value)  # type: ignore[arg-type]  # what it is not, the exception says
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"The config should give {key} as a whole number, got {quoted(value)}.", remedy=RESTORE_CONFIG
        ) from error
    if number < 1:
        raise ModelError(f"The config's {key} must be above zero, got {quoted(number)}.", remedy=RESTORE_CONFIG)
    if number > most:
        raise ModelError(
            f"The config's {key} is {quoted(number)}, above {most:,}, and no model's.", remedy="Copy the config again."
        )
    return number


def _numbers(config: Mapping[str, Any], key: str) -> list[float]:
    values = config.get(key)
    if not isinstance(values, list) or any(not isinstance(v, int | float) for v in values):
        raise ModelError(
            f"The config should give {key} as a list of numbers, got {quoted(values)}.", remedy=RESTORE_CONFIG
        )
    return values


def _refuse(c: Mapping[str, Any]) -> None:
    reasons = {
        "learn_sigma": "it predicts a variance (learn_sigma)",
        "num_class": f"it is class-conditional (num_class {quoted(c.get('num_class'))})",
    }
    for key, why in reasons.items():
        if c.get(key):
            raise ModelError(f"This UNet cannot be converted: {why}.", remedy="Use an unconditional noise predictor.")
    if c.get("dims", 2) != 2:
        raise ModelError(
            f"This UNet cannot be converted: it is for data of {quoted(c['dims'])} dimensions.", remedy=NOT_CONVERTIBLE
        )


def _heads(c: Mapping[str, Any], widths: set[int]) -> dict[str, Any]:
    """Heads of one width are `attention_head_dim`; several heads by number at several widths are `attention_heads`."""
    fixed = -1 if c.get("head_channel", -1) == -1 else integer(c, "head_channel")
    number = integer(c, "num_heads") if fixed == -1 else 1
    if bad := sorted(w for w in widths if w % (number if fixed == -1 else fixed)):
        raise ModelError(
            f"Attention blocks of {bad} channels do not divide into "
            + (f"{number} heads." if fixed == -1 else f"heads of {fixed} channels."),
            remedy=RESTORE_CONFIG,
        )
    if fixed != -1:
        return {"attention_head_dim": fixed}
    if number == 1:
        return {"attention_head_dim": None}
    if len(widths) == 1:
        return {"attention_head_dim": widths.pop() // number}
    return {"attention_head_dim": None, HEADS: number}
