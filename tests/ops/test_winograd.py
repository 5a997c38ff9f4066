"""Winograd's convolution in C: PyTorch's values and gradients, and taken only where it was measured to be faster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diti_kernels import native
from diti_kernels.winograd import compiled, convolve_3x3, op
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

needs_compiler = pytest.mark.skipif(compiled.library().functions is None, reason=compiled.library().reason)
FASTER = op.Measured(dict.fromkeys(op.NAMES, 1.0) | {name: 2.0 for name in op.NAMES if name.startswith("pytorch")})
SLOWER = op.Measured(dict.fromkeys(op.NAMES, 1.0))


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine was measured to be faster by Winograd's algorithm, and nothing is forced."""
    monkeypatch.delenv("DITI_KERNELS", raising=False)
    monkeypatch.setattr(op, "measured", lambda threads: FASTER)


def maps(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("B", "C", "D", "H", "W"),
    [(4, 32, 32, 16, 16), (1, 32, 48, 32, 36), (9, 80, 32, 8, 16), (16, 48, 192, 8, 8), (64, 272, 32, 4, 4)],
)
def test_values_and_gradients_are_those_of_pytorch(
    B: int, C: int, D: int, H: int, W: int, threads: int, faster: None, poisoned_empty: None
) -> None:
    x, weight, bias, grad = maps(B, C, H, W), torch.randn(D, C, 3, 3), torch.randn(D), maps(B, D, H, W)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        assert op.serves(ours[0], ours[1])
        y = convolve_3x3(*ours)
        found = (y, *torch.autograd.grad(y, ours, grad))
    finally:
        torch.set_num_threads(before)
    right = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    wanted = F.conv2d(*right, padding=1)
    assert y.is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(found, (wanted, *torch.autograd.grad(wanted, right, grad.double())), strict=True):
        assert (a - b).abs().max() < 5e-5 * b.abs().max()


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("B", "C", "D", "H", "W"),
    [(16, 32, 32, 16, 16), (1, 32, 48, 64, 72), (9, 80, 32, 16, 32), (16, 48, 192, 16, 16), (64, 272, 32, 8, 8)],
)
def test_with_stride_2_values_are_those_of_pytorch(
    B: int, C: int, D: int, H: int, W: int, threads: int, faster: None, poisoned_empty: None
) -> None:
    x, weight, bias = maps(B, C, H, W), torch.randn(D, C, 3, 3), torch.randn(D)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert op.serves(x, weight, stride=2)
        found, unbiased = convolve_3x3(x, weight, bias, 2), convolve_3x3(x, weight, stride=2)
        alone = torch.cat([convolve_3x3(image[None], weight, bias, 2) for image in x])
    finally:
        torch.set_num_threads(before)
    wanted = F.conv2d(x.double(), weight.double(), bias.double(), 2, 1)
    assert found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    for ours, right in ((found, wanted), (unbiased, wanted - bias[:, None, None]), (alone, wanted)):
        assert (ours - right).abs().max() < 1e-5 * wanted.abs().max()


@needs_compiler
def test_with_stride_2_gradients_are_pytorchs(faster: None) -> None:
    x, weight = maps(*LARGE), torch.randn(32, 32, 3, 3, requires_grad=True)
    y = convolve_3x3(x, weight, stride=2)
    theirs = F.conv2d(x, weight, stride=2, padding=1)
    assert torch.equal(y, theirs)
    assert torch.equal(*(torch.autograd.grad(out.square().sum(), weight)[0] for out in (y, theirs)))


@needs_compiler
@pytest.mark.parametrize(("H", "W"), [(12, 16), (16, 20), (17, 16), (16, 15)])
def test_with_stride_2_other_sizes_are_pytorchs(H: int, W: int, faster: None) -> None:
    x, weight = maps(16, 32, H, W), torch.randn(32, 32, 3, 3)
    assert torch.equal(convolve_3x3(x, weight, stride=2), F.conv2d(x, weight, stride=2, padding=1))


