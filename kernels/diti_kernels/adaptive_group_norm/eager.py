"""Adaptive group norm in plain PyTorch without `torch.compile`: few passes over memory, little kept for backward.

Two forms, because PyTorch's own group norm is only sound and fast for contiguous input (README.md says why):
contiguous tensors, and all that are on no CPU, go through its fused group norm, channels_last ones on a CPU through
gradients written out here, which keep the input and two statistics per group. Every formula is derived in README.md.

Shapes: B samples, N positions, C = C1 + C2 channels in G groups; rows [B, N, C] are contiguous.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Values a block holds: some 1 MB of float32, so that the passes over a block stay in a core's second-level cache.
_BLOCK = 1 << 18


def folded_group_norm(h: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """h [B, C, *], scale and shift [B, C] -> contiguous [B, C, *], differentiated by PyTorch.

    Sample and channel become one dim: group norm over B * G groups, whose affine is the modulation. On a CPU it stays
    float32 beside half precision, which PyTorch's kernels elsewhere do not take.
    """
    if h.device.type != "cpu":
        scale, shift = scale.to(h.dtype), shift.to(h.dtype)
    B, C = h.shape[:2]
    flat = h.reshape(1, B * C, -1).contiguous()
    size, all_groups = flat.shape[2], B * groups
    y = torch.native_group_norm(flat, scale.reshape(-1), shift.reshape(-1), 1, B * C, size, all_groups, eps)[0]
    y = y.reshape(h.shape)
    return F.silu(y, inplace=not y.requires_grad) if silu else y


def forward_rows(
    x: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, N, C1], skip [B, N, C2], scale, shift [B, C] float32 -> out [B, N, C], mean and 1/std [B, G]."""
    B, N, C = x.shape[0], x.shape[1], scale.shape[1]
    out = torch.empty((B, N, C), dtype=x.dtype, device=x.device)
    mean, rstd = (torch.empty((B, groups), dtype=scale.dtype, device=x.device) for _ in range(2))
    for part in _blocks(x.device, B, N * C):
        h = _gather(x[part], None if skip is None else skip[part])
        mean[part] = _group_mean(h.sum(1), groups, N)
        centred = h - _spread(mean[part], C)
        rstd[part] = torch.rsqrt(_group_mean(centred.square().sum(1), groups, N) + eps)
        modulated = torch.addcmul(shift[part, None], centred, _spread(rstd[part], C) * scale[part, None], out=centred)
        out[part] = F.silu(modulated, inplace=True) if silu else modulated
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad [B, N, C] -> gradients of x, skip, scale, shift; `wants` says whether x's and skip's are (else empty)."""
    (B, N, C1), C = x.shape, scale.shape[1]
    dx = torch.empty((B, N, C1) if wants[0] else (0,), dtype=x.dtype, device=x.device)
    dskip = torch.empty((B, N, C - C1) if wants[1] else (0,), dtype=x.dtype, device=x.device)
    dscale, dshift = (torch.empty((B, C), dtype=scale.dtype, device=x.device) for _ in range(2))
    for part in _blocks(x.device, B, N * C):
        h = _gather(x[part], None if skip is None else skip[part])
        one_over_std = _spread(rstd[part], C)
        normalised = h.sub(_spread(mean[part], C)).mul_(one_over_std)
        inner = grad[part].to(h.dtype)
        if silu:
            inner = torch.ops.aten.silu_backward(inner, torch.addcmul(shift[part, None], normalised, scale[part, None]))
        dshift[part] = inner.sum(1)
        dscale[part] = (inner * normalised).sum(1)
        if not any(wants):
            continue
        mean_grad, mean_product = (_group_mean(scale[part] * d[part], groups, N) for d in (dshift, dscale))
        dh = normalised.mul_(-_spread(mean_product * rstd[part], C)).sub_(_spread(mean_grad * rstd[part], C))
        dh.addcmul_(inner, one_over_std * scale[part, None])
        if wants[0]:
            dx[part] = dh[..., :C1]
        if wants[1]:
            dskip[part] = dh[..., C1:]
    return dx, dskip, dscale, dshift


def _blocks(device: torch.device, samples: int, size: int) -> list[slice]:
    """Slices of whole samples that fit a cache on the CPU; elsewhere one slice, so that launches stay few."""
    step = max(1, _BLOCK // max(1, size)) if device.type == "cpu" else max(1, samples)
    return [slice(first, first + step) for first in range(0, samples, step)]


def _gather(x: Tensor, skip: Tensor | None) -> Tensor:
    """x and skip side by side in float32."""
    return x.float() if skip is None else torch.cat([x.float(), skip.float()], dim=2)


def _group_mean(sums: Tensor, groups: int, positions: int) -> Tensor:
    """Sums over positions [B, C] -> means over positions and channels of a group [B, G]."""
    grouped = sums.unflatten(1, (groups, -1))
    return grouped.sum(2) / (positions * grouped.shape[2])


def _spread(per_group: Tensor, channels: int) -> Tensor:
    """[B, G] -> [B, 1, C], every group's value at each of its channels."""
    B, G = per_group.shape
    return per_group[:, None, :, None].expand(B, 1, G, channels // G).reshape(B, 1, channels)
