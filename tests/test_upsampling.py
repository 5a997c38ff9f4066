"""Repetition and convolution as one transposed convolution: the same values and gradients, and where it is done."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diticli.models import upsampling
from diticli.models.upsampling import upsample, upsample_and_convolve


def case(channels: int = 6, dtype: torch.dtype = torch.float32) -> tuple[nn.Conv2d, Tensor]:
    conv = nn.Conv2d(channels, 5, 3, padding=1).to(dtype)
    h = torch.randn(2, channels, 4, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return conv, h.requires_grad_()


def test_values_and_gradients() -> None:
    conv, h = case()
    found, wanted = upsample_and_convolve(conv, h), conv(upsample(h))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    grad, inputs = torch.randn_like(wanted), (h, conv.weight, conv.bias)
    ours, theirs = (torch.autograd.grad(y, inputs, grad) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["usual", "contiguous", "bf16", "wide", "autocast"])
def test_where_it_is_merged(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    merged: list[int] = []
    plain = F.conv_transpose2d

    def note(*arguments: Any, **options: Any) -> Tensor:
        merged.append(1)
        return plain(*arguments, **options)

    conv, h = case(dtype=torch.bfloat16 if which == "bf16" else torch.float32)
    h = h.detach().contiguous() if which == "contiguous" else h
    if which == "wide":
        monkeypatch.setattr(upsampling, "MERGED_WIDTH", 5)
    monkeypatch.setattr(upsampling.F, "conv_transpose2d", note)
    with torch.autocast("cpu", torch.bfloat16, enabled=which == "autocast"):
        upsample_and_convolve(conv, h)
    assert bool(merged) == (which == "usual")
