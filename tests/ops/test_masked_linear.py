"""The masked projection: values and every gradient, against float64 autograd of the explicit mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diti_kernels.masked_linear import op as ops
from masked_cases import SHAPES, SPANS, TIMESTEPS, Case, assert_near, explicit, make_case, reference, run
from op_sites import Site
from torch import Tensor


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize(("B", "d", "E"), SHAPES)
def test_values_and_gradients(site: Site, B: int, d: int, E: int, span: str) -> None:
    case = make_case(B, d, E, span).to(site.device)
    actual = run(case)
    assert_near(actual, run(case.to(torch.float64), explicit), 5e-6)
    assert_near(actual, run(case, reference), 5e-6)


@pytest.mark.usefixtures("poisoned_empty")
def test_no_bias(site: Site) -> None:
    case = make_case(3, 64, 7, bias=False).to(site.device)
    assert_near(run(case), run(case.to(torch.float64), explicit), 5e-6)


def test_int32_and_int64_agree(site: Site) -> None:
    wide, narrow = (make_case(3, 64, 7, index=index).to(site.device) for index in (torch.int64, torch.int32))
    mixed = wide._replace(t=narrow.t, own_T2=narrow.own_T2)
    for other in (narrow, mixed):
        assert all(map(torch.equal, run(wide), run(other)))


def test_empty_batch(site: Site) -> None:
    out, dz, dw, db = run(make_case(0, 64, 7).to(site.device))
    assert out.shape == (0, 7)
    assert dz.shape == (0, 64)
    assert not dw.any()
    assert not db.any()


def test_any_strides(site: Site) -> None:
    case = make_case(5, 64, 24).to(site.device)
    strided = case._replace(
        z=torch.randn(5, 130, device=site.device)[:, 1:129:2].requires_grad_(),
        t=torch.tensor(3, device=site.device).expand(5),
        visible_T2=case.visible_T2.repeat_interleave(2, dim=0)[::2],
        own_T2=case.own_T2.T.contiguous().T,
        weight=torch.randn(64, 24, device=site.device).T.requires_grad_(),
        grad=torch.ones((), device=site.device).expand(5, 24),
    )
    assert_near(run(strided), run(strided.to(torch.float64), explicit), 5e-6)
    sparse = case._replace(t=case.t.repeat_interleave(3)[::3])
    assert all(map(torch.equal, run(sparse), run(case)))


@pytest.mark.parametrize("span", ["detached", "suffix detached", "middle"])
def test_the_own_window_changes_only_the_gradient_of_z(site: Site, span: str) -> None:
    detached = make_case(17, 130, 128, span).to(site.device)
    (out, dz, dw, db), (out_c, dz_c, dw_c, db_c) = run(detached), run(detached._replace(own_T2=None))
    assert torch.equal(out, out_c)
    assert torch.equal(dw, dw_c)
    assert torch.equal(db, db_c)
    own = detached.own
    assert not dz[~own].any()
    assert torch.equal(dz[own], dz_c[own])
    assert dz[own].all()
    assert dz_c[detached.visible].all()


@pytest.mark.parametrize("span", ["detached", "suffix", "middle", "any"])
def test_hidden_dims_are_not_read(site: Site, span: str) -> None:
    case = make_case(17, 64, 7, span).to(site.device)
    poisoned = case._replace(z=case.z.detach().masked_fill(~case.visible, torch.nan).requires_grad_())
    assert all(map(torch.equal, run(poisoned), run(case)))


def test_table_entries_out_of_range_are_clipped(site: Site) -> None:
    case = make_case(3, 5, 7).to(site.device)
    beyond, whole = (torch.tensor(window, device=site.device).expand(TIMESTEPS, 2) for window in ([-4, 99], [0, 5]))
    expected = run(case._replace(visible_T2=whole, own_T2=None))
    assert all(map(torch.equal, run(case._replace(visible_T2=beyond, own_T2=beyond)), expected))


def assert_nothing_shown(case: Case) -> None:
    out, dz, dw, db = run(case)
    assert torch.equal(out, case.bias.expand_as(out))
    assert not dz.any()
    assert not dw.any()
    torch.testing.assert_close(db, case.grad.sum(0))


@pytest.mark.parametrize("window", [[3, 3], [4, 1], [-4, 0], [5, 9]])
def test_an_empty_window_shows_nothing(site: Site, window: list[int]) -> None:
    case = make_case(3, 5, 7).to(site.device)
    assert_nothing_shown(case._replace(visible_T2=torch.tensor(window, device=site.device).expand(TIMESTEPS, 2)))


def test_the_forward_reads_only_tiles_that_a_row_sees(triton_site: Site) -> None:
    case = make_case(3, 200, 7).to(triton_site.device)
    window = torch.tensor([70, 100], device=triton_site.device).expand(TIMESTEPS, 2).clone()
    window[4] = torch.tensor([150, 3])
    case = case._replace(t=torch.tensor([2, 4, -1], device=triton_site.device), visible_T2=window)
    weight = case.weight.detach().clone()
    weight[:, :64] = weight[:, 128:] = torch.nan
    assert torch.equal(case._replace(weight=weight).project(), case.project())


@pytest.mark.parametrize("span", ["detached", "suffix detached"])
def test_kernels_show_nothing_at_a_timestep_out_of_range(triton_site: Site, span: str) -> None:
    case = make_case(3, 5, 7, span).to(triton_site.device)
    case = case._replace(t=torch.tensor([-1, TIMESTEPS, 10**12], device=triton_site.device))
    assert_nothing_shown(case)


def test_repeats_bit_for_bit(site: Site) -> None:
    case = make_case(17, 130, 128).to(site.device)
    first = run(case)
    assert all(all(map(torch.equal, first, run(case))) for _ in range(2))


@pytest.mark.parametrize("frozen", ["z", "weight", "bias"])
def test_frozen_arguments_get_no_gradient(site: Site, frozen: str) -> None:
    case = make_case(3, 64, 7).to(site.device)
    expected = dict(zip(("z", "weight", "bias"), run(case)[1:], strict=True))
    getattr(case, frozen).requires_grad_(False)
    case.project().backward(case.grad)
    for name, gradient in expected.items():
        actual = getattr(case, name).grad
        assert actual is None if name == frozen else torch.equal(actual, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(site: Site, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 != site.low_precision:
        pytest.skip("Triton's interpreter cannot multiply bfloat16")
    case = make_case(17, 130, 128).to(site.device, dtype)
    exact = run(case.to(torch.float64), explicit)
    actual = run(case)
    assert all(tensor.dtype == dtype for tensor in actual)
    for a, plain, e in zip(actual, run(case, explicit), exact, strict=True):
        assert (a - e).abs().max() <= 2 * (plain - e).abs().max()


def test_autocast_as_linear_does(site: Site) -> None:
    case = make_case(17, 64, 24, "cumulative").to(site.device)
    with torch.autocast(site.device, site.low_precision):
        actual = run(case)
        plain = run(case, reference)
        linear = F.linear(case.z * case.visible, case.weight, case.bias)
    assert torch.equal(plain[0], linear)
    assert [tensor.dtype for tensor in actual] == [site.low_precision, *[torch.float32] * 3]
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in plain]
    for a, p, e in zip(actual, plain, run(case.to(torch.float64), explicit), strict=True):
        assert (a - e).abs().max() <= 2 * (p - e).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("span", SPANS)
def test_reference_is_linear_of_the_masked_features(span: str, dtype: torch.dtype) -> None:
    case = make_case(17, 130, 24, span).to(dtype)
    assert torch.equal(reference(case), F.linear(case.z * case.visible, case.weight, case.bias))


@pytest.mark.parametrize("span", ["cumulative", "detached", "suffix detached", "middle"])
def test_reference_passes_gradcheck(span: str) -> None:
    case = make_case(3, 5, 4, span).to(torch.float64)
    constant = case.z.detach().clone()

    def project(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Finite differences see through detach, so the dims outside the own window are held constant.
        return reference(case._replace(z=torch.where(case.own, z, constant), weight=weight, bias=bias))

    assert torch.autograd.gradcheck(project, tuple(case.leaves))
    assert torch.autograd.gradgradcheck(project, tuple(case.leaves))


def test_opcheck(triton_site: Site) -> None:
    z, t, visible, own, weight, bias, grad = make_case(3, 5, 7).to(triton_site.device)
    torch.library.opcheck(ops.masked_linear_op, (z, t, visible, own, weight, bias))
    torch.library.opcheck(ops.masked_linear_op, (z, t, visible, None, weight, None))
    torch.library.opcheck(ops.masked_linear_dz_op, (grad, t, visible, own, weight.detach()))
    torch.library.opcheck(ops.masked_linear_dz_op, (grad, t, visible, None, weight.detach()))
    torch.library.opcheck(ops.masked_linear_dw_op, (grad, z.detach(), t, visible))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("span", ["cumulative", "detached"])
def test_compiles_into_one_graph(site: Site, span: str, autocast: bool) -> None:
    def block(case: Case) -> Tensor:
        with torch.autocast(site.device, site.low_precision, enabled=autocast):
            return case.project() * 2

    # Inductor needs a C++ compiler on the CPU; tracing is what is at stake there.
    backend = "inductor" if site.device == "cuda" else "aot_eager"
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    for B in (3, 17):
        case = make_case(B, 64, 24, span).to(site.device)
        for found, wanted in zip(run(case, compiled), run(case, block), strict=True):
            # Inductor's code rounds at other places.
            allowed = 0.0 if site.device == "cpu" else 1e-2 if autocast else 1e-5
            assert (found - wanted).norm() <= allowed * wanted.norm()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(3, 4)}, r"z \[B, d\] and weight \[E, d\] expected, got \[3, 4\] and \[7, 5\]"),
        ({"z": torch.zeros(5)}, r"z \[B, d\]"),
        ({"t": torch.ones(2, dtype=torch.int64)}, r"each of 3 samples, got the shape \[2\]"),
        ({"t": torch.zeros(3)}, r"int32 or int64, got torch.float32"),
        ({"visible_T2": torch.tensor(5)}, r"\[T, 2\], got the shapes \[\] and \[11, 2\]"),
        ({"visible_T2": torch.ones(11, dtype=torch.int64)}, r"\[T, 2\], got the shapes \[11\] and \[11, 2\]"),
        ({"own_T2": torch.ones(4, 2, dtype=torch.int64)}, r"\[T, 2\], got the shapes \[11, 2\] and \[4, 2\]"),
        ({"visible_T2": torch.ones(11, 2, dtype=torch.uint8)}, r"int32 or int64, got torch.int64, torch.uint8"),
        ({"bias": torch.zeros(6)}, r"shape \[7\] of weight's rows, got \[6\]"),
        ({"weight": torch.zeros(7, 5, device="meta")}, r"one device, got \['cpu', 'meta'\]"),
    ],
)
def test_says_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_case(3, 5, 7)._replace(**change).project()


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float64), (torch.float16, torch.float32)])
def test_kernels_say_which_dtypes_they_take(triton_site: Site, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    case = make_case(3, 5, 7).to(triton_site.device, dtypes[1])
    case = case._replace(z=case.z.detach().to(dtypes[0]))
    with pytest.raises(ValueError, match=rf"'torch.float32', 'torch.float16'.*got .*'{dtypes[0]}'.*reference"):
        case.project()


def test_interpreter_refuses_bfloat16(triton_site: Site) -> None:
    if triton_site.device != "cpu":
        pytest.skip("a GPU multiplies bfloat16")
    with pytest.raises(ValueError, match=r"On cpu .*got .'torch.bfloat16'"):
        make_case(3, 5, 7).to(torch.bfloat16).project()
