"""Attention: values and gradients of every operator, and which one is chosen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from diticli.errors import ConfigError, DeviceError
from diticli.models import attention
from diticli.models.attention import attend, attention_choice

CPU = torch.device("cpu")
GPU = pytest.mark.gpu
BF16 = {"dtype": torch.bfloat16, "gradient": True}
SHAPES = [(2, 16, 16, 4, 8), (3, 5, 5, 1, 7), (1, 9, 4, 2, 3), (2, 1, 1, 1, 1)]


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(attention.VARIABLE, raising=False)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


def make_qkv(B: int, M: int, N: int, H: int, K: int, device: torch.device = CPU) -> list[Tensor]:
    random = torch.Generator().manual_seed(M)
    return [torch.randn(B, n, H, K, generator=random).to(device) for n in (M, N, N)]


def defined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, one head at a time."""
    heads = range(q.shape[2])
    weights = [(q[:, :, h] @ k[:, :, h].transpose(1, 2) / q.shape[3] ** 0.5).softmax(-1) for h in heads]
    return torch.stack([w @ v[:, :, h] for h, w in zip(heads, weights, strict=True)], dim=2)


def run(function: Callable[..., Tensor], qkv: list[Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Output and the gradients of q, k and v."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in qkv]
    out = function(*leaves)
    assert out.dtype == dtype
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(dtype)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, grad))]


def error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest error of output and gradients, relative to the largest value of each."""
    return max(
        ((a - e).abs().max() / e.abs().max().clamp_min(1e-3)).item() for a, e in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("name", ["sdpa", "math", "auto", pytest.param("xformers", marks=GPU)])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(
    device: torch.device, name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "xformers" and (device.type == "cpu" or attention._why_not_xformers(device, torch.float32, *shape[2:])):
        pytest.skip("needs an xformers operator")
    monkeypatch.setenv(attention.VARIABLE, name)
    qkv = make_qkv(*shape, device=device)
    expected = run(defined, qkv, torch.float64)
    assert error(run(attend, qkv), expected) < 5e-6
    plain = error(run(defined, qkv, torch.bfloat16), expected)
    assert error(run(attend, qkv, torch.bfloat16), expected) <= 2 * plain + 1e-3


@pytest.mark.parametrize("name", ["sdpa", "math"])
def test_any_strides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.VARIABLE, name)
    qkv = [x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1) for x in make_qkv(2, 8, 8, 2, 4)]
    torch.testing.assert_close(attend(*qkv), defined(*qkv))


@pytest.mark.parametrize("name", ["sdpa", "math"])
def test_autocast_is_obeyed_whatever_the_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.VARIABLE, name)
    qkv = make_qkv(2, 8, 8, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*qkv)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), defined(*qkv), rtol=0, atol=0.03)


def test_math_is_for_small_bf16_training_on_a_cpu() -> None:
    choice = attention_choice(CPU, tokens=256, heads=1, head_dim=64, batch=128, **BF16)
    assert choice == ("math", "faster than SDPA's bf16 backward on a CPU")
    others: list[dict[str, Any]] = [
        {"gradient": False},
        {"dtype": torch.float32},
        {"heads": 4},  # 64 MiB of weights
        {"tokens": 2048, "batch": 1},
    ]
    for other in others:
        arguments = {"tokens": 256, "heads": 1, "head_dim": 64, "batch": 128, **BF16, **other}
        assert attention_choice(CPU, **arguments) == ("sdpa", "DITI_ATTENTION=auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", [True, False])
def test_attend_runs_what_attention_choice_names(
    dtype: torch.dtype, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    for name, operator in list(attention._OPERATORS.items()):
        monkeypatch.setitem(attention._OPERATORS, name, lambda *qkv, n=name, o=operator: ran.append(n) or o(*qkv))
    qkv = [x.to(dtype).requires_grad_() for x in make_qkv(2, 16, 16, 2, 8)]
    with torch.set_grad_enabled(gradient):
        attend(*qkv)
    choice = attention_choice(CPU, dtype, tokens=16, heads=2, head_dim=8, batch=2, gradient=gradient)
    assert ran == [choice.name]


@pytest.mark.parametrize("name", ["sdpa", " MATH "])
def test_the_variable_forces_a_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(attention.VARIABLE, name)
    name = name.strip().lower()
    for gradient in (True, False):
        choice = attention_choice(CPU, torch.bfloat16, tokens=16, heads=1, head_dim=8, gradient=gradient)
        assert choice == (name, f"DITI_ATTENTION={name}")


def test_what_cannot_be_had_or_is_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = make_qkv(1, 4, 4, 1, 4)
    monkeypatch.setenv(attention.VARIABLE, "xformers")
    with pytest.raises(DeviceError, match="cannot be used: xformers has no operator for this device") as refused:
        attend(*qkv)
    assert "DITI_ATTENTION" in refused.value.remedy
    monkeypatch.setenv(attention.VARIABLE, "flash")
    with pytest.raises(ConfigError, match="DITI_ATTENTION='flash' is unknown") as unknown:
        attend(*qkv)
    assert "auto, xformers, sdpa, math" in unknown.value.remedy


def test_shapes_and_dtypes_must_belong_together() -> None:
    q, k, v = make_qkv(2, 8, 8, 2, 4)
    for wrong in ((q[0], k, v), (q, k, v[:, 1:]), (q[:1], k, v), (q[:, :, :1], k, v), (q[..., 1:], k, v)):
        with pytest.raises(ValueError, match=r"q \[B, M, H, K\]"):
            attend(*wrong)
    with pytest.raises(ValueError, match=r"one dtype.*float64"):
        attend(q, k.double(), v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_into_one_graph(dtype: torch.dtype, dynamic: bool | None) -> None:
    torch.compiler.reset()
    graph = torch.compile(attend, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        qkv = make_qkv(batch, 16, 16, 2, 8)
        for actual, expected in zip(run(graph, qkv, dtype), run(attend, qkv, dtype), strict=True):
            torch.testing.assert_close(actual, expected)
    torch.compiler.reset()


def test_says_once_what_runs_for_a_shape(caplog: pytest.LogCaptureFixture) -> None:
    attention._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="diticli.models.attention"):
        for _ in range(3):
            attend(*make_qkv(2, 16, 16, 4, 8))
    assert [record.getMessage() for record in caplog.records] == [
        "Attention on cpu (4 heads of 8, 16 tokens, float32): sdpa (DITI_ATTENTION=auto)"
    ]


class FakeXformers:
    """Stands in for `xformers.ops`, and the CPU for a CUDA device in the probe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refusal: str = "") -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.refusal = refusal
        module = ModuleType("xformers.ops")
        module.memory_efficient_attention = self  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
        monkeypatch.setitem(sys.modules, "xformers.ops", module)
        ones = torch.ones
        monkeypatch.setattr(torch, "ones", lambda *size, device, **kwargs: ones(*size, **kwargs))
        attention._why_not_xformers.cache_clear()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        self.shapes.append(tuple(q.shape))
        if self.refusal:
            raise NotImplementedError(self.refusal)
        return defined(q, k, v)


