"""The adaptive group norm: values and every gradient, against float64 autograd of the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diti_kernels.adaptive_group_norm import adaptive_group_norm, adaptive_group_norm_reference, launch
from norm_cases import FORMATS, assert_near, exact, explicit, make_case, run, run_on_case, usual
from op_sites import Site
from torch import Tensor

# (shape of x, groups, channels of skip)
ONE_GROUP_A_CHANNEL, ONE_GROUP = ((3, 5, 3, 5), 5, 0), ((1, 7, 4, 4), 1, 0)
STRADDLING, ALIGNED = ((2, 10, 5, 7), 3, 5), ((2, 16, 8, 8), 4, 8)
SHAPES = [
    ONE_GROUP_A_CHANNEL,
    ONE_GROUP,
    STRADDLING,
    ALIGNED,
    ((2, 6, 9, 1), 2, 0),
    ((1, 1, 3, 3), 2, 3),
    ((2, 96, 4, 4), 32, 0),
    ((1, 40, 33, 33), 8, 24),
]


@pytest.fixture
def many_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes take the kernels of large ones: several tiles of positions, merged in several rounds."""
    monkeypatch.setattr(launch, "ONE_PASS_POSITIONS", 0)
    monkeypatch.setattr(launch, "_STREAMED", 64)
    monkeypatch.setattr(launch, "_MERGED_AT_ONCE", 4)


@pytest.mark.usefixtures("poisoned_empty")
@pytest.mark.parametrize("memory", list(FORMATS))
@pytest.mark.parametrize(("shape", "groups", "skip"), SHAPES)
def test_values_and_gradients(site: Site, shape: tuple[int, ...], groups: int, skip: int, memory: str) -> None:
    case = make_case(shape, groups, skip, memory=memory).to(site.device)
    actual = run(adaptive_group_norm, case)
    assert_near(actual, exact(case), 4e-6)
    assert_near(actual, run(adaptive_group_norm_reference, case), 4e-6)


@pytest.mark.parametrize("memory", list(FORMATS))
def test_without_activation(site: Site, memory: str) -> None:
    case = make_case((2, 10, 5, 7), 3, 5, memory=memory, activation="none").to(site.device)
    assert_near(run(adaptive_group_norm, case), exact(case), 4e-6)


