# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of the timestep-masked projection.

The mask lives only in the predicates of loads and stores. Every output tile belongs to one program, which
sums over its whole inner dimension in a fixed order: no atomics, so two runs agree bit for bit. Sums are
fp32, offsets 64-bit. fp32 inputs are multiplied in IEEE fp32, as `F.linear` does by default, never in TF32.

Shapes: B samples, T timesteps, D feature dims, E embedding dims; z [B, D], t [B], tables [T, 2] (contiguous; start
and end of a window), weight [E, D], grad and out [B, E]. A timestep outside [0, T) shows nothing, rather than
reading what lies beside the table.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _time_of(t_ptr, rows, stride_t, B, T):
    """Timesteps of `rows`, and which of them are rows with a timestep of the table."""
    t = tl.load(t_ptr + rows * stride_t, mask=rows < B, other=0).to(tl.int64)
    return t, (rows < B) & (t >= 0) & (t < T)


@triton.jit
def _window_of(table_ptr, t, known, D):
    """Start and end of each row's window within [0, D); D and 0 where it is empty or the row is not known."""
    start = tl.maximum(tl.load(table_ptr + 2 * t, mask=known, other=0), 0)
    end = tl.minimum(tl.load(table_ptr + 2 * t + 1, mask=known, other=0), D)
    return tl.where(start < end, start, D), tl.where(start < end, end, 0)


@triton.jit
def masked_linear_fwd_kernel(
    z_ptr, t_ptr, visible_ptr, weight_ptr, bias_ptr, out_ptr,
    B, T, D, E,
    stride_zb, stride_zd, stride_t, stride_we, stride_wd,
    HAS_BIAS: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out[b, e] = sum over dims in visible[t_b] of z[b, dim] weight[e, dim], plus bias[e].

    Grid: tiles of B, tiles of E.
    """
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E).to(tl.int64)
    t, known = _time_of(t_ptr, rows, stride_t, B, T)
    start, end = _window_of(visible_ptr, t, known, D)
    acc = tl.zeros((BLOCK_B, BLOCK_E), dtype=tl.float32)
    lowest = tl.min(start, axis=0) // BLOCK_D * BLOCK_D
    for first in range(lowest, tl.max(end, axis=0), BLOCK_D):
        dims = first + tl.arange(0, BLOCK_D).to(tl.int64)
        z = tl.load(
            z_ptr + rows[:, None] * stride_zb + dims[None, :] * stride_zd,
            mask=(dims[None, :] >= start[:, None]) & (dims[None, :] < end[:, None]),
            other=0.0,
        )
        weight_t = tl.load(
            weight_ptr + cols[None, :] * stride_we + dims[:, None] * stride_wd,
            mask=(cols[None, :] < E) & (dims[:, None] < D),
            other=0.0,
        )
        acc = tl.dot(z, weight_t, acc=acc, input_precision="ieee")
    if HAS_BIAS:
        acc += tl.load(bias_ptr + cols, mask=cols < E, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + rows[:, None] * E + cols[None, :],
        acc.to(out_ptr.dtype.element_ty),
        mask=(rows[:, None] < B) & (cols[None, :] < E),
    )


@triton.jit
def masked_linear_bwd_dz_kernel(
    grad_ptr, weight_ptr, t_ptr, visible_ptr, own_ptr, dz_ptr,
    B, T, D, E,
    stride_gb, stride_ge, stride_we, stride_wd, stride_t,
    HAS_OWN: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dz[b, dim] = sum over e of grad[b, e] weight[e, dim] for dims in visible[t_b] and own[t_b], else 0.

    Grid: tiles of B, tiles of D.
    """
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B).to(tl.int64)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    t, known = _time_of(t_ptr, rows, stride_t, B, T)
    start, end = _window_of(visible_ptr, t, known, D)
    if HAS_OWN:
        own_start, own_end = _window_of(own_ptr, t, known, D)
        start, end = tl.maximum(start, own_start), tl.minimum(end, own_end)
    own = (dims[None, :] >= start[:, None]) & (dims[None, :] < end[:, None])
    acc = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    # A tile without a single own dim has nothing to sum: its zeros are stored at once.
    last = tl.where(tl.max(tl.max(own.to(tl.int32), axis=1), axis=0) > 0, E, 0)
    for first in range(0, last, BLOCK_E):
        cols = first + tl.arange(0, BLOCK_E).to(tl.int64)
        grad = tl.load(
            grad_ptr + rows[:, None] * stride_gb + cols[None, :] * stride_ge,
            mask=(rows[:, None] < B) & (cols[None, :] < E),
            other=0.0,
        )
        weight = tl.load(
            weight_ptr + cols[:, None] * stride_we + dims[None, :] * stride_wd,
            mask=(cols[:, None] < E) & (dims[None, :] < D),
            other=0.0,
        )
        acc = tl.dot(grad, weight, acc=acc, input_precision="ieee")
    tl.store(
        dz_ptr + rows[:, None] * D + dims[None, :],
        tl.where(own, acc, 0.0).to(dz_ptr.dtype.element_ty),
        mask=(rows[:, None] < B) & (dims[None, :] < D),
    )


@triton.jit
def masked_linear_bwd_dw_kernel(
    grad_ptr, z_ptr, t_ptr, visible_ptr, dw_ptr, db_ptr,
    B, T, D, E,
    stride_gb, stride_ge, stride_zb, stride_zd, stride_t,
    BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dw[e, dim] = sum over b with dim in visible[t_b] of grad[b, e] z[b, dim]; db[e] = sum of grad[b, e].

    Grid: tiles of E, tiles of D. The programs of the first tile of D also write db.
    """
    cols = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E).to(tl.int64)
    dims = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D).to(tl.int64)
    acc = tl.zeros((BLOCK_E, BLOCK_D), dtype=tl.float32)
    db = tl.zeros((BLOCK_E,), dtype=tl.float32)
    for first in range(0, B, BLOCK_B):
        rows = first + tl.arange(0, BLOCK_B).to(tl.int64)
        t, known = _time_of(t_ptr, rows, stride_t, B, T)
        start, end = _window_of(visible_ptr, t, known, D)
        grad_t = tl.load(
            grad_ptr + rows[None, :] * stride_gb + cols[:, None] * stride_ge,
            mask=(rows[None, :] < B) & (cols[:, None] < E),
            other=0.0,
        )
        z = tl.load(
            z_ptr + rows[:, None] * stride_zb + dims[None, :] * stride_zd,
            mask=(dims[None, :] >= start[:, None]) & (dims[None, :] < end[:, None]),
            other=0.0,
        )
        acc = tl.dot(grad_t, z, acc=acc, input_precision="ieee")
        db += tl.sum(grad_t.to(tl.float32), axis=1)
    tl.store(
        dw_ptr + cols[:, None] * D + dims[None, :],
        acc.to(dw_ptr.dtype.element_ty),
        mask=(cols[:, None] < E) & (dims[None, :] < D),
    )
    if tl.program_id(1) == 0:
        tl.store(db_ptr + cols, db.to(db_ptr.dtype.element_ty), mask=cols < E)
