"""Arguments of the masked projection, its definition by explicit masks, and how near results must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diti_kernels.masked_linear import masked_linear, masked_linear_reference
from torch import Tensor

SHAPES = [(B, d, E) for B in (1, 3, 17) for d in (5, 64, 130) for E in (7, 128)]
PREFIXES = ("cumulative", "detached", "all", "last", "nothing own")
SPANS = (*PREFIXES, "suffix", "suffix detached", "middle", "apart", "empty", "reversed", "any")
TIMESTEPS = 11


class Case(NamedTuple):
    """Arguments of `masked_linear` and the gradient that comes back."""

    z: Tensor
    t: Tensor
    visible_T2: Tensor
    own_T2: Tensor | None
    weight: Tensor
    bias: Tensor | None
    grad: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.z, self.weight, self.bias) if leaf is not None]

    @property
    def visible(self) -> Tensor:
        return self.inside(self.visible_T2)

    @property
    def own(self) -> Tensor:
        """Visible dims that receive gradient."""
        return self.visible if self.own_T2 is None else self.visible & self.inside(self.own_T2)

    def inside(self, table: Tensor) -> Tensor:
        bounds = table[self.t].tolist()
        dims = range(self.z.shape[1])
        mask = [[start <= dim < end for dim in dims] for start, end in bounds]
        return torch.tensor(mask, device=self.z.device).reshape(self.z.shape)

    def project(self, function=masked_linear) -> Tensor:
        return function(self.z, self.t, self.visible_T2, self.weight, self.bias, own_T2=self.own_T2)

    def to(self, *to: object) -> Case:
        """Moved and converted; fresh leaves."""
        moved = [None if x is None else x.detach().to(*to) if x.is_floating_point() else x for x in self]
        moved[1:4] = [None if x is None else x.to(moved[0].device) for x in moved[1:4]]
        return Case(*moved).requiring_grad()

    def requiring_grad(self) -> Case:
        for leaf in self.leaves:
            leaf.requires_grad_()
        return self


def make_case(B: int, d: int, E: int, span: str = "detached", *, bias: bool = True, index=torch.int64) -> Case:
    random = torch.Generator().manual_seed(1000 * B + 10 * d + E)
    z, weight, grad, b = (torch.randn(shape, generator=random) for shape in ((B, d), (E, d), (B, E), (E,)))
    t = torch.randint(0, TIMESTEPS, (B,), generator=random)
    visible, own = (None if x is None else x.to(index) for x in make_tables(d, span, random))
    return Case(z, t.to(index), visible, own, weight, b if bias else None, grad).requiring_grad()


def make_tables(d: int, span: str, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """visible_T2 and own_T2 with 0 <= start < end <= d drawn for each timestep; those of "any" in no order."""
    end = torch.randint(1, d + 1, (TIMESTEPS,), generator=random)
    start = (torch.rand(TIMESTEPS, generator=random) * end).long()
    none, whole, one = torch.zeros_like(end), torch.full_like(end, d), torch.ones_like(end)
    tables = {
        "cumulative": ((none, end), None),
        "detached": ((none, end), (start, end)),
        "all": ((none, whole), (start, end)),
        "last": ((none, end), (end - 1, end)),
        "nothing own": ((none, one), (one, one)),
        "suffix": ((start, whole), None),
        "suffix detached": ((start, whole), (start, end)),
        "middle": ((start, end), ((start + end) // 2, whole)),
        "apart": ((start, end), (none, start)),
        "empty": ((start, start), (none, whole)),
        "reversed": ((end, start), (end, start)),
        "any": torch.randint(-3, d + 4, (2, 2, TIMESTEPS), generator=random).unbind(),
    }[span]
    visible, own = (None if table is None else torch.stack(tuple(table), 1) for table in tables)
    return visible, own


def explicit(case: Case) -> Tensor:
    """The definition, written with masks that are multiplied."""
    visible, own = case.visible, case.own
    emb = (case.z * own + case.z.detach() * (visible & ~own)) @ case.weight.T
    return emb if case.bias is None else emb + case.bias


def reference(case: Case) -> Tensor:
    return case.project(masked_linear_reference)


def run(case: Case, function=Case.project) -> list[Tensor]:
    """Output and the gradients of z, weight and bias."""
    out = function(case)
    return [out.detach(), *torch.autograd.grad(out, case.leaves, case.grad.to(out.dtype))]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        atol = tolerance * max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=atol)