@pytest.mark.usefixtures("poisoned_empty", "many_tiles")
@pytest.mark.parametrize(("shape", "groups", "skip"), [ONE_GROUP_A_CHANNEL, ONE_GROUP, STRADDLING])
def test_many_tiles_of_positions(triton_site: Site, shape: tuple[int, ...], groups: int, skip: int) -> None:
    case = make_case(shape, groups, skip).to(triton_site.device)
    assert_near(run(adaptive_group_norm, case), exact(case), 4e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("ratio", [1e3, 1e4])
@pytest.mark.parametrize("memory", list(FORMATS))
def test_mean_far_above_the_deviation(site: Site, memory: str, ratio: float) -> None:
    """The error is that of rounding x itself, a few eps * mean / std; E[x^2] - E[x]^2 would have no digit left."""
    case = make_case((2, 16, 9, 9), 4, 8, memory=memory, mean=ratio).to(site.device)
    tolerance = 4 * ratio * torch.finfo(torch.float32).eps
    assert_near(run(adaptive_group_norm, case), exact(case), tolerance)
    assert_near(run(adaptive_group_norm_reference, case), exact(case), tolerance)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.usefixtures("many_tiles")
@pytest.mark.parametrize("ratio", [1e3, 1e4])
def test_tiles_merge_with_a_mean_far_above_the_deviation(triton_site: Site, ratio: float) -> None:
    case = make_case((1, 16, 7, 7), 4, 8, mean=ratio).to(triton_site.device)
    assert_near(run(adaptive_group_norm, case), exact(case), 4 * ratio * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("rows", ["[C]", "[1, C]", "float64", "bfloat16"])
@pytest.mark.parametrize("memory", list(FORMATS))
def test_modulations_broadcast_and_convert(site: Site, rows: str, memory: str) -> None:
    case = make_case((3, 6, 4, 5), 3, memory=memory).to(site.device)
    if rows.startswith("["):
        change = (lambda m: m[0]) if rows == "[C]" else (lambda m: m[:1])
    else:
        change = lambda m: m.to(getattr(torch, rows))  # noqa: E731
    scale, shift = (change(m.detach()).requires_grad_() for m in (case.scale, case.shift))
    case = case._replace(scale=scale, shift=shift)
    actual = run(adaptive_group_norm, case)
    assert [t.dtype for t in actual[2:]] == [scale.dtype] * 2
    assert_near(actual, exact(case), 8e-3 if rows == "bfloat16" else 4e-6)


@pytest.mark.parametrize("spatial", [(), (6,), (2, 3, 4)])
def test_any_number_of_spatial_dims(site: Site, spatial: tuple[int, ...]) -> None:
    case = make_case((2, 6, *spatial), 3, 3).to(site.device)
    assert_near(run(adaptive_group_norm, case), exact(case), 4e-6)


@pytest.mark.parametrize("skip_memory", list(FORMATS))
@pytest.mark.parametrize("memory", list(FORMATS))
def test_result_keeps_the_memory_format_of_x(site: Site, memory: str, skip_memory: str) -> None:
    case = make_case((2, 6, 4, 5), 3, 3, memory=memory).to(site.device)
    skip = case.skip.detach().contiguous(memory_format=FORMATS[skip_memory]).requires_grad_()
    for function in (adaptive_group_norm, adaptive_group_norm_reference):
        y = function(case.x, case.scale, case.shift, 3, skip=skip)
        assert y.is_contiguous(memory_format=FORMATS[memory])
    assert_near(run(adaptive_group_norm, case._replace(skip=skip)), exact(case), 4e-6)


@pytest.mark.parametrize("memory", list(FORMATS))
def test_any_strides(site: Site, memory: str) -> None:
    case = make_case((2, 6, 4, 5), 3, 3, memory=memory).to(site.device)
    wide = torch.zeros(2, 20, 4, 10, device=site.device).to(memory_format=FORMATS[memory])
    wide[:, 2:8, :, ::2], wide[:, 8:11, :, ::2] = case.x.detach(), case.skip.detach()
    x, skip = (part.requires_grad_() for part in (wide[:, 2:8, :, ::2], wide[:, 8:11, :, ::2]))
    grad = torch.ones((), device=site.device).expand_as(case.grad)
    strided = case._replace(x=x.detach().requires_grad_(), skip=skip.detach().requires_grad_(), grad=grad)
    assert_near(run(adaptive_group_norm, strided), exact(case._replace(grad=grad)), 4e-6)


@pytest.mark.parametrize("frozen", ["x", "skip", "scale", "shift", "x and skip"])
@pytest.mark.parametrize("memory", list(FORMATS))
def test_frozen_arguments_get_no_gradient(site: Site, frozen: str, memory: str) -> None:
    """A frozen channels_last x under trainable modulations kills PyTorch's own group norm on the CPU."""
    names = ("x", "skip", "scale", "shift")
    case = make_case((2, 10, 6, 6), 3, 5, memory=memory).to(site.device)
    expected = dict(zip(names, run(adaptive_group_norm, case)[1:], strict=True))
    for name in frozen.split(" and "):
        getattr(case, name).requires_grad_(False)
    adaptive_group_norm(case.x, case.scale, case.shift, 3, skip=case.skip).backward(case.grad)
    for name, gradient in expected.items():
        actual = getattr(case, name).grad
        assert (actual is None) if name in frozen.split(" and ") else torch.allclose(actual, gradient, atol=1e-6)


@pytest.mark.parametrize("memory", list(FORMATS))
def test_inference_and_training_give_the_same_values(site: Site, memory: str) -> None:
    case = make_case((2, 10, 6, 6), 3, 5, memory=memory).to(site.device)
    arguments, options = (case.x, case.scale, case.shift, 3), {"skip": case.skip}
    before = case.x.detach().clone()
    with torch.no_grad():
        inferred = adaptive_group_norm(*arguments, **options)
    assert torch.equal(inferred, adaptive_group_norm(*arguments, **options))
    assert torch.equal(case.x, before)


@pytest.mark.parametrize("memory", list(FORMATS))
def test_repeats_bit_for_bit(site: Site, memory: str) -> None:
    case = make_case((1, 10, 33, 33), 3, 5, memory=memory).to(site.device)
    first = run(adaptive_group_norm, case)
    assert all(map(torch.equal, first, run(adaptive_group_norm, case)))


def test_empty_batch(site: Site) -> None:
    y, dx, dscale, dshift = run(adaptive_group_norm, make_case((0, 6, 4, 4), 3).to(site.device))
    assert y.shape == dx.shape == (0, 6, 4, 4)
    assert dscale.shape == dshift.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory", list(FORMATS))
@pytest.mark.parametrize("skip", [0, 8])
def test_low_precision(site: Site, memory: str, dtype: torch.dtype, skip: int) -> None:
    case = make_case((4, 24, 8, 8), 4, skip, memory=memory).to(site.device, dtype)
    truth = exact(case)
    actual = run(adaptive_group_norm, case)
    assert [t.dtype for t in actual] == [dtype] * len(actual)
    contiguous = make_case((4, 24, 8, 8), 4, skip, memory="contiguous").to(site.device, dtype)
    for a, plain, t in zip(actual, run_on_case(usual, contiguous), truth, strict=True):
        assert (a - t).abs().max() <= 2 * (plain - t).abs().max()


@pytest.mark.parametrize("memory", list(FORMATS))
def test_autocast_changes_nothing(site: Site, memory: str) -> None:
    case = make_case((2, 10, 6, 6), 3, 5, memory=memory).to(site.device)
    with torch.autocast(site.device, site.low_precision):
        inside = run(adaptive_group_norm, case)
    assert all(map(torch.equal, inside, run(adaptive_group_norm, case)))


def test_skip_of_another_dtype_is_converted(site: Site) -> None:
    case = make_case((2, 10, 6, 6), 3, 5).to(site.device)
    half = case.skip.detach().to(torch.float16)
    converted = run(adaptive_group_norm, case._replace(skip=half.float().requires_grad_()))
    mixed = run(adaptive_group_norm, case._replace(skip=half.requires_grad_()))
    assert mixed[2].dtype == torch.float16
    assert torch.equal(mixed[0], converted[0])
    assert torch.equal(mixed[2], converted[2].to(torch.float16))


@pytest.mark.parametrize("memory", list(FORMATS))
def test_reference_is_group_norm_and_silu(memory: str) -> None:
    x = make_case((3, 24, 8, 8), 4, memory=memory, mean=2.0).x.detach()
    weight, bias = torch.rand(24) + 0.5, torch.randn(24)
    theirs = F.silu(F.group_norm(x, 4, weight, bias))
    for function in (adaptive_group_norm, adaptive_group_norm_reference):
        assert (function(x, weight, bias, 4) - theirs).abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("function", [adaptive_group_norm, adaptive_group_norm_reference])
def test_float64_passes_gradcheck(function, activation: str) -> None:
    case = make_case((2, 4, 2, 3), 3, 2, activation=activation).to(torch.float64)

    def op(x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return function(x, scale, shift, 3, skip=skip, activation=activation)

    assert torch.autograd.gradcheck(op, case.leaves)
    assert torch.autograd.gradgradcheck(op, case.leaves)
    assert_near([op(*case.leaves).detach()], [explicit(case).detach()], 1e-13)
