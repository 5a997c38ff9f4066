"""Twice the height and width by repetition and then a 3x3 convolution, as one transposed convolution.

It takes 4/9 of the products, and the repeated maps are never made.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from diti_kernels.winograd.op import serves
from torch import Tensor, nn
from torch.nn import functional as F

# Measured on a Xeon with AMX, batch 4 to 64: 1.2 to 2.4 times as fast up to 256 channels, at 512 as slow in bf16.
# Trained in float32 on a Xeon with AVX-512, batch 4 to 64: 1.3 to 1.7 times as fast up to 256 channels, at 512 0.6.
# On GPUs unmeasured: 4/9 of the products.
MERGED_WIDTH = 256


def upsample(h_BCHW: Tensor) -> Tensor:
    """Twice the height and width by repetition."""
    return F.interpolate(h_BCHW, scale_factor=2.0, mode="nearest")


def upsample_and_convolve(conv: nn.Conv2d | nn.ConvTranspose2d, h_BCHW: Tensor) -> Tensor:
    """`conv` of `upsample(h)`, which a transposed one does by itself; merged for channels_last float32 on a CPU."""
    if isinstance(conv, nn.ConvTranspose2d):
        return conv(h_BCHW)
    if not _merging_pays(conv, h_BCHW):
        return conv(upsample(h_BCHW))
    return F.conv_transpose2d(h_BCHW, merged_weight(conv.weight), conv.bias, stride=2, padding=1)


def merged_weight(weight: Tensor) -> Tensor:
    """Weights [C, D, 3, 3] of a convolution -> [D, C, 4, 4] of the transposed one that upsamples with it.

    Output pixel 2i sees w0 x[i-1] + (w1 + w2) x[i], output pixel 2i + 1 sees (w0 + w1) x[i] + w2 x[i+1]: with
    stride 2 and padding 1 those are the taps (w2, w1 + w2, w0 + w1, w0), along height and width alike.
    """
    for dim in (2, 3):
        w0, w1, w2 = weight.unbind(dim)
        weight = torch.stack([w2, w1 + w2, w0 + w1, w0], dim)
    return weight.transpose(0, 1)


def _merging_pays(conv: nn.Conv2d, h: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(h.device.type):
        return False
    if serves(h, conv.weight, scale=2):
        return False  # a quarter of the products of repeated maps: in training 1.2 to 1.7 times as fast on an AVX2 core
    own = h.device.type == "cpu" and h.dtype == conv.weight.dtype == torch.float32 and conv.in_channels <= MERGED_WIDTH
    return own and h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()
