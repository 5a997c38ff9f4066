"""Shapes of the tiny models that the fixtures of conftest.py build. Imports no diffusers, see there."""

from __future__ import annotations

from typing import Any

import torch

SIZE, CHUNKS, LATENT_DIM = 16, 4, 16

# Every way in which the bases on the Hub, the official checkpoints and our own presets differ.
UNET_SHAPES: dict[str, dict[str, Any]] = {
    "conv-default": {"kinds": "DA", "resampling": "conv", "shift": "default"},
    "conv-scale_shift": {"kinds": "DD", "resampling": "conv", "shift": "scale_shift"},
    "resnet-default": {"kinds": "RR", "resampling": "resnet", "shift": "default"},
    "resnet-scale_shift": {"kinds": "RA", "resampling": "resnet", "shift": "scale_shift"},
    "ddpm-cifar10-32": {
        "kinds": "DADD",
        "channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 1,
        "attention_head_dim": None,
    },
    "ddpm-celebahq-256": {
        "kinds": "DDDDAD",
        "channels": (8, 8, 8, 8, 16, 16),
        "size": 32,
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 1,
        "attention_head_dim": None,
    },
    "without-attention": {"kinds": "DD", "add_attention": False},
    "centred-and-scaled": {"kinds": "DA", "center_input_sample": True, "mid_block_scale_factor": 2**0.5},
}
_KINDS = {"D": "{way}Block2D", "A": "Attn{way}Block2D", "R": "Resnet{way}sampleBlock2D"}


def tiny_unet_config(
    kinds: str = "DA",
    *,
    channels: tuple[int, ...] = (8, 16),
    size: int = SIZE,
    resampling: str = "conv",
    shift: str = "default",
    **others: Any,
) -> dict[str, Any]:
    """Config of a small `UNet2DModel`; one letter a level: D plain, A with attention, R resnet resampling."""
    return {
        "sample_size": size,
        "block_out_channels": channels,
        "down_block_types": tuple(_KINDS[kind].format(way="Down") for kind in kinds),
        "up_block_types": tuple(_KINDS[kind].format(way="Up") for kind in reversed(kinds)),
        "layers_per_block": 1,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "resnet_time_scale_shift": shift,
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 4,
        **others,
    }


def perturb(module: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """Move every parameter off its initial value, so that no zero hides a path."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module
