"""Inputs of the adaptive group norm's tests, its definition in full, and how results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Case(NamedTuple):
    """Arguments of `adaptive_group_norm` and the gradient that comes back."""

    x: Tensor
    skip: Tensor | None
    scale: Tensor
    shift: Tensor
    grad: Tensor
    groups: int
    activation: str = "silu"

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in self[:4] if leaf is not None]

    def to(self, *to: object) -> Case:
        """Moved and converted; fresh leaves of the same memory format."""
        moved = [None if t is None else t.detach().to(*to) for t in self[:5]]
        fresh = [t if t is None or i == 4 else t.clone().requires_grad_() for i, t in enumerate(moved)]
        return Case(*fresh, self.groups, self.activation)


def make_case(
    shape: tuple[int, ...],
    groups: int,
    skip: int = 0,
    *,
    memory: str = "channels_last",
    mean: float = 0.5,
    activation: str = "silu",
) -> Case:
    """x of `shape` [B, C1, *] with that mean and standard deviation one; `skip` channels beside it."""
    random = torch.Generator().manual_seed(sum(shape) + 7 * groups + skip)
    B, C1, *spatial = shape

    def draw(*size: int) -> Tensor:
        values = torch.randn(size, generator=random)
        return values.to(memory_format=FORMATS[memory]) if len(size) == 4 else values

    x, beside = draw(*shape) + mean, draw(B, skip, *spatial) + mean if skip else None
    scale, shift = 1 + draw(B, C1 + skip) / 2, draw(B, C1 + skip)
    return Case(x, beside, scale, shift, draw(B, C1 + skip, *spatial), groups, activation).to(torch.float32)


def explicit(case: Case) -> Tensor:
    """The definition, group by group."""
    h = case.x if case.skip is None else torch.cat([case.x, case.skip], dim=1)
    parts = []
    for part in h.chunk(case.groups, dim=1):
        mean = part.flatten(1).mean(1).reshape(-1, *[1] * (h.ndim - 1))
        variance = (part - mean).flatten(1).square().mean(1).reshape(mean.shape)
        parts.append((part - mean) / torch.sqrt(variance + 1e-5))
    trailing = [1] * (h.ndim - 2)
    scale, shift = (m.reshape(-1, m.shape[-1], *trailing) for m in (case.scale, case.shift))
    y = torch.cat(parts, dim=1) * scale + shift
    return y * torch.sigmoid(y) if case.activation == "silu" else y


def usual(case: Case) -> Tensor:
    """What models write: group norm, modulation and activation one after the other."""
    h = case.x if case.skip is None else torch.cat([case.x, case.skip], dim=1)
    trailing = [1] * (h.ndim - 2)
    scale, shift = (m.to(h.dtype).reshape(-1, m.shape[-1], *trailing) for m in (case.scale, case.shift))
    y = F.group_norm(h, case.groups) * scale + shift
    return F.silu(y) if case.activation == "silu" else y


def run(function: Callable[..., Tensor], case: Case) -> list[Tensor]:
    """Output of a function of the op's signature, and the gradients of all leaves."""
    out = function(
        case.x, case.scale, case.shift, case.groups, skip=case.skip, activation=case.activation
    )  # fmt: skip
    return [out.detach(), *torch.autograd.grad(out, case.leaves, case.grad.to(out.dtype))]


def run_on_case(function: Callable[[Case], Tensor], case: Case) -> list[Tensor]:
    """As `run`, for `explicit` and `usual`."""
    out = function(case)
    return [out.detach(), *torch.autograd.grad(out, case.leaves, case.grad.to(out.dtype))]


def exact(case: Case) -> list[Tensor]:
    """Output and gradients of the definition in float64."""
    return run_on_case(explicit, case.to(torch.float64))


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Largest deviation at most `tolerance` of the largest expected value, tensor by tensor."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        atol = tolerance * max(1.0, e.abs().max().item()) if e.numel() else 0.0
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=atol)
