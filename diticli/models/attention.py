"""Which attention the networks use: xformers on CUDA where its operator takes the shape, else PyTorch's own.

`DITI_ATTENTION=auto|xformers|sdpa` forces a choice.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from torch import nn

from diticli.errors import ConfigError, DeviceError

logger = logging.getLogger(__name__)
CHOICES = ("auto", "xformers", "sdpa")


def use_fast_attention(*modules: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Choose the processor of every diffusers attention block in `modules`.

    Args:
        modules: networks.
        device: where they will run.
        dtype: in which they will compute.

    Returns:
        Head shape ("4 heads of 32") -> "xformers", or "sdpa" with the reason.

    Raises:
        ConfigError: for an unknown value of `DITI_ATTENTION`.
        DeviceError: when xformers is asked for and cannot be had.
    """
    wanted = os.environ.get("DITI_ATTENTION", "auto")
    if wanted not in CHOICES:
        raise ConfigError(f"DITI_ATTENTION={wanted!r} is unknown.", remedy=f"Use one of {', '.join(CHOICES)}.")
    chosen: dict[str, str] = {}
    for block in (b for module in modules for b in module.modules() if isinstance(b, Attention)):
        head_dim = block.inner_dim // block.heads
        reason = "DITI_ATTENTION=sdpa" if wanted == "sdpa" else _why_not_xformers(head_dim, device, dtype)
        if reason is not None and wanted == "xformers":
            raise DeviceError(f"xformers attention cannot be used: {reason}.", remedy="Unset DITI_ATTENTION.")
        block.set_processor(AttnProcessor2_0() if reason else XFormersAttnProcessor())
        chosen[f"{block.heads} heads of {head_dim}"] = f"sdpa ({reason})" if reason else "xformers"
    if device.type == "cuda":
        logger.info("Attention: %s", chosen)
    return chosen


@lru_cache(maxsize=256)
def _why_not_xformers(head_dim: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where xformers computes attention of this shape and its gradient."""
    if device.type != "cuda":
        return "xformers has no operator for this device"
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError) as error:
        return f"xformers cannot be imported: {error}"
    try:
        with torch.enable_grad():
            probe = torch.ones(1, 64, 1, head_dim, device=device, dtype=dtype, requires_grad=True)
            memory_efficient_attention(probe, probe, probe).sum().backward()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"xformers refuses it: {str(error).splitlines()[0]}"
    return None
