"""Launches of the Triton kernels: sizes of tiles by formula, buffers, and which variant serves a shape.

Shapes: B samples, N positions, C = C1 + C2 channels in G groups of D; rows [B, N, C] are contiguous. The kernels
are imported when first launched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diti_kernels.dispatch import LAUNCH_OPTIONS

ONE_PASS_POSITIONS = 1024
# Values of a tile. One pass holds one tile of values forward and two backward, in the registers of one program.
_ONE_PASS_FORWARD, _ONE_PASS_BACKWARD, _STREAMED = 16384, 8192, 4096
# Values of a warp, by what a kernel keeps of each: so many that no thread's registers spill on any chip, and half of a
# multiprocessor's warps are in use (a quarter in one pass). `python -m benchmarks resources` says what they come to.
_FORWARD_VALUES, _BACKWARD_VALUES, _MOMENTS_VALUES, _STREAMED_VALUES = 1024, 512, 512, 256
_WARPS = 32
_LANES = 64  # at least this many neighbouring channels a row where groups allow: two sectors of bf16 or more
_MERGED_AT_ONCE = 64


class Plan(NamedTuple):
    """Sizes of one launch. `tiles` is None where one tile holds all positions of its groups."""

    rows: int
    groups: int
    lanes: int
    tiles: int | None

    def blocks(self, values: int) -> dict[str, int]:
        """The kernels' constants and options, with a warp for so many values."""
        warps = max(1, min(_WARPS, self.rows * self.groups * self.lanes // values))
        return {
            "BLOCK_N": self.rows,
            "BLOCK_G": self.groups,
            "BLOCK_D": self.lanes,
            "num_warps": warps,
            **LAUNCH_OPTIONS,
        }


def plan(positions: int, channels: int, groups: int, one_pass_values: int) -> Plan:
    """Tiles for [B, positions, channels]: one pass where a group's values fit `one_pass_values`."""
    rows, lanes = _power_of_two(positions), _power_of_two(channels // groups)
    if positions <= ONE_PASS_POSITIONS and rows * lanes <= one_pass_values:
        side = min(max(1, _LANES // lanes), one_pass_values // (rows * lanes), _power_of_two(groups))
        return Plan(rows, side, lanes, None)
    side = min(max(1, _LANES // lanes), _power_of_two(groups))
    rows = min(rows, max(1, _STREAMED // (side * lanes)))
    return Plan(rows, side, lanes, -(-positions // rows))


def triton_forward(
    x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `eager.forward_rows`."""
    from diti_kernels.adaptive_group_norm import triton_kernels as kernels

    (B, N, C1), C = x.shape, scale.shape[1]
    G, D = groups, C // groups
    out = torch.empty((B, N, C), dtype=x.dtype, device=x.device)
    mean, rstd = (torch.empty((B, G), dtype=torch.float32, device=x.device) for _ in range(2))
    chosen = plan(N, C, G, _ONE_PASS_FORWARD)
    T, across = chosen.tiles, -(-G // chosen.groups)
    flags = {"HAS_SKIP": skip is not None, "SILU": silu, "D": D}
    sizes = (N, C1, C - C1, G)
    if out.numel() == 0:
        return out, mean, rstd
    with _device_of(x):
        if T is None:
            kernels.adaptive_group_norm_fwd_one_pass_kernel[(B, across)](
                x, skip, scale, shift, out, mean, rstd, *sizes, eps, **flags, **chosen.blocks(_FORWARD_VALUES)
            )
            return out, mean, rstd
        partial = torch.empty((2, B, T, G), dtype=torch.float32, device=x.device)
        grid = (B * T, across)
        kernels.adaptive_group_norm_fwd_moments_kernel[grid](
            x, skip, partial[0], partial[1], *sizes, T, HAS_SKIP=skip is not None, D=D, **chosen.blocks(_MOMENTS_VALUES)
        )
        kernels.adaptive_group_norm_fwd_merge_kernel[(B, across)](
            partial[0], partial[1], mean, rstd, N, G, T, eps,
            D=D, BLOCK_N=chosen.rows, BLOCK_T=min(_MERGED_AT_ONCE, _power_of_two(T)), BLOCK_G=chosen.groups,
            **LAUNCH_OPTIONS,
        )  # fmt: skip
        kernels.adaptive_group_norm_fwd_apply_kernel[grid](
            x, skip, scale, shift, mean, rstd, out, *sizes, T, **flags, **chosen.blocks(_STREAMED_VALUES)
        )
    return out, mean, rstd


def triton_backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    silu: bool,
    wants: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `eager.backward_rows`."""
    from diti_kernels.adaptive_group_norm import triton_kernels as kernels

    (B, N, C1), C = x.shape, scale.shape[1]
    G, D = groups, C // groups
    dx = torch.empty((B, N, C1) if wants[0] else (0,), dtype=x.dtype, device=x.device)
    dskip = torch.empty((B, N, C - C1) if wants[1] else (0,), dtype=x.dtype, device=x.device)
    dscale, dshift = (torch.empty((B, C), dtype=torch.float32, device=x.device) for _ in range(2))
    chosen = plan(N, C, G, _ONE_PASS_BACKWARD)
    T, across = chosen.tiles, -(-G // chosen.groups)
    flags = {"HAS_SKIP": skip is not None, "SILU": silu, "D": D}
    written = {"WANTS_X": wants[0], "WANTS_SKIP": wants[1]}
    known = (grad, x, skip, scale, shift, mean, rstd)
    sizes = (N, C1, C - C1, G)
    if grad.numel() == 0:
        return dx, dskip, dscale.zero_(), dshift.zero_()
    with _device_of(x):
        if T is None:
            kernels.adaptive_group_norm_bwd_one_pass_kernel[(B, across)](
                *known, dx, dskip, dscale, dshift, *sizes, **flags, **written, **chosen.blocks(_BACKWARD_VALUES)
            )
            return dx, dskip, dscale, dshift
        partial = torch.empty((2, B, T, C), dtype=torch.float32, device=x.device)
        means = torch.empty((2, B, G), dtype=torch.float32, device=x.device)
        grid = (B * T, across)
        kernels.adaptive_group_norm_bwd_sums_kernel[grid](
            *known, partial[0], partial[1], *sizes, T, **flags, **chosen.blocks(_STREAMED_VALUES)
        )
        kernels.adaptive_group_norm_bwd_merge_kernel[(B, across)](
            partial[0], partial[1], scale, dscale, dshift, means[0], means[1], N, C, G, T,
            D=D, BLOCK_T=min(_MERGED_AT_ONCE, _power_of_two(T)), BLOCK_G=chosen.groups, BLOCK_D=chosen.lanes,
            **LAUNCH_OPTIONS,
        )  # fmt: skip
        if any(wants):
            kernels.adaptive_group_norm_bwd_dx_kernel[grid](
                *known, means[0], means[1], dx, dskip, *sizes, T, **flags, **written, **chosen.blocks(_STREAMED_VALUES)
            )
    return dx, dskip, dscale, dshift


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launches go to the device of `tensor`, which need not be the current one."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def _power_of_two(size: int) -> int:
    """The least power of two that covers `size`."""
    return 1 << max(0, size - 1).bit_length()
