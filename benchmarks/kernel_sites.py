"""The sites of the operations and the ways to compute each: what `benchmarks.kernels` measures.

A site is a shape at which a preset's UNet or shift decoder uses an operation. Every way takes the same leaves, so that
each also pays for folding its modulations.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diti_kernels.adaptive_group_norm import adaptive_group_norm
from diti_kernels.dispatch import VARIABLE
from diti_kernels.masked_linear import masked_linear
from torch import Tensor

Function = Callable[..., Tensor]
GROUPS = 32
LATENT_DIM, TIMESTEPS = 512, 1000


@dataclass(frozen=True, kw_only=True)
class Site:
    """A shape.

    Attributes:
        preset: where it occurs.
        operation: "norm" or "masked_linear".
        channels: of x; for masked_linear the embedding dims.
        skip: channels beside x, or 0.
        size: height and width; for masked_linear 1.
    """

    preset: str
    operation: str
    channels: int
    skip: int = 0
    size: int = 1

    @property
    def name(self) -> str:
        """For tables."""
        beside = f"+{self.skip}" if self.skip else ""
        return f"{self.preset} {self.operation} {self.channels}{beside}" + (f" {self.size}²" if self.size > 1 else "")

    def least_bytes(self, batch: int, element: int, backward: bool) -> int:
        """Bytes that any implementation of the norm moves: each tensor of x's size once (2 forward, 3 backward)."""
        return (5 if backward else 2) * batch * (self.channels + self.skip) * self.size**2 * element


def _norms(preset: str, shapes: dict[int, list[tuple[int, int]]]) -> list[Site]:
    return [
        Site(preset=preset, operation="norm", channels=c, skip=s, size=size) for size in shapes for c, s in shapes[size]
    ]


_CELEBA64 = {
    64: [(64, 0), (128, 64), (64, 64)],
    32: [(128, 0), (256, 128), (128, 128), (128, 64)],
    16: [(256, 0), (512, 256), (256, 256), (256, 128)],
    8: [(512, 0), (512, 512), (512, 256)],
}
_FFHQ128 = {
    128: [(128, 0), (128, 128)],
    64: [(128, 0), (256, 128), (128, 128)],
    32: [(256, 0), (384, 256), (256, 256), (256, 128)],
    16: [(384, 0), (512, 384), (384, 384), (384, 256)],
    8: [(512, 0), (512, 512), (512, 384)],
}
_LINEAR = [
    Site(preset=preset, operation="masked_linear", channels=channels)
    for preset, channels in (("celeba64", 256), ("ffhq128", 512))
]
SITES = [*_norms("celeba64", _CELEBA64), *_norms("ffhq128", _FFHQ128), *_LINEAR]
# A shape of each kind, for processors: compiling all of them there takes longer than it tells.
CPU_SITES = [*_norms("celeba64", {32: [(128, 0)], 16: [(256, 128)], 8: [(512, 0)]}), _LINEAR[0]]


def make_leaves(site: Site, batch: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Inputs that want a gradient. Norm: x, gamma, beta, s, b (and skip), channels_last. Linear: z, weight, bias."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
        values = torch.randn(shape, generator=random).to(device, as_dtype)
        return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values

    if site.operation == "masked_linear":
        leaves = [draw(batch, LATENT_DIM), draw(site.channels, LATENT_DIM) / LATENT_DIM**0.5, draw(site.channels)]
    else:
        C, pixels = site.channels + site.skip, (site.size, site.size)
        leaves = [
            draw(batch, site.channels, *pixels),
            1 + draw(C, as_dtype=torch.float32) / 10,
            draw(C, as_dtype=torch.float32) / 10,
            draw(batch, C) / 4,
            draw(batch, C) / 4,
            *([draw(batch, site.skip, *pixels)] if site.skip else []),
        ]
    return [leaf.detach().requires_grad_() for leaf in leaves]


def ways(site: Site, batch: int, device: torch.device) -> tuple[Function, Function]:
    """The usual sequence of PyTorch operations, and ours; both of the leaves."""
    if site.operation == "norm":
        return usual_norm, our_norm
    ends_T = torch.linspace(8, LATENT_DIM, TIMESTEPS, device=device).long()
    visible_T2 = torch.stack([torch.zeros_like(ends_T), ends_T], dim=1)
    t_B = torch.arange(batch, device=device) * 37 % TIMESTEPS
    dims = torch.arange(LATENT_DIM, device=device)

    def usual(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(z * (dims < ends_T[t_B][:, None]), weight, bias)

    def ours(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(z, t_B, visible_T2, weight, bias)

    return usual, ours


def usual_norm(x: Tensor, gamma: Tensor, beta: Tensor, s: Tensor, b: Tensor, skip: Tensor | None = None) -> Tensor:
    """As diffusers' `ResnetBlock2D` writes it, result in x's dtype for the convolution that follows."""
    h = x if skip is None else torch.cat([x, skip], dim=1)
    h = F.group_norm(h, GROUPS, gamma.to(h.dtype), beta.to(h.dtype))
    return F.silu(h * (1 + s[:, :, None, None]) + b[:, :, None, None]).to(x.dtype)


def our_norm(x: Tensor, gamma: Tensor, beta: Tensor, s: Tensor, b: Tensor, skip: Tensor | None = None) -> Tensor:
    """The same by `adaptive_group_norm`, modulations folded."""
    return adaptive_group_norm(x, gamma * (1 + s), beta * (1 + s) + b, GROUPS, skip=skip)


@contextmanager
def kernels(setting: str) -> Iterator[None]:
    """DITI_KERNELS for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = setting
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
