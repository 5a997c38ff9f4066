"""Timestep-masked projection in plain PyTorch: the definition, the CPU path, and what the kernels must equal.

Shapes: B samples, T time-steps, d feature dims, E embedding dims.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_linear_reference(
    z: Tensor,
    t: Tensor,
    visible_T: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    own_start_T: Tensor | None = None,
) -> Tensor:
    """See `diti_kernels.masked_linear.masked_linear`: same arguments, same result, twice differentiable.

    Equal to `F.linear(z * mask, weight, bias)` bit for bit where z is finite. Hidden dims are replaced rather
    than multiplied, so that a NaN in one cannot reach the result.
    """
    dim = torch.arange(z.shape[1], device=z.device)
    visible_BD = dim < visible_T[t][:, None]
    if own_start_T is not None:
        z = torch.where(dim >= own_start_T[t][:, None], z, z.detach())
    return F.linear(torch.where(visible_BD, z, 0), weight, bias)
