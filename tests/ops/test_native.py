"""C code of the operations: compiled once, kept for this user alone, and left out where it cannot be had."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diti_kernels import native
from diti_kernels.adaptive_group_norm import compiled_rows, eager

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
SOURCE = "int answer(void) { return 42; }\n"


def right(_: object) -> bool:
    return True


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C file, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    path = tmp_path / "answer.c"
    path.write_text(SOURCE)
    return path


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "diti" / "native").iterdir())


@needs_compiler
def test_a_source_is_compiled_once_and_kept(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.load(source, right)
    assert found.functions is not None
    assert found.functions.answer() == 42
    (library,) = kept(tmp_path)
    assert stat.S_IMODE(library.parent.stat().st_mode) & 0o022 == 0
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.load(source, right).functions is not None


@needs_compiler
def test_another_source_header_or_processor_is_another_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.load(source, right)
    source.write_text(SOURCE.replace("42", "43"))
    native.load(source, right)
    monkeypatch.setattr(native, "processor", lambda: "another one")
    native.load(source, right)
    monkeypatch.setattr(native, "_headers", lambda: [b"another one"])
    native.load(source, right)
    assert len(kept(tmp_path)) == 4


def _no_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", str(folder / "empty"))
    return "there is no C compiler"


def _broken_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "answer.c").write_text("this is no C\n")
    return "failed"


def _shared_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shared = folder / "cache" / "diti" / "native"
    shared.mkdir(parents=True)
    shared.chmod(0o777)
    return "is not the user's own"


def _link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "elsewhere").mkdir()
    (folder / "cache" / "diti").mkdir(parents=True)
    (folder / "cache" / "diti" / "native").symlink_to(folder / "elsewhere")
    return "is not the user's own"


def _file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "cache").write_text("")
    return "cannot be compiled"


def _slow_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    compiler = folder / "slow-cc"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(native, "SECONDS", 0.2)
    return "took more than"


@needs_compiler
@pytest.mark.parametrize(
    "spoil", [_no_compiler, _broken_source, _shared_folder, _link, _file_in_the_way, _slow_compiler]
)
def test_without_it_the_reason_is_told(
    spoil: Callable[[Path, pytest.MonkeyPatch], str],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = spoil(tmp_path, monkeypatch)
    found = native.load(source, right)
    assert found.functions is None
    assert reason in found.reason
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("spoil", [_shared_folder, _link])
def test_libraries_lie_where_nobody_else_writes(
    spoil: Callable[[Path, pytest.MonkeyPatch], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    reason = spoil(tmp_path, monkeypatch)
    with pytest.raises(PermissionError, match=reason):
        native.own_folder()


@needs_compiler
def test_wrong_results_are_not_used(source: Path) -> None:
    found = native.load(source, lambda _: False)
    assert found == (None, "what the compiler made of it gives wrong results")


@needs_compiler
def test_a_miscompiled_norm_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = compiled_rows.SOURCE.read_text()
    for good, bad in (("first_mean /=", "second_mean /="), ("sigmoid * (1.0f + u", "sigmoid * (1.1f + u")):
        assert good in text
        source = tmp_path / "rows.c"
        source.write_text(text.replace(good, bad, 1))
        assert native.load(source, compiled_rows._is_right).functions is None


@pytest.mark.parametrize(("setting", "runs"), [("auto", True), ("reference", False)])
def test_the_variable_decides(setting: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_KERNELS", setting)
    monkeypatch.setattr(compiled_rows, "library", lambda: native.Library(os, "for the test"))  # type: ignore[arg-type]
    assert compiled_rows.serves("cpu", torch.float32) is runs
    assert not compiled_rows.serves("cpu", torch.bfloat16)
    assert not compiled_rows.serves("cuda", torch.float32)


@pytest.mark.skipif(compiled_rows.why().functions is None, reason="no C compiler")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "skip", "groups"),
    [((3, 37, 24), 0, 8), ((2, 300, 64), 32, 32), ((1, 129, 96), 40, 8), ((5, 1, 512), 512, 32), ((1, 70, 7), 0, 1)],
)
def test_rows_are_those_of_plain_pytorch(shape: tuple[int, ...], skip: int, groups: int, threads: int) -> None:
    B, N, C = *shape[:2], shape[2] + skip
    x, scale, shift, grad = torch.randn(shape), torch.randn(B, C), torch.randn(B, C), torch.randn(B, N, C)
    other = torch.randn(B, N, skip) if skip else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled_rows.forward_rows(x, other, scale, shift, groups, 1e-5, True)
        wanted = eager.forward_rows(x, other, scale, shift, groups, 1e-5, True)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        for wants in ((True, True), (True, False), (False, True), (False, False)):
            rest = (x, other, scale, shift, *wanted[1:], groups, True, (wants[0], wants[1] and skip > 0))
            theirs = eager.backward_rows(grad, *rest)
            torch.testing.assert_close(compiled_rows.backward_rows(grad, *rest), theirs, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(compiled_rows.why().functions is None, reason="no C compiler")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    x = torch.randn(1, 40, 16)
    x[0, 5, 3] = bad
    out, _, _ = compiled_rows.forward_rows(x, None, torch.ones(1, 16), torch.zeros(1, 16), 4, 1e-5, True)
    assert not out[..., :4].isfinite().any()
    assert out[..., 4:].isfinite().all()


@pytest.mark.skipif(compiled_rows.why().functions is None, reason="no C compiler")
def test_silu_far_from_zero() -> None:
    """Beyond 80 the exponential is held, where silu has reached its ends."""
    shift = torch.tensor([[-1e4, -200.0, -90.0, -20.0, 20.0, 90.0, 200.0, 1e4]])
    out, _, _ = compiled_rows.forward_rows(torch.zeros(1, 3, 8), None, torch.ones(1, 8), shift, 8, 1e-5, True)
    torch.testing.assert_close(out, torch.nn.functional.silu(shift).expand(1, 3, 8), rtol=1e-6, atol=1e-30)
