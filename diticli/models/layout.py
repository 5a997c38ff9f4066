"""The memory layout of maps and convolutions: one place decides it.

Maps are channels_last throughout: a GPU's tensor cores want it, and oneDNN's convolutions on a CPU take it two to
three times as fast in bf16 (1.1 times in fp32) as NCHW. PyTorch's fused group norm on a CPU is as much faster on
NCHW, gradients above all; there, norms get a copy in NCHW and their result is copied back, which costs less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def in_layout(x_BCHW: Tensor) -> Tensor:
    """`x` in the layout in which the networks run."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)


def for_norm(x_BCHW: Tensor) -> Tensor:
    """`x`, laid out as the networks run, in the layout in which norms run."""
    return _Relaid.apply(x_BCHW, torch.contiguous_format) if x_BCHW.device.type == "cpu" else x_BCHW


def after_norm(y_BCHW: Tensor) -> Tensor:
    """`y`, laid out as norms run, in the layout in which the networks run."""
    return _Relaid.apply(y_BCHW, torch.channels_last) if y_BCHW.device.type == "cpu" else y_BCHW


class _Relaid(torch.autograd.Function):
    """A copy in another layout whose gradient is copied back: PyTorch's own keeps the gradient's, and kernels that
    meet two layouts at once are ten times as slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: torch.memory_format) -> Tensor:
        ctx.back = torch.channels_last if layout == torch.contiguous_format else torch.contiguous_format
        return x.contiguous(memory_format=layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.contiguous(memory_format=ctx.back), None


def convolutions_in_layout(module: nn.Module) -> nn.Module:
    """Lay out the weights of all convolutions below `module` in place, for speed alone; returns `module`.

    Do so before an optimizer is made: its state takes the weights' layout.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
