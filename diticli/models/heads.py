"""Attention heads by number: what `UNet2DModel`'s one width of a head for all levels cannot say.

Guided-diffusion's configs may fix how many heads a block has, so that a head is wider where the block is. Such
a UNet keeps the number in its config as `attention_heads`, an entry that diffusers itself saves, loads and (with
a warning) ignores; whoever builds or loads a UNet here calls `restore_heads` or `unet_from_config`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention

from diticli.errors import ModelError

HEADS = "attention_heads"

# Diffusers says that it ignores the entry; here it is not ignored.
logging.getLogger("diffusers.configuration_utils").addFilter(lambda record: f"'{HEADS}'" not in record.getMessage())


def unet_from_config(config: Mapping[str, Any]) -> UNet2DModel:
    """A freshly initialised UNet of a `UNet2DModel` config that may hold `attention_heads`.

    Raises:
        ModelError: when the heads do not divide a block's width.
    """
    unet = UNet2DModel(**{k: v for k, v in config.items() if k != HEADS and not k.startswith("_")})
    if config.get(HEADS) is not None:
        unet.register_to_config(**{HEADS: int(config[HEADS])})
    return restore_heads(unet)


def restore_heads(unet: UNet2DModel) -> UNet2DModel:
    """Give every attention block the number of heads that the config names, if it names one; returns `unet`.

    Raises:
        ModelError: when they do not divide a block's width.
    """
    heads = unet.config.get(HEADS)
    if heads is None:
        return unet
    for block in unet.modules():
        if isinstance(block, Attention):
            if block.inner_dim % heads:
                raise ModelError(f"{heads} attention heads do not divide a block of {block.inner_dim} channels.")
            block.heads = block.sliceable_head_dim = heads
            block.scale = (block.inner_dim // heads) ** -0.5
    return unet
