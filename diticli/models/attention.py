"""Which attention the networks use: xformers on CUDA where it takes the input, else PyTorch's own.

`DITI_ATTENTION=auto|xformers|sdpa` forces a choice.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import nn

from diticli.errors import ConfigError, DeviceError

logger = logging.getLogger(__name__)
CHOICES = ("auto", "xformers", "sdpa")


def use_fast_attention(*modules: nn.Module, device: torch.device) -> str:
    """Set the attention processors of diffusers `modules` for `device`; returns "xformers" or "sdpa".

    Raises:
        ConfigError: for an unknown value of `DITI_ATTENTION`.
        DeviceError: when xformers is asked for and cannot be had.
    """
    wanted = os.environ.get("DITI_ATTENTION", "auto")
    if wanted not in CHOICES:
        raise ConfigError(f"DITI_ATTENTION={wanted!r} is unknown.", remedy=f"Use one of {', '.join(CHOICES)}.")
    if wanted == "sdpa":
        return "sdpa"
    reason = _why_not_xformers(device)
    if reason is None:
        for module in modules:
            module.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
        return "xformers"
    if wanted == "xformers":
        raise DeviceError(f"xformers attention cannot be used: {reason}.", remedy="Unset DITI_ATTENTION.")
    if device.type == "cuda":
        logger.warning("Using PyTorch's attention instead of xformers': %s.", reason)
    return "sdpa"


def _why_not_xformers(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it has no operator for this device"
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError) as error:
        return f"it cannot be imported ({error})"
    try:
        probe = torch.randn(1, 16, 1, 32, device=device, dtype=torch.float16)
        memory_efficient_attention(probe, probe, probe)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        return f"its operator refuses this GPU ({str(error).splitlines()[0]})"
    return None
