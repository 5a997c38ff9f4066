# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of the adaptive group norm, over rows [B, N, C] (channels_last memory).

Tiles (`triton_tiles`) are of whole groups, so that none shares a statistic with another. Few positions: one kernel
each way keeps its tile in registers. Many: partial results per tile of positions, a merge in fixed order, then the
elementwise pass. No atomics: two runs agree bit for bit. Sums are fp32, centred on a mean; offsets are 64-bit.

Shapes: B samples, N positions, C = C1 + C2 channels in G groups of D, T tiles of positions; x [B, N, C1],
skip [B, N, C2], out and grad [B, N, C], scale and shift [B, C], mean and rstd [B, G], partial_* [B, T, G or C].
"""

from __future__ import annotations

import triton
import triton.language as tl

from diti_kernels.adaptive_group_norm.triton_tiles import (
    lanes,
    load,
    load_channels,
    load_groups,
    load_normalised,
    modulate,
    moments,
    spread,
    store_dx,
    sum_group,
    through_silu,
)


@triton.jit
def adaptive_group_norm_fwd_one_pass_kernel(
    x_ptr, skip_ptr, scale_ptr, shift_ptr, out_ptr, mean_ptr, rstd_ptr,
    N, C1, C2, G, eps,
    HAS_SKIP: tl.constexpr, SILU: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Everything at once, where all positions of a group fit a tile. Grid: samples, tiles of groups."""
    b = tl.program_id(0).to(tl.int64)
    _, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    row = (b * N + n)[:, None]
    mask = (n < N)[:, None] & valid[None, :]
    h = load(x_ptr, skip_ptr, row, channel[None, :], mask, C1, C2, HAS_SKIP)
    size = 1.0 * N * D
    mean, squares = moments(h, mask, size, BLOCK_G, BLOCK_D)
    rstd = 1 / tl.sqrt(squares / size + eps)
    C = C1 + C2
    scale = load_channels(scale_ptr, b, channel, valid, C)
    shift = load_channels(shift_ptr, b, channel, valid, C)
    normalised = (h - spread(mean, BLOCK_G, BLOCK_D)[None, :]) * spread(rstd, BLOCK_G, BLOCK_D)[None, :]
    value = modulate(normalised, scale, shift, SILU)
    tl.store(out_ptr + row * C + channel[None, :], value.to(out_ptr.dtype.element_ty), mask=mask)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    tl.store(mean_ptr + b * G + groups, mean, mask=groups < G)
    tl.store(rstd_ptr + b * G + groups, rstd, mask=groups < G)


