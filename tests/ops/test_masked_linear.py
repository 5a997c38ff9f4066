"""The masked projection: values and every gradient, against float64 autograd of the explicit mask."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from diti_kernels.masked_linear import masked_linear, masked_linear_reference
from diti_kernels.masked_linear import op as ops
from op_sites import Site
from torch import Tensor

SHAPES = [(B, d, E) for B in (1, 3, 17) for d in (5, 64, 130) for E in (7, 128)]
SPANS = ("cumulative", "detached", "all", "last", "nothing own")


class Case(NamedTuple):
    """Arguments of `masked_linear` and the gradient that comes back."""

    z: Tensor
    start: Tensor
    end: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        return self[:5]

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.z, self.weight, self.bias) if leaf is not None]

    def to(self, *to: object) -> Case:
        """Moved and converted; fresh leaves."""
        moved = [None if t is None else t.detach().to(*to) if t.is_floating_point() else t for t in self]
        moved[1:3] = [index.to(moved[0].device) for index in (self.start, self.end)]
        return Case(*moved).requiring_grad()

    def requiring_grad(self) -> Case:
        for leaf in self.leaves:
            leaf.requires_grad_()
        return self


def make_case(B: int, d: int, E: int, span: str = "detached", *, bias: bool = True, index=torch.int64) -> Case:
    random = torch.Generator().manual_seed(1000 * B + 10 * d + E)
    z, weight, grad, b = (torch.randn(shape, generator=random) for shape in ((B, d), (E, d), (B, E), (E,)))
    end = torch.randint(1, d + 1, (B,), generator=random)
    start = (torch.rand(B, generator=random) * end).long()
    if span == "cumulative":
        start = torch.zeros_like(end)
    elif span == "all":
        end = torch.full_like(end, d)
    elif span == "last":
        start = end - 1
    elif span == "nothing own":
        start, end = torch.ones_like(end), torch.ones_like(end)
    return Case(z, start.to(index), end.to(index), weight, b if bias else None, grad).requiring_grad()


def explicit(z: Tensor, start: Tensor, end: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition, written with masks that are multiplied."""
    dim = torch.arange(z.shape[1], device=z.device)
    visible, before = dim < end[:, None], dim < start[:, None]
    emb = (z * (visible & ~before) + z.detach() * (visible & before)) @ weight.T
    return emb if bias is None else emb + bias


def run(function, case: Case) -> list[Tensor]:
    """Output and the gradients of z, weight and bias."""
    out = function(*case.arguments)
    return [out.detach(), *torch.autograd.grad(out, case.leaves, case.grad.to(out.dtype))]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        atol = tolerance * max(1.0, e.abs().max().item())
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=atol)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize(("B", "d", "E"), SHAPES)
def test_values_and_gradients(site: Site, B: int, d: int, E: int, span: str) -> None:
    case = make_case(B, d, E, span).to(site.device)
    actual = run(masked_linear, case)
    assert_near(actual, run(explicit, case.to(torch.float64)), 5e-6)
    assert_near(actual, run(masked_linear_reference, case), 5e-6)


@pytest.mark.usefixtures("poisoned_empty")
def test_no_bias(site: Site) -> None:
    case = make_case(3, 64, 7, bias=False).to(site.device)
    assert_near(run(masked_linear, case), run(explicit, case.to(torch.float64)), 5e-6)


def test_int32_and_int64_agree(site: Site) -> None:
    wide, narrow = (make_case(3, 64, 7, index=index).to(site.device) for index in (torch.int64, torch.int32))
    assert all(map(torch.equal, run(masked_linear, wide), run(masked_linear, narrow)))


def test_empty_batch(site: Site) -> None:
    out, dz, dw, db = run(masked_linear, make_case(0, 64, 7).to(site.device))
    assert out.shape == (0, 7)
    assert dz.shape == (0, 64)
    assert not dw.any()
    assert not db.any()


