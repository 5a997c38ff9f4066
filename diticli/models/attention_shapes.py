"""The self-attentions that the presets' networks run, found by building them without memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from torch import nn

from diticli.models.build import build_encoder, build_unet
from diticli.models.encoder import SemanticEncoder
from diticli.models.plain_blocks import is_attention
from diticli.settings import build_config


class AttentionShape(NamedTuple):
    """One self-attention.

    Attributes:
        network: "UNet" (the base and the shift branch alike) or "encoder".
        tokens: positions of the map.
        heads: how many.
        head_dim: channels of each.
        batch: images of a training step.
    """

    network: str
    tokens: int
    heads: int
    head_dim: int
    batch: int


def preset_attentions(preset: str) -> list[AttentionShape]:
    """The distinct self-attentions of a preset's second stage, the UNet's from fine to coarse first.

    Raises:
        ConfigError: for an unknown preset.
    """
    config = build_config(preset)
    with torch.device("meta"):
        unet = build_unet(config.unet, config.data.resolution)
        encoder = build_encoder(config)
    batch = config.features.batch_size
    of_unet = [AttentionShape("UNet", size**2, *_heads(block), batch) for size, block in _in_unet(unet)]
    of_encoder = [AttentionShape("encoder", size**2, *_heads(block), batch) for size, block in _in_encoder(encoder)]
    return list(dict.fromkeys(of_unet + of_encoder))


def _in_unet(unet: UNet2DModel) -> Iterator[tuple[int, Any]]:
    """Map size and block; the way up repeats the sizes of the way down."""
    size = unet.config.sample_size
    for level, block in enumerate(unet.down_blocks):
        yield from ((size >> level, attention) for attention in _attentions(block))
    if unet.mid_block is not None:
        yield from ((size >> (len(unet.down_blocks) - 1), attention) for attention in _attentions(unet.mid_block))


def _in_encoder(encoder: SemanticEncoder) -> Iterator[tuple[int, Any]]:
    if encoder.attention is not None:
        yield encoder.config.attention_size, encoder.attention


def _attentions(block: nn.Module) -> Iterator[Any]:
    return (module for module in block.modules() if is_attention(module))


def _heads(block: Any) -> tuple[int, int]:
    return block.heads, block.inner_dim // block.heads
