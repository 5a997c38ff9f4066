"""The sweep of versions: its commands are valid today, and a version that never ends counts as one that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from benchmarks.experiments import versions
from benchmarks.experiments.versions import COMMANDS, ROOT, SMALLEST, TESTS
from diticli.settings import build_config


def test_the_tiny_run_is_valid() -> None:
    config = build_config("faces32", assignments=tuple(SMALLEST))
    assert config.chunks.count == 4
    assert set(COMMANDS) == {"--help", "train", "encode", "probe", "edit"}


def test_the_tests_of_each_dependency_exist() -> None:
    names = {canonicalize_name(requirement.name) for requirement in versions.dependencies()}
    assert set(TESTS) <= names | {"xformers", "triton"}  # which two are for one kind of machine
    for tests in TESTS.values():
        for test in tests.split():
            path, _, function = test.partition("::")
            assert f"def {function}" in (ROOT / "tests" / path).read_text()


def test_passed_failed_and_skipped_tests_are_counted(tmp_path: Path) -> None:
    own = tmp_path / "test_own.py"
    lines = ["import pytest", "def test_a(): pass", "def test_b(): raise KeyError('no')"]
    own.write_text("\n".join([*lines, "@pytest.mark.skip", "def test_c(): pass"]))
    counts, seen = versions.test(Path(sys.executable), str(own))
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert "KeyError: 'no'" in seen


def test_what_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("pytest", timeout)

    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(versions.Failure, match="not finished after 3600 s"):
        versions.step("diti train", Path(sys.executable), [], tmp_path)