@triton.jit
def adaptive_group_norm_fwd_moments_kernel(
    x_ptr, skip_ptr, partial_mean_ptr, partial_squares_ptr,
    N, C1, C2, G, T,
    HAS_SKIP: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each tile. Grid: samples times tiles of positions, tiles of groups."""
    b, t = tl.program_id(0).to(tl.int64) // T, tl.program_id(0) % T
    _, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    n = t * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (n < N)[:, None] & valid[None, :]
    h = load(x_ptr, skip_ptr, (b * N + n)[:, None], channel[None, :], mask, C1, C2, HAS_SKIP)
    size = (tl.minimum(N - t * BLOCK_N, BLOCK_N) * D).to(tl.float32)
    mean, squares = moments(h, mask, size, BLOCK_G, BLOCK_D)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    tl.store(partial_mean_ptr + (b * T + t) * G + groups, mean, mask=groups < G)
    tl.store(partial_squares_ptr + (b * T + t) * G + groups, squares, mask=groups < G)


@triton.jit
def adaptive_group_norm_fwd_merge_kernel(
    partial_mean_ptr, partial_squares_ptr, mean_ptr, rstd_ptr,
    N, G, T, eps,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Merge the moments of tiles (Chan, Golub & LeVeque, 1983, equation 2.1). Grid: samples, tiles of groups."""
    b = tl.program_id(0).to(tl.int64)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    total = tl.zeros((BLOCK_G,), dtype=tl.float32)
    # Means are summed relative to the first tile's, whose digits the others mostly share.
    origin = tl.load(partial_mean_ptr + b * T * G + groups, mask=groups < G, other=0.0)
    for first in range(0, T, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t < T)[:, None] & (groups < G)[None, :]
        count = tl.minimum(N - t * BLOCK_N, BLOCK_N).to(tl.float32)[:, None]
        tile_mean = tl.load(partial_mean_ptr + (b * T + t)[:, None] * G + groups[None, :], mask=mask, other=0.0)
        total += tl.sum(tl.where(mask, count * (tile_mean - origin[None, :]), 0.0), axis=0)
    offset = total / N
    squares = tl.zeros((BLOCK_G,), dtype=tl.float32)
    for first in range(0, T, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t < T)[:, None] & (groups < G)[None, :]
        count = (tl.minimum(N - t * BLOCK_N, BLOCK_N) * D).to(tl.float32)[:, None]
        at = (b * T + t)[:, None] * G + groups[None, :]
        apart = tl.load(partial_mean_ptr + at, mask=mask, other=0.0) - origin[None, :] - offset[None, :]
        inside = tl.load(partial_squares_ptr + at, mask=mask, other=0.0)
        squares += tl.sum(tl.where(mask, inside + count * apart * apart, 0.0), axis=0)
    variance = squares / (1.0 * N * D)
    tl.store(mean_ptr + b * G + groups, origin + offset, mask=groups < G)
    tl.store(rstd_ptr + b * G + groups, 1 / tl.sqrt(variance + eps), mask=groups < G)


@triton.jit
def adaptive_group_norm_fwd_apply_kernel(
    x_ptr, skip_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, out_ptr,
    N, C1, C2, G, T,
    HAS_SKIP: tl.constexpr, SILU: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Normalise, modulate and activate. Grid: samples times tiles of positions, tiles of groups."""
    b, t = tl.program_id(0).to(tl.int64) // T, tl.program_id(0) % T
    group, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    n = t * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (b * N + n)[:, None]
    mask = (n < N)[:, None] & valid[None, :]
    normalised, _ = load_normalised(
        x_ptr, skip_ptr, mean_ptr, rstd_ptr, b, row, group, channel, valid, mask, C1, C2, G, HAS_SKIP
    )
    C = C1 + C2
    scale = load_channels(scale_ptr, b, channel, valid, C)
    shift = load_channels(shift_ptr, b, channel, valid, C)
    value = modulate(normalised, scale, shift, SILU)
    tl.store(out_ptr + row * C + channel[None, :], value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def adaptive_group_norm_bwd_one_pass_kernel(
    grad_ptr, x_ptr, skip_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, dx_ptr, dskip_ptr, dscale_ptr, dshift_ptr,
    N, C1, C2, G,
    HAS_SKIP: tl.constexpr, SILU: tl.constexpr, WANTS_X: tl.constexpr, WANTS_SKIP: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All gradients at once, where all positions of a group fit a tile. Grid: samples, tiles of groups."""
    b = tl.program_id(0).to(tl.int64)
    group, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    row = (b * N + n)[:, None]
    mask = (n < N)[:, None] & valid[None, :]
    C = C1 + C2
    scale = load_channels(scale_ptr, b, channel, valid, C)
    shift = load_channels(shift_ptr, b, channel, valid, C)
    normalised, rstd = load_normalised(
        x_ptr, skip_ptr, mean_ptr, rstd_ptr, b, row, group, channel, valid, mask, C1, C2, G, HAS_SKIP
    )
    grad = tl.load(grad_ptr + row * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    inner = through_silu(grad, normalised, scale, shift, SILU)
    dshift, dscale = tl.sum(inner, axis=0), tl.sum(inner * normalised, axis=0)
    tl.store(dshift_ptr + b * C + channel, dshift, mask=valid)
    tl.store(dscale_ptr + b * C + channel, dscale, mask=valid)
    size = 1.0 * N * D
    mean_grad = spread(sum_group(scale * dshift, BLOCK_G, BLOCK_D) / size, BLOCK_G, BLOCK_D)
    mean_product = spread(sum_group(scale * dscale, BLOCK_G, BLOCK_D) / size, BLOCK_G, BLOCK_D)
    dh = (inner * scale[None, :] - mean_grad[None, :] - normalised * mean_product[None, :]) * rstd[None, :]
    store_dx(dx_ptr, dskip_ptr, dh, row, channel[None, :], mask, C1, C2, WANTS_X, WANTS_SKIP)


@triton.jit
def adaptive_group_norm_bwd_sums_kernel(
    grad_ptr, x_ptr, skip_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, partial_dscale_ptr, partial_dshift_ptr,
    N, C1, C2, G, T,
    HAS_SKIP: tl.constexpr, SILU: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Two sums per channel of each tile. Grid: samples times tiles of positions, tiles of groups."""
    b, t = tl.program_id(0).to(tl.int64) // T, tl.program_id(0) % T
    group, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    n = t * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (b * N + n)[:, None]
    mask = (n < N)[:, None] & valid[None, :]
    C = C1 + C2
    scale = load_channels(scale_ptr, b, channel, valid, C)
    shift = load_channels(shift_ptr, b, channel, valid, C)
    normalised, _ = load_normalised(
        x_ptr, skip_ptr, mean_ptr, rstd_ptr, b, row, group, channel, valid, mask, C1, C2, G, HAS_SKIP
    )
    grad = tl.load(grad_ptr + row * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    inner = through_silu(grad, normalised, scale, shift, SILU)
    at = (b * T + t) * C + channel
    tl.store(partial_dshift_ptr + at, tl.sum(inner, axis=0), mask=valid)
    tl.store(partial_dscale_ptr + at, tl.sum(inner * normalised, axis=0), mask=valid)


@triton.jit
def adaptive_group_norm_bwd_merge_kernel(
    partial_dscale_ptr, partial_dshift_ptr, scale_ptr, dscale_ptr, dshift_ptr, mean_grad_ptr, mean_product_ptr,
    N, C, G, T,
    D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum the tiles: gradients of scale and shift, and the two means per group that dx needs.

    Grid: samples, tiles of groups.
    """
    b = tl.program_id(0).to(tl.int64)
    _, channel, valid = lanes(tl.program_id(1), G, D, BLOCK_G, BLOCK_D)
    dscale = tl.zeros((BLOCK_G * BLOCK_D,), dtype=tl.float32)
    dshift = tl.zeros((BLOCK_G * BLOCK_D,), dtype=tl.float32)
    for first in range(0, T, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t < T)[:, None] & valid[None, :]
        at = (b * T + t)[:, None] * C + channel[None, :]
        dscale += tl.sum(tl.load(partial_dscale_ptr + at, mask=mask, other=0.0), axis=0)
        dshift += tl.sum(tl.load(partial_dshift_ptr + at, mask=mask, other=0.0), axis=0)
    tl.store(dscale_ptr + b * C + channel, dscale, mask=valid)
    tl.store(dshift_ptr + b * C + channel, dshift, mask=valid)
    scale = load_channels(scale_ptr, b, channel, valid, C)
    groups = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    size = 1.0 * N * D
    tl.store(mean_grad_ptr + b * G + groups, sum_group(scale * dshift, BLOCK_G, BLOCK_D) / size, mask=groups < G)
    tl.store(mean_product_ptr + b * G + groups, sum_group(scale * dscale, BLOCK_G, BLOCK_D) / size, mask=groups < G)


@triton.jit
def adaptive_group_norm_bwd_dx_kernel(
    grad_ptr, x_ptr, skip_ptr, scale_ptr, shift_ptr, mean_ptr, rstd_ptr, mean_grad_ptr, mean_product_ptr,
    dx_ptr, dskip_ptr,
    N, C1, C2, G, T,
    HAS_SKIP: tl.constexpr, SILU: tl.constexpr, WANTS_X: tl.constexpr, WANTS_SKIP: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients of x and skip. Grid: samples times tiles of positions, tiles of groups."""
    b, t = tl.program_id(0).to(tl.int64) // T, tl.program_id(0) % T
    tile = tl.program_id(1)
    _, channel, valid = lanes(tile, G, D, BLOCK_G, BLOCK_D)
    n = t * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (b * N + n)[:, None]
    mask = (n < N)[:, None] & valid[None, :]
    C = C1 + C2
    h = load(x_ptr, skip_ptr, row, channel[None, :], mask, C1, C2, HAS_SKIP)
    grad = tl.load(grad_ptr + row * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    # With groups as a dim of their own, a thread keeps the four values of a group once, not for each of its lanes.
    h, grad = tl.reshape(h, (BLOCK_N, BLOCK_G, BLOCK_D)), tl.reshape(grad, (BLOCK_N, BLOCK_G, BLOCK_D))
    scale = tl.reshape(load_channels(scale_ptr, b, channel, valid, C), (BLOCK_G, BLOCK_D))
    shift = tl.reshape(load_channels(shift_ptr, b, channel, valid, C), (BLOCK_G, BLOCK_D))
    rstd = load_groups(rstd_ptr, b, tile, G, BLOCK_G)
    normalised = (h - load_groups(mean_ptr, b, tile, G, BLOCK_G)) * rstd
    inner = through_silu(grad, normalised, scale, shift, SILU)
    mean_grad = load_groups(mean_grad_ptr, b, tile, G, BLOCK_G)
    mean_product = load_groups(mean_product_ptr, b, tile, G, BLOCK_G)
    dh = (inner * scale[None, :] - mean_grad - normalised * mean_product) * rstd
    dh = tl.reshape(dh, (BLOCK_N, BLOCK_G * BLOCK_D))
    store_dx(dx_ptr, dskip_ptr, dh, row, channel[None, :], mask, C1, C2, WANTS_X, WANTS_SKIP)