@needs_compiler
def test_a_frozen_weight_is_transformed_once_and_again_after_a_change(
    faster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[Tensor] = []
    pack = compiled.pack
    monkeypatch.setattr(compiled, "pack", lambda weight, stride: packed.append(weight) or pack(weight, stride))
    x, weight = maps(1, 32, 8, 8), torch.nn.Parameter(torch.randn(32, 32, 3, 3), requires_grad=False)

    @torch.inference_mode()
    def agrees() -> bool:
        return torch.allclose(convolve_3x3(x, weight), F.conv2d(x, weight, padding=1), rtol=1e-3, atol=1e-3)

    assert [agrees(), agrees(), len(packed)] == [True, True, 1]
    weight.mul_(2)
    assert [agrees(), len(packed)] == [True, 2]
    weight.data = torch.randn(32, 32, 3, 3)
    assert [agrees(), len(packed)] == [True, 3]
    with torch.inference_mode():
        weight.add_(1)
        assert [agrees(), agrees(), len(packed)] == [True, True, 4]
        for stride in (2, 1):  # the same weight, transformed otherwise
            theirs = F.conv2d(x, weight, stride=stride, padding=1)
            torch.testing.assert_close(convolve_3x3(x, weight, stride=stride), theirs, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_results_do_not_depend_on_batch_or_threads(faster: None) -> None:
    """Every tile is summed in one order, so a batch gives bit for bit what its images give alone."""
    x, weight = maps(6, 32, 32, 32), torch.randn(32, 32, 3, 3)
    whole = convolve_3x3(x, weight)
    with torch.inference_mode():
        assert torch.equal(whole, torch.cat([convolve_3x3(image[None], weight) for image in x]))
    before = torch.get_num_threads()
    torch.set_num_threads(3 - before if before in (1, 2) else 1)
    try:
        assert torch.equal(whole, convolve_3x3(x, weight))
    finally:
        torch.set_num_threads(before)


LARGE = (4, 32, 16, 16)
OTHERS = {
    "NCHW": (torch.randn(LARGE), (32, 32)),
    "half precision": (maps(*LARGE).bfloat16(), (32, 32)),
    "float64": (maps(*LARGE).double(), (32, 32)),
    "odd channels": (maps(4, 24, 16, 16), (32, 24)),
    "odd outputs": (maps(*LARGE), (3, 32)),
    "odd height": (maps(4, 32, 18, 16), (32, 32)),
    "no image": (maps(0, 32, 16, 16), (32, 32)),
}


@needs_compiler
@pytest.mark.parametrize("name", OTHERS)
def test_what_it_does_not_serve_is_pytorchs(name: str, faster: None) -> None:
    x, channels = OTHERS[name]
    weight = torch.randn(*channels, 3, 3, dtype=x.dtype)
    assert torch.equal(convolve_3x3(x, weight), F.conv2d(x, weight, padding=1))


@needs_compiler
def test_what_has_no_memory_is_pytorchs(faster: None) -> None:
    with FakeTensorMode():
        x, weight = maps(*LARGE), torch.empty(32, 32, 3, 3)
        assert convolve_3x3(x, weight).shape == LARGE
        assert not op.serves(x, weight)
    assert convolve_3x3(maps(*LARGE).to("meta"), torch.empty(32, 32, 3, 3, device="meta")).shape == LARGE


@needs_compiler
def test_few_tiles_pay_only_for_frozen_weights(faster: None) -> None:
    weight = torch.nn.Parameter(torch.randn(32, 32, 3, 3))
    assert not op.serves(maps(1, 32, 16, 16), weight)
    assert op.serves(maps(4, 32, 16, 16), weight)
    assert not op.serves(maps(1, 32, 16, 16), weight.requires_grad_(False)), "nothing is kept in training"
    with torch.inference_mode():
        assert op.serves(maps(1, 32, 16, 16), weight)
    large = torch.randn(256, 256, 3, 3)
    with torch.inference_mode():
        assert not op.serves(maps(1, 256, 8, 8), large), "no transformed form of it is kept"


@needs_compiler
def test_it_is_taken_only_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS", raising=False)
    x, weight = maps(4, 64, 16, 16), torch.randn(64, 64, 3, 3)
    only_64 = op.Measured(SLOWER.times | {"pytorch 64 frozen": 1.2})
    for found, serves in ((FASTER, True), (SLOWER, False), (op.Measured({}), False), (only_64, True)):
        monkeypatch.setattr(op, "measured", lambda threads, found=found: found)
        assert op.serves(x, weight) is serves
    assert not op.serves(x, torch.nn.Parameter(weight)), "slower when trained"
    assert not op.serves(maps(16, 64, 16, 16), weight, stride=2), "slower with stride 2"
    assert not op.serves(maps(4, 32, 16, 16), torch.randn(64, 32, 3, 3)), "slower at 32"
    assert not op.serves(maps(4, 16, 16, 16), torch.randn(64, 16, 3, 3)), "not measured"
    monkeypatch.setattr(op, "measured", lambda threads: FASTER)
    monkeypatch.setenv("DITI_KERNELS", "reference")
    assert not op.serves(x, weight)


@needs_compiler
def test_the_measurement_takes_turns_and_keeps_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 1), ("SIDE", 8), ("WIDTHS", (16,)), ("READINGS", 3)):
        monkeypatch.setattr(op, name, value)
    lengths = itertools.chain.from_iterable([length] * 6 for length in (4.0, 2.0, 3.0))  # of six sides by turns
    ticks = itertools.count()
    now = 0.0

    def clock() -> float:
        nonlocal now
        if next(ticks) % 2:
            now += next(lengths)
        return now

    with torch.inference_mode():
        assert set(op.measure(clock).values()) == {2000.0}


@needs_compiler
def test_a_miscompiled_convolution_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = compiled.SOURCE.read_text()
    for good, bad in (
        *(("d + 8.0f * e", "d + 8.1f * e"), ("m - s, o[3]", "m + s, o[3]"), ("= p - q", "= p + q")),
        ("o[7] = b;", "o[7] = a;"),
    ):
        assert good in text
        source = tmp_path / "tiles.c"
        source.write_text(text.replace(good, bad, 1))
        assert native.load(source, compiled._is_right).functions is None


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@needs_compiler
def test_training_gives_the_same_bits_twice(faster: None, two_threads: None) -> None:
    x, weight, grad = maps(4, 32, 16, 16), torch.randn(32, 32, 3, 3, requires_grad=True), maps(4, 32, 16, 16)
    first, second = (torch.autograd.grad(convolve_3x3(x, weight), weight, grad)[0] for _ in range(2))
    assert torch.equal(first, second)