def test_any_strides(site: Site) -> None:
    case = make_case(5, 64, 24).to(site.device)
    z = torch.randn(5, 130, device=site.device)[:, 1:129:2].requires_grad_()
    weight = torch.randn(64, 24, device=site.device).T.requires_grad_()
    start, end = (torch.tensor(i, device=site.device).expand(5) for i in (10, 40))
    strided = case._replace(
        z=z, weight=weight, start=start, end=end, grad=torch.ones((), device=site.device).expand(5, 24)
    )
    assert_near(run(masked_linear, strided), run(explicit, strided.to(torch.float64)), 5e-6)


def test_start_changes_only_the_gradient_of_z(site: Site) -> None:
    detached = make_case(17, 130, 128, "detached").to(site.device)
    cumulative = detached._replace(start=torch.zeros_like(detached.start))
    (out, dz, dw, db), (out_c, dz_c, dw_c, db_c) = (
        run(masked_linear, detached),
        run(masked_linear, cumulative),
    )
    assert torch.equal(out, out_c)
    assert torch.equal(dw, dw_c)
    assert torch.equal(db, db_c)
    dim = torch.arange(130, device=site.device)
    own = (dim >= detached.start[:, None]) & (dim < detached.end[:, None])
    assert not dz[~own].any()
    assert torch.equal(dz[own], dz_c[own])
    assert dz[own].all()


def test_hidden_dims_are_not_read(site: Site) -> None:
    case = make_case(17, 64, 7).to(site.device)
    hidden = torch.arange(64, device=site.device) >= case.end[:, None]
    poisoned = case._replace(z=case.z.detach().masked_fill(hidden, torch.nan).requires_grad_())
    assert all(map(torch.equal, run(masked_linear, poisoned), run(masked_linear, case)))


def test_out_of_range_spans_are_clipped(site: Site) -> None:
    case = make_case(3, 5, 7).to(site.device)
    beyond = case._replace(start=torch.full_like(case.start, -4), end=torch.full_like(case.end, 99))
    whole = case._replace(start=torch.zeros_like(case.start), end=torch.full_like(case.end, 5))
    assert all(map(torch.equal, run(masked_linear, beyond), run(masked_linear, whole)))


def test_repeats_bit_for_bit(site: Site) -> None:
    case = make_case(17, 130, 128).to(site.device)
    first = run(masked_linear, case)
    assert all(all(map(torch.equal, first, run(masked_linear, case))) for _ in range(2))


