"""Adaptive group norm on rows by the C code of `rows.c`, on a CPU in float32.

Shapes: B samples, N positions, C = C1 + C2 channels in G groups; rows [B, N, C] are contiguous.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diti_kernels import native
from diti_kernels.adaptive_group_norm import eager
from diti_kernels.adaptive_group_norm.layout import from_rows, to_rows
from diti_kernels.dispatch import constant_in_graphs

SOURCE = Path(__file__).with_name("rows.c")


class _Shape(ctypes.Structure):
    """`Shape` of rows.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("b", "n", "c1", "c2", "groups", "step")),
        *((name, ctypes.c_int32) for name in ("silu", "threads")),
        ("eps", ctypes.c_float),
    )


@constant_in_graphs
def serves(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the C code runs: on a CPU in float32, where it can be compiled and DITI_KERNELS does not forbid it."""
    return device_type == "cpu" and dtype == torch.float32 and why(device_type).functions is not None


def why(device_type: str = "cpu") -> native.Library:
    """The C code, or why it does not run."""
    return native.forbidden(device_type) or library()


@functools.cache
def library() -> native.Library:
    """The functions, compiled when they are first asked for."""
    return native.load(SOURCE, _is_right)


def forward_rows(
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float,
    silu: bool,
    *,
    functions: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `eager.forward_rows`; `functions` other than those of `library` are for its check."""
    functions = functions or library().functions
    assert functions is not None
    B, N, C = x.shape[0], x.shape[1], scale.shape[1]
    out, mean, rstd = _empty(B, N, C), _empty(B, groups), _empty(B, groups)
    shape = _Shape(B, N, x.shape[2], C - x.shape[2], groups, C, silu, torch.get_num_threads(), eps)
    functions.diti_norm_forward(ctypes.byref(shape), *_addresses(x, skip, scale, shift, out, mean, rstd))
    return out, mean, rstd


def backward_rows(
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
    *,
    functions: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `eager.backward_rows`; `functions` as in `forward_rows`."""
    functions = functions or library().functions
    assert functions is not None
    C = scale.shape[1]
    dx = _empty(*(x.shape if wants[0] else (0,)))
    dskip = _empty(*(skip.shape if skip is not None and wants[1] else (0,)))
    dscale, dshift = _empty(*scale.shape), _empty(*scale.shape)
    written = (dx if wants[0] else None, dskip if dskip.numel() else None)
    B, N, C1 = x.shape
    shape = _Shape(B, N, C1, C - C1, groups, C, silu, torch.get_num_threads(), 0.0)
    tensors = (grad, x, skip, scale, shift, mean, rstd, *written, dscale, dshift)
    functions.diti_norm_backward(ctypes.byref(shape), *_addresses(*tensors))
    return dx, dskip, dscale, dshift


def takes_maps(x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int) -> bool:
    """Whether `forward_maps` takes these arguments as they are; in doubt it does not."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _are_plain_maps(x):
        return False
    channels = x.shape[1]
    if skip is not None:
        if not _are_plain_maps(skip) or skip.shape[0] != x.shape[0] or skip.shape[2:] != x.shape[2:]:
            return False
        channels += skip.shape[1]
    for m in (scale, shift):
        if type(m) not in native.PLAIN or m.dtype != torch.float32 or not m.is_cpu or m.ndim not in (1, 2):
            return False
        if m.shape[-1] != channels or m.stride(-1) != 1 or (m.ndim == 2 and m.shape[0] not in (1, x.shape[0])):
            return False
    if _step(scale) != _step(shift) or groups < 1 or channels % groups:
        return False
    return serves("cpu", torch.float32)


def forward_maps(
    x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
) -> Tensor:
    """The norm [B, C, H, W] of x [B, C1, H, W] and skip [B, C2, H, W], without a gradient and with no copy at all.

    Where maps are small, Python takes longer than the norm. All are as `takes_maps` wants them: maps channels_last,
    scale and shift rows of C values, one row for all samples or one for each.
    """
    functions = library().functions
    assert functions is not None
    B, C1, H, W = x.shape
    C = scale.shape[-1]
    out = torch.empty((B, C, H, W), dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
    statistics = _empty(2, B, groups)
    shape = _Shape(B, H * W, C1, C - C1, groups, _step(scale), silu, torch.get_num_threads(), eps)
    functions.diti_norm_forward(
        ctypes.byref(shape), *_addresses(x, skip, scale, shift, out, statistics[0], statistics[1])
    )
    return out


def _are_plain_maps(x: Tensor) -> bool:
    if type(x) not in native.PLAIN or x.dtype != torch.float32 or not x.is_cpu or x.ndim != 4:
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.numel() > 0


def _step(m: Tensor) -> int:
    """From one sample's scales or shifts to the next one's; 0 where all share them."""
    return m.stride(0) if m.ndim == 2 and m.shape[0] > 1 else 0


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _addresses(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]


def _is_right(functions: ctypes.CDLL) -> bool:
    """Whether values and gradients at two small shapes are those of plain PyTorch, as any compiler must have them."""
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for C1, C2, groups, silu in ((24, 0, 2, True), (40, 24, 4, False)):
            x, other, grad = (torch.randn(2, 67, size, generator=generator) for size in (C1, max(C2, 1), C1 + C2))
            scale, shift = (torch.randn(2, C1 + C2, generator=generator) for _ in range(2))
            skip = other if C2 else None
            given = (x, skip, scale, shift, groups)
            ours, theirs = forward_rows(*given, 1e-5, silu, functions=functions), eager.forward_rows(*given, 1e-5, silu)
            rest = (*given[:4], *theirs[1:], groups, silu, (True, C2 > 0))
            pairs = [*zip(ours, theirs, strict=True)]
            pairs += zip(backward_rows(grad, *rest, functions=functions), eager.backward_rows(grad, *rest), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs):
                return False
    return True


class CompiledNorm(torch.autograd.Function):
    """Adaptive group norm of channels_last maps; differentiable once.

    A function of autograd's, as a custom operator takes 0.1 ms of Python more each way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skip: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> Tensor:
        """x [B, C1, *] and skip [B, C2, *] channels_last, scale, shift [B, C] contiguous -> [B, C, *] channels_last."""
        rows = to_rows(x), None if skip is None else to_rows(skip)
        out, mean, rstd = forward_rows(*rows, scale, shift, groups, eps, silu)
        ctx.save_for_backward(x, skip, scale, shift, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return from_rows(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors that want one."""
        x, skip, scale, shift, mean, rstd = ctx.saved_tensors
        wants_x, wants_skip, wants_scale, wants_shift = ctx.needs_input_grad[:4]
        rows = to_rows(x), None if skip is None else to_rows(skip)
        dx, dskip, dscale, dshift = backward_rows(
            to_rows(grad), *rows, scale, shift, mean, rstd, ctx.groups, ctx.silu, (wants_x, wants_skip)
        )
        return (
            from_rows(dx, x) if wants_x else None,
            from_rows(dskip, skip) if wants_skip else None,
            dscale if wants_scale else None,
            dshift if wants_shift else None,
            *[None] * 3,
        )
