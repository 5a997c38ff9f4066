# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the Triton kernels of the adaptive group norm share: tiles of whole groups, and the maths on them.

A tile is BLOCK_N positions times BLOCK_G groups of BLOCK_D lanes, of which D = C / G hold channels. Lane l belongs to
group l // BLOCK_D of the tile. Shapes as in `triton_kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def lanes(tile, G, D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """Group and channel of every lane of a tile of groups, and which lanes hold a channel."""
    lane = tl.arange(0, BLOCK_G * BLOCK_D)
    group = tile * BLOCK_G + lane // BLOCK_D
    # Without padding, channels are one plain range, which Triton loads in wider vectors.
    if D == BLOCK_D:
        channel = tile * BLOCK_G * BLOCK_D + lane
        valid = channel < G * D
    else:
        channel = group * D + lane % BLOCK_D
        valid = (lane % BLOCK_D < D) & (group < G)
    return group, channel, valid


@triton.jit
def load(x_ptr, skip_ptr, row, channel, mask, C1, C2, HAS_SKIP: tl.constexpr):
    """x and skip side by side: fp32 [rows, lanes], zero outside the mask. `row` counts positions of all samples."""
    if HAS_SKIP:
        in_x = channel < C1
        value = tl.load(x_ptr + row * C1 + channel, mask=mask & in_x, other=0.0).to(tl.float32)
        return value + tl.load(skip_ptr + row * C2 + (channel - C1), mask=mask & ~in_x, other=0.0).to(tl.float32)
    return tl.load(x_ptr + row * C1 + channel, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def sum_group(per_lane, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """[lanes] -> [BLOCK_G]."""
    return tl.sum(tl.reshape(per_lane, (BLOCK_G, BLOCK_D)), axis=1)


@triton.jit
def spread(per_group, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """[BLOCK_G] -> [lanes]."""
    return tl.reshape(tl.broadcast_to(per_group[:, None], (BLOCK_G, BLOCK_D)), (BLOCK_G * BLOCK_D,))


@triton.jit
def moments(h, mask, size, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mean and sum of squared deviations per group of a tile in registers, in two passes; `size` values a group."""
    mean = sum_group(tl.sum(h, axis=0), BLOCK_G, BLOCK_D) / size
    centred = tl.where(mask, h - spread(mean, BLOCK_G, BLOCK_D)[None, :], 0.0)
    return mean, sum_group(tl.sum(centred * centred, axis=0), BLOCK_G, BLOCK_D)


@triton.jit
def modulate(normalised, scale, shift, SILU: tl.constexpr):
    """y from x_hat: fp32 [rows, lanes]; scale and shift [lanes]."""
    value = normalised * scale[None, :] + shift[None, :]
    if SILU:
        value = value * tl.sigmoid(value)
    return value


@triton.jit
def through_silu(grad, normalised, scale, shift, SILU: tl.constexpr):
    """Gradient before the activation, which is recomputed."""
    if SILU:
        value = normalised * scale[None, :] + shift[None, :]
        sigmoid = tl.sigmoid(value)
        grad = grad * sigmoid * (1 + value * (1 - sigmoid))
    return grad


@triton.jit
def store_dx(
    dx_ptr, dskip_ptr, dh, row, channel, mask, C1, C2,
    WANTS_X: tl.constexpr, WANTS_SKIP: tl.constexpr,
):  # fmt: skip
    """Take the gradient of the concatenation apart again."""
    in_x = channel < C1
    if WANTS_X:
        tl.store(dx_ptr + row * C1 + channel, dh.to(dx_ptr.dtype.element_ty), mask=mask & in_x)
    if WANTS_SKIP:
        tl.store(dskip_ptr + row * C2 + (channel - C1), dh.to(dskip_ptr.dtype.element_ty), mask=mask & ~in_x)


@triton.jit
def load_channels(ptr, b, channel, valid, C):
    """Values of sample b at the tile's channels, fp32 [lanes]."""
    return tl.load(ptr + b * C + channel, mask=valid, other=0.0)


@triton.jit
def load_normalised(
    x_ptr, skip_ptr, mean_ptr, rstd_ptr, b, row, group, channel, valid, mask, C1, C2, G, HAS_SKIP: tl.constexpr
):  # fmt: skip
    """x_hat, fp32 [rows, lanes], and 1/std [lanes]."""
    h = load(x_ptr, skip_ptr, row, channel[None, :], mask, C1, C2, HAS_SKIP)
    rstd = load_channels(rstd_ptr, b, group, valid, G)
    return (h - load_channels(mean_ptr, b, group, valid, G)[None, :]) * rstd[None, :], rstd


@triton.jit
def load_groups(ptr, b, tile, G, BLOCK_G: tl.constexpr):
    """Values of sample b at the tile's groups, fp32 [1, BLOCK_G, 1]."""
    group = tile * BLOCK_G + tl.arange(0, BLOCK_G)
    return tl.load(ptr + b * G + group, mask=group < G, other=0.0)[None, :, None]
