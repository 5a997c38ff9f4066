"""Faults put into real runs: nothing is lost, and what went wrong is said. `python -m benchmarks.faults` counts more.

On a CPU in float32 a resumed run is the undisturbed run, bit for bit.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from faults import injections
from faults.catalogue import FAULTS, Fault
from faults.processes import run
from faults.settings import Bench, train_command


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    ("fault", "number"),
    [pytest.param(fault, i, id=f"{fault.name} {i}") for fault in FAULTS for i in range(fault.tries_in_test)],
)
def test_nothing_is_lost(bench: Bench, fault: Fault, number: int) -> None:
    fault.put(bench, random.Random(f"{fault.name} {number}"))


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """300 steps; the first 100 fill caches."""
    log = tmp_path / "memory"
    more = ("base.images=8", "features.images=2400", "checkpoint_every=50", "log_every=10")
    ended = run(train_command(tmp_path / "run", *more), tmp_path / "log", inject=partial(injections.watch_memory, log))
    assert ended.status == 0, ended.text
    kilobytes = [int(line) for line in log.read_text().split()]
    assert len(kilobytes) == 30
    assert max(kilobytes[20:]) - max(kilobytes[10:20]) < 4096, kilobytes