@pytest.fixture
def cuda() -> torch.device:
    yield torch.device("cuda:0")
    attention._why_not_xformers.cache_clear()


def test_xformers_is_tried_once_for_each_shape(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeXformers(monkeypatch)
    monkeypatch.setenv(attention.VARIABLE, "xformers")
    with torch.inference_mode():  # the probe needs a gradient all the same
        for _ in range(2):
            choice = attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8)
            assert choice == ("xformers", "DITI_ATTENTION=xformers")
    attention_choice(cuda, torch.float32, tokens=64, heads=4, head_dim=8)
    assert fake.shapes == [(1, 16, 4, 8), (1, 64, 4, 8)]


def test_auto_is_sdpa_and_does_not_import_xformers(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeXformers(monkeypatch)
    monkeypatch.delenv(attention.VARIABLE, raising=False)
    choice = attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8)
    assert choice == ("sdpa", "DITI_ATTENTION=auto")
    assert fake.shapes == []


def test_says_why_xformers_refuses(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeXformers(monkeypatch, refusal="No operator found\nfor this")
    monkeypatch.setenv(attention.VARIABLE, "xformers")
    with pytest.raises(DeviceError, match="xformers refuses it: No operator found"):
        attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8)


@pytest.mark.parametrize("raised", [ImportError, RuntimeError, AttributeError])
def test_xformers_that_cannot_be_imported_is_a_finding(
    raised: type[Exception], cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mismatched(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise raised("built for another PyTorch")

    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", Mismatched("xformers.ops"))
    attention._why_not_xformers.cache_clear()
    monkeypatch.setenv(attention.VARIABLE, "xformers")
    with pytest.raises(DeviceError, match="cannot be used: xformers cannot be imported"):
        attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8)


def test_a_shortage_of_memory_is_not_remembered(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeXformers(monkeypatch)
    monkeypatch.setenv(attention.VARIABLE, "xformers")
    with monkeypatch.context() as full:
        full.setattr(FakeXformers, "__call__", raising(torch.OutOfMemoryError("CUDA out of memory")))
        with pytest.raises(torch.OutOfMemoryError):
            attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8)
    assert attention_choice(cuda, torch.float32, tokens=16, heads=4, head_dim=8).name == "xformers"
    assert len(fake.shapes) == 1


def raising(error: Exception) -> Any:
    def call(*_: object) -> Tensor:
        raise error

    return call


def test_xformers_gets_unit_strides_within_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeXformers(monkeypatch)
    qkv = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in make_qkv(2, 8, 8, 2, 4)]
    torch.testing.assert_close(attention._attend_xformers(*qkv), defined(*qkv))
    assert fake.shapes == [(2, 8, 2, 4)]
