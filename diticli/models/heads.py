"""Attention heads by number: what `UNet2DModel`'s one width of a head for all levels cannot say.

Guided-diffusion's configs may fix how many heads a block has, so that a head is wider where the block is. Such
a UNet keeps the number in its config as `attention_heads`, an entry that diffusers itself saves, loads and (with
a warning) ignores; whoever builds or loads a UNet here calls `restore_heads` or `unet_from_config`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from diticli.errors import ModelError
from diticli.models.plain_blocks import is_attention
from diticli.models.plain_unet import HEADS

if TYPE_CHECKING:
    from diffusers import UNet2DModel

_UNet = TypeVar("_UNet")

# Diffusers says that it ignores the entry; here it is not ignored.
logging.getLogger("diffusers.configuration_utils").addFilter(lambda record: f"'{HEADS}'" not in record.getMessage())


def unet_from_config(config: Mapping[str, Any]) -> UNet2DModel:
    """A freshly initialised UNet of a `UNet2DModel` config that may hold `attention_heads`.

    Raises:
        ModelError: when the heads do not divide a block's width.
    """
    from diffusers import UNet2DModel

    unet = UNet2DModel(**{k: v for k, v in config.items() if k != HEADS and not k.startswith("_")})
    if config.get(HEADS) is not None:
        unet.register_to_config(**{HEADS: int(config[HEADS])})
    return restore_heads(unet)


def restore_heads(unet: _UNet) -> _UNet:
    """Give every attention block the number of heads that the config names, if it names one; returns `unet`.

    Args:
        unet: a `UNet2DModel` or a `PlainUNet`.

    Raises:
        ModelError: when they do not divide a block's width.
    """
    network: Any = unet
    heads = network.config.get(HEADS)
    if heads is None:
        return unet
    for block in network.modules():
        if is_attention(block):
            if block.inner_dim % heads:
                raise ModelError(
                    f"{heads} attention heads do not divide a block of {block.inner_dim} channels.",
                    remedy="Make the model again with heads that do.",
                )
            block.heads = block.sliceable_head_dim = heads
            block.scale = (block.inner_dim // heads) ** -0.5
    return unet
