"""Memory that a process keeps for its next tensors."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from diticli.memory import keep_freed_memory

CODE = """
import resource, torch
from diticli.memory import keep_freed_memory
assert not {keep} or keep_freed_memory()
def step():
    for _ in range(20):
        torch.ones(10_000_000)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_not_cleared_anew() -> None:
    faults = {}
    for keep in (False, True):
        run = subprocess.run(
            [sys.executable, "-c", CODE.format(keep=keep)], check=True, capture_output=True, text=True, timeout=120
        )
        faults[keep] = int(run.stdout)
    assert faults[True] * 20 < faults[False]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is False
    keep_freed_memory.cache_clear()
