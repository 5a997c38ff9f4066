"""Adaptive group norm in plain PyTorch: the definition, what `torch.compile` fuses, and what the kernels must equal.

Shapes: B samples, C = C1 + C2 channels in G groups, then any spatial dims.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diti_kernels.adaptive_group_norm.layout import is_channels_last, like_channels_last

Activation = Literal["silu", "none"]


def adaptive_group_norm_reference(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float = 1e-5,
    *,
    skip: Tensor | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """See `diti_kernels.adaptive_group_norm.adaptive_group_norm`: same arguments, same result, twice differentiable.

    Statistics take two passes, and the mean is subtracted before anything is multiplied: E[x^2] - E[x]^2 and
    x * a + b both lose all digits where the mean is much larger than the standard deviation.
    """
    h = x if skip is None else concatenate(x, skip)
    grouped = h.to(working_dtype(x)).unflatten(1, (groups, -1))
    dims = tuple(range(2, grouped.ndim))
    centred = grouped - grouped.mean(dims, keepdim=True)
    variance = centred.square().mean(dims, keepdim=True)
    normalised = (centred * torch.rsqrt(variance + eps)).flatten(1, 2)
    modulated = normalised * per_channel(scale, normalised) + per_channel(shift, normalised)
    return (F.silu(modulated) if activation == "silu" else modulated).to(x.dtype)


def concatenate(x: Tensor, skip: Tensor) -> Tensor:
    """[B, C1, *], [B, C2, *] -> [B, C1 + C2, *] of x's dtype and memory format."""
    skip = skip.to(x.dtype)
    return torch.cat([x, like_channels_last(skip) if is_channels_last(x) else skip.contiguous()], dim=1)


def working_dtype(x: Tensor) -> torch.dtype:
    """Dtype of statistics, modulation and activation: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def per_channel(modulation: Tensor, like: Tensor) -> Tensor:
    """[B, C], [1, C] or [C] -> [B or 1, C, 1, ...] of `like`'s dtype and number of dims."""
    return modulation.to(like.dtype).reshape(-1, modulation.shape[-1], *[1] * (like.ndim - 2))
