"""Running the blocks of a UNet: the modules of diffusers' `UNet2DModel`, in another order of operations.

What differs from diffusers' own forward is speed alone. Norm, modulation and activation are one operator; the
concatenation with a skip is never built; maps stay channels_last; q, k and v are one product.

Legend of shape suffixes: B batch, C channels, H height, W width, M tokens, K channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from diti_kernels.winograd import convolve_3x3
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from diticli.models.attention import attend
from diticli.models.modulation import Modulation
from diticli.models.modules import Downsample, ResnetBlock, SelfAttention, Upsample
from diticli.models.norms import modulated_norm, norm_silu
from diticli.models.upsampling import upsample, upsample_and_convolve


def run_resnet(block: ResnetBlock, x_BCHW: Tensor, modulation: Modulation, skip: Tensor | None = None) -> Tensor:
    """A residual block on `x`, or on `x` and `skip` side by side.

    Args:
        block: one whose `conv1` is transposed upsamples with it, see `diticli.models.frozen`.
        x_BCHW: its input.
        modulation: of its second norm.
        skip: of x's height and width.
    """
    h = norm_silu(block.norm1, x_BCHW, skip)
    if block.upsample is not None:
        x_BCHW, h = upsample(x_BCHW), upsample_and_convolve(block.conv1, h)
    elif block.downsample is not None:
        x_BCHW, h = F.avg_pool2d(x_BCHW, 2), block.conv1(F.avg_pool2d(h, 2))
    else:
        h = block.conv1(h)
    if modulation.offset is not None:
        h = h + modulation.offset.to(h.dtype)[:, :, None, None]
    h = modulated_norm(block.norm2, h, modulation.scale, modulation.shift)
    h = _second_convolution(block, block.dropout(h), x_BCHW, skip)
    return h if block.output_scale_factor == 1 else h / block.output_scale_factor


def _second_convolution(block: ResnetBlock, h: Tensor, x: Tensor, skip: Tensor | None) -> Tensor:
    """conv2(h) + shortcut([x, skip]); a frozen block has its shortcut's bias in that of conv2."""
    conv, shortcut = block.conv2, block.conv_shortcut
    if shortcut is None:
        return _add(conv(h), x if skip is None else torch.cat([x, skip], dim=1))
    assert conv.bias is not None
    bias = conv.bias if shortcut.bias is None else conv.bias + shortcut.bias
    h = convolve_3x3(h, conv.weight, bias)
    first = x.shape[1]
    h = _add_products(h, x, shortcut.weight[:, :first])
    return h if skip is None else _add_products(h, skip, shortcut.weight[:, first:])


def _add(h: Tensor, x: Tensor) -> Tensor:
    """h + x in the memory of h, a layer's result, which nothing else reads; in half precision in new memory."""
    return h.add_(x) if h.dtype == x.dtype == torch.float32 else h + x


def _add_products(h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """h plus the 1x1 convolution of x: one product that adds to h where maps are rows of channels in memory.

    In float32 that is the memory of h, a convolution's result, which nothing else reads.
    """
    if not h.is_contiguous(memory_format=torch.channels_last):
        return h + F.conv2d(x, weight)
    if h.is_cpu and h.dtype == x.dtype == weight.dtype == torch.float32 and not _is_rewritten(h):
        return _AddProducts.apply(h, x, weight) if torch.is_grad_enabled() else _add_in_place(h, x, weight)
    B, C, H, W = h.shape
    rows = torch.addmm(_rows(h), _rows(x), weight.flatten(1).t())
    return rows.view(B, H, W, C).permute(0, 3, 1, 2)


def _is_rewritten(h: Tensor) -> bool:
    """Whether PyTorch makes other operators of those that are called: under autocast and when compiled."""
    return torch.compiler.is_compiling() or torch.is_autocast_enabled(h.device.type)


def _add_in_place(h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    _rows(h).addmm_(_rows(x), weight.flatten(1).t())
    return h


class _AddProducts(torch.autograd.Function):
    """h [B, C, H, W] plus products of x [B, D, H, W] and weight [C, D, 1, 1], in the memory of h; all channels_last.

    Autograd's own way with a part of a tensor that changes in place copies gradients.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.mark_dirty(h)
        ctx.save_for_backward(x, weight)
        return _add_in_place(h, x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_h, wants_x, wants_weight = ctx.needs_input_grad
        rows, (B, _, H, W) = _rows(grad), grad.shape
        dx = (rows @ weight.flatten(1)).view(B, H, W, -1).permute(0, 3, 1, 2) if wants_x else None
        dweight = (rows.t() @ _rows(x)).view_as(weight) if wants_weight else None
        return grad if wants_h else None, dx, dweight


def _rows(h_BCHW: Tensor) -> Tensor:
    """[B H W, C]: a view where the map is channels_last."""
    return h_BCHW.permute(0, 2, 3, 1).reshape(-1, h_BCHW.shape[1])


def run_attention(block: SelfAttention, x_BCHW: Tensor) -> Tensor:
    """Self-attention over the pixels of a map, with the block's own norm and residual."""
    B, C, H, W = x_BCHW.shape
    h, norm = x_BCHW, block.group_norm
    if norm is not None:
        h = modulated_norm(norm, h, norm.weight, norm.bias, activation="none")
    qkv = _qkv(block, h.permute(0, 2, 3, 1).reshape(B, H * W, C))
    q, k, v = qkv.view(B, H * W, 3, block.heads, -1).unbind(2)
    h = attend(q, k, v).reshape(B, H * W, -1)
    h = block.to_out[1](block.to_out[0](h))
    h = h.view(B, H, W, C).permute(0, 3, 1, 2)
    alike = h.stride() == x_BCHW.stride() and not torch.is_grad_enabled()
    h = _add(h, x_BCHW) if alike else x_BCHW + h
    return h if block.rescale_output_factor == 1 else h / block.rescale_output_factor


def _qkv(block: SelfAttention, tokens_BMC: Tensor) -> Tensor:
    if block.to_qkv is not None:
        return block.to_qkv(tokens_BMC)
    parts = (block.to_q, block.to_k, block.to_v)
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    return F.linear(tokens_BMC, weight, bias)


def run_downsample(block: Downsample, h_BCHW: Tensor) -> Tensor:
    """Half the height and width by a strided convolution; padding 0 pads right and below, as in the DDPM paper."""
    return block.conv(F.pad(h_BCHW, (0, 1, 0, 1)) if block.padding == 0 else h_BCHW)


def run_upsample(block: Upsample, h_BCHW: Tensor) -> Tensor:
    """Twice the height and width, then a convolution; a transposed one does both."""
    return upsample_and_convolve(block.conv, h_BCHW)