@pytest.mark.parametrize("frozen", ["z", "weight", "bias"])
def test_frozen_arguments_get_no_gradient(site: Site, frozen: str) -> None:
    case = make_case(3, 64, 7).to(site.device)
    expected = dict(zip(("z", "weight", "bias"), run(masked_linear, case)[1:], strict=True))
    getattr(case, frozen).requires_grad_(False)
    masked_linear(*case.arguments).backward(case.grad)
    for name, gradient in expected.items():
        actual = getattr(case, name).grad
        assert actual is None if name == frozen else torch.equal(actual, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(site: Site, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 != site.low_precision:
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    case = make_case(17, 130, 128).to(site.device, dtype)
    exact = run(explicit, case.to(torch.float64))
    actual = run(masked_linear, case)
    assert all(tensor.dtype == dtype for tensor in actual)
    for a, plain, e in zip(actual, run(explicit, case), exact, strict=True):
        assert (a - e).abs().max() <= 2 * (plain - e).abs().max()


def test_autocast_as_linear_does(site: Site) -> None:
    case = make_case(17, 64, 24, "cumulative").to(site.device)
    with torch.autocast(site.device, site.low_precision):
        actual = run(masked_linear, case)
        plain = run(masked_linear_reference, case)
        linear = F.linear(case.z * (torch.arange(64, device=site.device) < case.end[:, None]), *case.arguments[3:])
    assert torch.equal(plain[0], linear)
    assert [tensor.dtype for tensor in actual] == [site.low_precision, *[torch.float32] * 3]
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in plain]
    for a, p, e in zip(actual, plain, run(explicit, case.to(torch.float64)), strict=True):
        assert (a - e).abs().max() <= 2 * (p - e).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("span", SPANS)
def test_reference_is_linear_of_the_masked_features(span: str, dtype: torch.dtype) -> None:
    z, start, end, weight, bias = make_case(17, 130, 24, span).to(dtype).arguments
    mask = torch.arange(130) < end[:, None]
    assert torch.equal(masked_linear_reference(z, start, end, weight, bias), F.linear(z * mask, weight, bias))


def test_reference_passes_gradcheck() -> None:
    case = make_case(3, 5, 4, "detached").to(torch.float64)
    inputs = (case.z, case.weight, case.bias)
    zero = torch.zeros_like(case.start)
    cumulative = lambda z, weight, bias: masked_linear_reference(z, zero, case.end, weight, bias)  # noqa: E731
    assert torch.autograd.gradcheck(cumulative, inputs)
    assert torch.autograd.gradgradcheck(cumulative, inputs)
    constant, before = case.z.detach().clone(), torch.arange(5) < case.start[:, None]

    def detached(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Finite differences see through detach, so the dims before the own chunk are held constant.
        return masked_linear_reference(torch.where(before, constant, z), case.start, case.end, weight, bias)

    assert torch.autograd.gradcheck(detached, inputs)


def test_opcheck(triton_site: Site) -> None:
    case = make_case(3, 5, 7).to(triton_site.device)
    z, start, end, weight, bias = case.arguments
    torch.library.opcheck(ops.masked_linear_op, (z, start, end, weight, bias))
    torch.library.opcheck(ops.masked_linear_op, (z, start, end, weight, None))
    torch.library.opcheck(ops.masked_linear_dz_op, (case.grad, start, end, weight.detach()))
    torch.library.opcheck(ops.masked_linear_dw_op, (case.grad, z.detach(), end))


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_into_one_graph(site: Site, autocast: bool) -> None:
    def block(*arguments: Tensor) -> Tensor:
        with torch.autocast(site.device, site.low_precision, enabled=autocast):
            return masked_linear(*arguments) * 2

    # Inductor needs a C++ compiler on the CPU; tracing is what is at stake there.
    backend = "inductor" if site.device == "cuda" else "aot_eager"
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    for B in (3, 17):
        case = make_case(B, 64, 24).to(site.device)
        assert all(map(torch.equal, run(compiled, case), run(block, case)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(3, 4)}, r"z \[B, d\] and weight \[E, d\] expected, got \[3, 4\] and \[7, 5\]"),
        ({"z": torch.zeros(5)}, r"z \[B, d\]"),
        ({"end": torch.ones(2, dtype=torch.int64)}, r"each of 3 samples, got the shapes \[3\] and \[2\]"),
        ({"start": torch.zeros(3)}, r"int32 or int64, got torch.float32"),
        ({"bias": torch.zeros(6)}, r"shape \[7\] of weight's rows, got \[6\]"),
        ({"weight": torch.zeros(7, 5, device="meta")}, r"one device, got \['cpu', 'meta'\]"),
    ],
)
def test_says_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    case = make_case(3, 5, 7)._replace(**change)
    with pytest.raises(ValueError, match=message):
        masked_linear(*case.arguments)


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float16, torch.float32)])
def test_kernels_say_which_dtypes_they_take(triton_site: Site, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    case = make_case(3, 5, 7).to(triton_site.device, dtypes[1])
    case = case._replace(z=case.z.detach().to(dtypes[0]))
    with pytest.raises(ValueError, match=rf"'torch.float32', 'torch.float16'.*got .*'{dtypes[0]}'.*reference"):
        masked_linear(*case.arguments)


def test_interpreter_refuses_bfloat16(triton_site: Site) -> None:
    if triton_site.device != "cpu":
        pytest.skip("a GPU multiplies bfloat16")
    with pytest.raises(ValueError, match=r"On cpu .*got .'torch.bfloat16'"):
        masked_linear(*make_case(3, 5, 7).to(torch.bfloat16).arguments)
