"""Attention in C: the values of the definition, and taken only where it was measured to be faster."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diti_kernels import native, sites
from diti_kernels.attention import compiled, op
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from diticli.models import attention

needs_compiler = pytest.mark.skipif(compiled.library().functions is None, reason=compiled.library().reason)
SLOWER = op.Measured(dict.fromkeys(op.NAMES, 1.0))
FASTER = op.Measured(SLOWER.times | {name: 1.2 for name in op.NAMES if name.startswith("sdpa")})


@pytest.fixture(autouse=True)
def _no_setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DITI_KERNELS", raising=False)
    monkeypatch.delenv(attention.VARIABLE, raising=False)
    op._pays.cache_clear()
    yield
    op._pays.cache_clear()


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine was measured to be faster by the C code."""
    monkeypatch.setattr(op, "measured", lambda threads: FASTER)


def projected(B: int, N: int, H: int, K: int, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Queries, keys and values as a network has them: parts of one product."""
    return (scale * torch.randn(B, N, 3, H, K)).unbind(2)


def defined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(-1) @ v).transpose(1, 2)


def error(actual: Tensor, right: Tensor) -> float:
    return float((actual.double() - right).abs().max() / right.abs().max())


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(2, 256, 4, 32), (1, 67, 1, 48), (3, 1, 2, 16), (1, 1030, 1, 128), (5, 65, 3, 256)])
def test_values_are_those_of_the_definition(shape: tuple[int, ...], threads: int, poisoned_empty: None) -> None:
    q, k, v = projected(*shape)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = compiled.attend(q, k, v)
    finally:
        torch.set_num_threads(before)
    right = defined(q, k, v)
    sdpa = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert out.is_contiguous()
    assert error(out, right) < 4 * error(sdpa, right) + 1e-6


@needs_compiler
def test_any_strides_and_other_numbers_of_keys() -> None:
    q, k, v = torch.randn(2, 2, 70, 32).transpose(1, 2), torch.randn(1, 33, 1, 32).expand(2, 33, 2, 32), None
    v = torch.randn(33, 2, 2, 40).transpose(0, 1)[..., 3:35]
    assert error(compiled.attend(q, k, v), defined(q, k, v)) < 5e-6


@needs_compiler
def test_large_scores_do_not_overflow() -> None:
    q, k, v = projected(1, 64, 2, 32, scale=40.0)
    assert (q @ k.transpose(2, 3)).abs().max() / math.sqrt(32) > 1000
    assert error(compiled.attend(q, k, v), defined(q, k, v)) < 5e-4
    q[0, 3, 0, 5] = torch.nan
    out = compiled.attend(q, k, v)
    assert out[0, 3, 0].isnan().all()
    assert out.isnan().sum() == 32


@needs_compiler
def test_an_image_gives_the_same_bits_alone_and_with_any_number_of_threads() -> None:
    qkv = projected(3, 100, 1, 32)
    whole = compiled.attend(*qkv)
    assert torch.equal(whole, torch.cat([compiled.attend(*(x[i : i + 1] for x in qkv)) for i in range(3)]))
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        assert torch.equal(whole, compiled.attend(*qkv))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_attend_takes_it_without_a_gradient_only(faster: None) -> None:
    q, k, v = projected(1, 256, 2, 32)
    ours, theirs = compiled.attend(q, k, v), attention._attend_sdpa(q, k, v)
    assert not torch.equal(ours, theirs), "else this test could not tell them apart"
    assert torch.equal(attention.attend(q, k, v), ours)
    trained = q.clone().requires_grad_()
    assert torch.equal(attention.attend(trained, k, v), theirs)
    with torch.no_grad():
        assert torch.equal(attention.attend(trained, k, v), ours)
    shape = {"tokens": 256, "heads": 2, "head_dim": 32}
    choices = [attention.attention_choice(q.device, q.dtype, **shape, gradient=wanted).name for wanted in (False, True)]
    assert choices == ["native", "sdpa"]


@needs_compiler
def test_what_it_does_not_serve_is_pytorchs(faster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = projected(1, 256, 2, 32)
    assert op.serves(q, k, v)
    for others in (
        projected(1, 256, 2, 24),
        projected(1, 256, 1, 256),
        projected(1, 255, 2, 32),
        projected(0, 256, 2, 32),
        tuple(x.double() for x in (q, k, v)),
        tuple(x.to("meta") for x in (q, k, v)),
        tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)),
    ):
        assert not op.serves(*others)
    with torch.autocast("cpu"):
        assert not op.serves(q, k, v)
    with sites.recording("eager"):
        assert not op.serves(q, k, v)
    with FakeTensorMode():
        fake = projected(1, 256, 2, 32)
        assert not op.serves(*fake)
        assert attention.attend(*fake).shape == q.shape
    with monkeypatch.context() as traced:
        traced.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not op.serves(q, k, v)
    monkeypatch.setenv(attention.VARIABLE, "sdpa")
    assert torch.equal(attention.attend(q, k, v), attention._attend_sdpa(q, k, v))
    monkeypatch.setenv("DITI_KERNELS", "reference")
    assert not op.serves(q, k, v)


@needs_compiler
def test_it_is_taken_only_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    only_64 = op.Measured(SLOWER.times | {"sdpa 64": 1.2})
    cases = [(FASTER, 256, 32, True), (SLOWER, 256, 32, False), (op.Measured({}), 256, 32, False)]
    cases += [(only_64, 300, 48, True), (only_64, 300, 32, False), (only_64, 1024, 64, True)]
    cases += [(FASTER, op.MOST_TOKENS + 1, 32, False), (FASTER, 255, 64, False)]
    for found, tokens, channels, pays in cases:
        monkeypatch.setattr(op, "measured", lambda threads, found=found: found)
        op._pays.cache_clear()
        assert op.pays(tokens, channels) is pays


@needs_compiler
def test_the_measurement_takes_turns_and_keeps_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "READINGS", 3)
    lengths = itertools.cycle([length for length in (9.0, 4.0, 2.0, 3.0) for _ in op.WAYS])
    ticks = itertools.count()
    now = 0.0

    def clock() -> float:
        nonlocal now
        if next(ticks) % 2:
            now += next(lengths)
        return now

    assert op.measure(clock) == dict.fromkeys(op.NAMES, 2000.0)


@needs_compiler
def test_miscompiled_attention_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = compiled.SOURCE.read_text()
    for good, bad in (
        ("j < n; j++) largest", "j < 0; j++) largest"),
        ("<< 23", "<< 22"),
        ("/ total", "* total"),
    ):
        assert good in text
        source = tmp_path / "heads.c"
        source.write_text(text.replace(good, bad, 1))
        assert native.load(source, compiled._is_right).functions is None
