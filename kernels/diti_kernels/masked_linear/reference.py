"""Timestep-masked projection in plain PyTorch: the definition, the CPU path, and what the kernels must equal.

Shapes: B samples, T timesteps, 2 bounds of a window, d feature dims, E embedding dims.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_linear_reference(
    z: Tensor,
    t: Tensor,
    visible_T2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    own_T2: Tensor | None = None,
) -> Tensor:
    """See `diti_kernels.masked_linear.masked_linear`: same arguments, same result, twice differentiable.

    Equal to `F.linear(z * mask, weight, bias)` bit for bit where z is finite. Hidden dims are replaced rather
    than multiplied, so that a NaN in one cannot reach the result.
    """
    if own_T2 is not None:
        z = torch.where(_inside(own_T2[t], z), z, z.detach())
    return F.linear(torch.where(_inside(visible_T2[t], z), z, 0), weight, bias)


def _inside(window_B2: Tensor, z: Tensor) -> Tensor:
    """Which dims of z [B, d] lie in the window of each sample."""
    dim = torch.arange(z.shape[1], device=z.device)
    return (dim >= window_B2[:, :1]) & (dim < window_B2[:, 1:])
