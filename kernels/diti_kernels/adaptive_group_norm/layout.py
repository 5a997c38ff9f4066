"""Memory formats, for any number of spatial dims.

Shapes: B samples, C channels, N = product of the spatial dims.
"""

from __future__ import annotations

import math

from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether channels are x's innermost dim in memory. A tensor that is contiguous as well counts as contiguous."""
    return not x.is_contiguous() and x.stride(1) == 1


def like_channels_last(x: Tensor) -> Tensor:
    """[B, C, *] -> the same values with channels innermost in memory; copies only if they are not."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def to_rows(x: Tensor) -> Tensor:
    """[B, C, *] -> contiguous [B, N, C]: a view of a channels_last tensor, a copy of any other."""
    return x.movedim(1, -1).reshape(x.shape[0], math.prod(x.shape[2:]), x.shape[1]).contiguous()


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """[B, N, C] -> [B, C, *] with `like`'s spatial dims, in `like`'s memory format."""
    out = rows.reshape(rows.shape[0], *like.shape[2:], rows.shape[2]).movedim(-1, 1)
    return out if is_channels_last(like) else out.contiguous()
