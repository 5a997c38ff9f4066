"""Norms of the networks: `diti_kernels.adaptive_group_norm`, and on a CPU the layout in which it is fast.

On a GPU, and in float32 on a CPU that has a C compiler, the operator takes channels_last without a copy. Else on a CPU
it uses PyTorch's kernels, whose forward is fast in
channels_last and whose backward is many times faster in NCHW. So a channels_last map on a CPU is copied to NCHW and
back where autograd records its norm, which costs less than it saves, and otherwise used without a copy where that is
faster, unless `DITI_KERNELS` names an implementation.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from diti_kernels.adaptive_group_norm import adaptive_group_norm
from diti_kernels.adaptive_group_norm.compiled_rows import serves
from diti_kernels.dispatch import is_forced
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["silu", "none"]


def norm_silu(norm: nn.Module, h_BCHW: Tensor, skip: Tensor | None = None) -> Tensor:
    """SiLU of a `GroupNorm` of `h`, or of `h` and `skip` side by side."""
    assert isinstance(norm, nn.GroupNorm)
    return modulated_norm(norm, h_BCHW, norm.weight, norm.bias, skip)


def modulated_norm(
    norm: nn.GroupNorm,
    h_BCHW: Tensor,
    scale: Tensor,
    shift: Tensor,
    skip: Tensor | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """The activation of `norm`'s normalised maps times `scale` plus `shift`, in place of its own affine.

    Args:
        norm: gives groups and eps.
        h_BCHW: maps.
        scale: [B, C], [1, C] or [C].
        shift: as scale.
        skip: maps beside `h`; the norm is that of both.
        activation: "silu" or "none".

    Returns:
        [B, C, H, W] in h's layout and dtype.
    """
    groups, eps = norm.num_groups, norm.eps
    if h_BCHW.device.type != "cpu" or h_BCHW.is_contiguous() or serves("cpu", h_BCHW.dtype):
        return adaptive_group_norm(h_BCHW, scale, shift, groups, eps, skip=skip, activation=activation)
    if _channels_last_is_faster(h_BCHW, skip, scale, shift, groups):
        h = h_BCHW if skip is None else torch.cat([h_BCHW, skip.to(h_BCHW.dtype)], dim=1)
        y = _channels_last_norm(h, scale, shift, groups, eps)
        return F.silu(y, inplace=True) if activation == "silu" else y
    h, skip = _ToMemoryFormat.apply(h_BCHW, False), None if skip is None else _ToMemoryFormat.apply(skip, False)
    y = adaptive_group_norm(h, scale, shift, groups, eps, skip=skip, activation=activation)
    return _ToMemoryFormat.apply(y, True)


def _channels_last_is_faster(h: Tensor, skip: Tensor | None, scale: Tensor, shift: Tensor, groups: int) -> bool:
    """Whether PyTorch's CPU kernel takes channels_last maps at least as fast as the detour by NCHW.

    Not when it is differentiated (twice to five times as slow), nor when compiled, where Inductor writes its own.
    Not for maps below 1,024 pixels with groups below a vector of 16 channels (up to five times). And only in half
    precision: the kernel's variance is E[x^2] - E[x]^2, which costs float32 more digits than half precision has.
    """
    tensors = [tensor for tensor in (h, skip, scale, shift) if tensor is not None]
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return False
    if is_forced():
        return False
    return h.dtype.itemsize == 2 and (h.shape[2] * h.shape[3] >= 1024 or scale.shape[-1] // groups >= 16)


def _channels_last_norm(h: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
    (B, C), size = h.shape[:2], h.shape[2] * h.shape[3]
    if scale.numel() == C:
        scale, shift = (m.reshape(C).float() for m in (scale, shift))
        return torch.native_group_norm(h, scale, shift, B, C, size, groups, eps)[0]
    normalised = torch.native_group_norm(h, None, None, B, C, size, groups, eps)[0]
    scale, shift = (m.to(h.dtype).expand(B, C)[:, :, None, None] for m in (scale, shift))
    return torch.addcmul(shift, normalised, scale)


class _ToMemoryFormat(torch.autograd.Function):
    """A copy in another layout, whose gradient is copied back.

    PyTorch's own copy passes the gradient on as it comes, and CPU kernels that meet two layouts at once are many
    times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, channels_last: bool) -> Tensor:
        ctx.channels_last = channels_last
        return x.contiguous(memory_format=_FORMATS[channels_last])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous(memory_format=_FORMATS[not ctx.channels_last]), None


_FORMATS = (torch.contiguous_format, torch.channels_last)
