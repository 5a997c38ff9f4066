"""The adaptive group norm on rows as PyTorch operators, in plain PyTorch or Triton, differentiable once.

Shapes: B samples, N positions, C = C1 + C2 channels in G groups; x [B, N, C1], skip None or [B, N, C2], both
contiguous; scale and shift [B, C] float32, contiguous. The backend is an argument, so that a compiled graph keeps
the one it was traced with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diti_kernels.adaptive_group_norm import compiled_rows, eager, launch


@torch.library.custom_op("diti::adaptive_group_norm", mutates_args=())
def adaptive_group_norm_op(
    x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Result [B, N, C] of x's dtype, mean and 1/std [B, G] float32 (no gradient reaches these two)."""
    forward = launch.triton_forward if triton else _plain(x).forward_rows
    return forward(x, skip, scale, shift, groups, eps, silu)


@torch.library.custom_op("diti::adaptive_group_norm_backward", mutates_args=())
def adaptive_group_norm_backward_op(
    grad: Tensor,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    silu: bool,
    triton: bool,
    wants_x: bool,
    wants_skip: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, skip, scale and shift; those of x and skip are empty where not wanted."""
    backward = launch.triton_backward if triton else _plain(x).backward_rows
    return backward(grad, x, skip, scale, shift, mean, rstd, groups, silu, (wants_x, wants_skip))


def _plain(x: Tensor) -> Any:
    """Who does it without Triton."""
    return compiled_rows if compiled_rows.serves(x.device.type, x.dtype) else eager


@adaptive_group_norm_op.register_fake
def _fake(
    x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = [scale.new_empty((x.shape[0], groups)) for _ in range(2)]
    return x.new_empty((*x.shape[:2], scale.shape[1])), statistics[0], statistics[1]


@adaptive_group_norm_backward_op.register_fake
def _fake_backward(
    grad: Tensor,
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    rstd: Tensor,
    groups: int,
    silu: bool,
    triton: bool,
    wants_x: bool,
    wants_skip: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if wants_x else (0,))
    dskip = x.new_empty(skip.shape if wants_skip and skip is not None else (0,))
    return dx, dskip, torch.empty_like(scale), torch.empty_like(shift)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, skip, scale, shift, ctx.groups, _, ctx.silu, ctx.triton = inputs
    ctx.save_for_backward(x, skip, scale, shift, output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    wants_x, wants_skip, wants_scale, wants_shift = ctx.needs_input_grad[:4]
    dx, dskip, dscale, dshift = adaptive_group_norm_backward_op(
        grad.contiguous(), *ctx.saved_tensors, ctx.groups, ctx.silu, ctx.triton, wants_x, wants_skip
    )
    return (
        dx if wants_x else None,
        dskip if wants_skip else None,
        dscale if wants_scale else None,
        dshift if wants_shift else None,
        *[None] * 4,
    )


adaptive_group_norm_op.register_autograd(_backward, setup_context=_setup_context)
