"""Faults put into real runs: nothing is lost, and what went wrong is said. `python -m benchmarks.faults` counts more.

On a CPU in float32 a resumed run is the undisturbed run, bit for bit.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from faults import encoding, injections, training
from faults.processes import run
from faults.settings import Bench, train_command

Fault = Callable[[Bench, random.Random], None]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


FAULTS: dict[str, Fault] = {
    "training killed": training.kill,
    "training killed again": training.kill,
    "training killed once more": training.kill,
    "training asked to stop by Ctrl-C": partial(training.ask, number=signal.SIGINT),
    "training asked to stop by SIGTERM": partial(training.ask, number=signal.SIGTERM),
    "disk full at a checkpoint": partial(training.fill_disk, size=20_000),
    "disk full at the journal": partial(training.fill_disk, size=300),
    "disk full at the model": training.fill_disk_at_the_end,
    "checkpoint truncated": partial(training.damage, how="truncated"),
    "checkpoint with a bit turned": partial(training.damage, how="bit"),
    "an image changes": partial(training.change_images, how="changes"),
    "an image comes": partial(training.change_images, how="comes"),
    "an image goes": partial(training.change_images, how="goes"),
    "an image vanishes during the run": training.lose_image,
    "a decoder is killed": training.kill_decoder,
    "the clock goes back": training.turn_back_clock,
    "a second run": training.start_twice,
    "two runs at once": training.start_two_at_once,
    "training into a read-only folder": training.refuse_folder,
    "encoding killed": encoding.kill,
    "encoding killed again": encoding.kill,
    "encoding killed once more": encoding.kill,
    "encoding asked to stop by Ctrl-C": partial(encoding.ask, number=signal.SIGINT),
    "encoding asked to stop by SIGTERM": partial(encoding.ask, number=signal.SIGTERM),
    "disk full at the features": encoding.fill_disk,
    "encoding into a read-only folder": encoding.refuse_folder,
    "hard names": encoding.hard_names,
}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(bench: Bench, name: str) -> None:
    FAULTS[name](bench, random.Random(name))


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """300 steps; the first 100 fill caches."""
    log = tmp_path / "memory"
    more = ("base.images=8", "features.images=2400", "checkpoint_every=50", "log_every=10")
    ended = run(train_command(tmp_path / "run", *more), tmp_path / "log", inject=partial(injections.watch_memory, log))
    assert ended.status == 0, ended.text
    kilobytes = [int(line) for line in log.read_text().split()]
    assert len(kilobytes) == 30
    assert max(kilobytes[20:]) - max(kilobytes[10:20]) < 4096, kilobytes
