"""The memory layout of maps and convolutions: one place decides it."""

from __future__ import annotations

import torch


def in_layout(x_BCHW: torch.Tensor) -> torch.Tensor:
    """`x` in the layout in which the networks run: channels_last."""
    return x_BCHW.contiguous(memory_format=torch.channels_last)
