"""Encoding by real processes that die, and memory over many small batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from faults.processes import start_world
from test_encode import FakeImages, channel_means
from test_feature_shards import BAD, META, check

from diticli.distributed import Rank
from diticli.encoding.encode import encode_images
from diticli.features.manifest import MANIFEST
from diticli.features.read import read_features
from diticli.features.shard_writer import RECORDS
from diticli.progress import SilentReporter

MEMORY_IMAGES = 5000


def worker(folder: Path, kill_rank: int, kill_call: int) -> None:
    """What each process of `torchrun` does; one of them is killed at its n-th batch."""
    rank, calls = Rank.from_environment(), 0

    def encode(images):
        nonlocal calls
        calls += 1
        if rank.index == kill_rank and calls == kill_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return channel_means(images)

    options = {"meta": META, "shard_size": 3, "batch_size": 2, "workers": 0, "checkpoint_seconds": 0.0}
    encode_images(encode, FakeImages(23, BAD), folder, rank=rank, **options)


def launch(folder: Path, *, kill_rank: int, kill_call: int) -> int:
    """Two processes under torchrun."""
    code = (
        f"import test_encode_processes as t, pathlib; t.worker(pathlib.Path({str(folder)!r}), {kill_rank}, {kill_call})"
    )
    script = folder.parent / "worker.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, timeout=300, check=False
    ).returncode


def test_a_killed_process_costs_the_others_nothing_and_a_restart_finishes(tmp_path: Path) -> None:
    folder = tmp_path / "feats"
    assert launch(folder, kill_rank=1, kill_call=4) != 0
    assert not (folder / MANIFEST).exists()
    assert (folder / RECORDS / "000001.json").exists(), "what the killed process had done stays"
    worker(folder, -1, 0)
    check(folder)


def test_two_processes_make_the_folder_of_one(tmp_path: Path) -> None:
    both = {rank: partial(worker, tmp_path / "two", -1, 0) for rank in range(2)}
    ended = [command.wait() for command in start_world(["--version"], 2, tmp_path, inject=both)]
    assert [e.status for e in ended] == [0, 0], ended[0].text + ended[1].text
    check(tmp_path / "two")
    worker(tmp_path / "one", -1, 0)
    for path in (tmp_path / "one").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


class Resident(SilentReporter):
    """Resident memory in bytes after every batch."""

    def __init__(self) -> None:
        self.samples: list[int] = []

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


class Pictures(FakeImages):
    """Of 16 pixels, each with memory of its own."""

    resolution = 16

    def load(self, index: int) -> np.ndarray:
        return np.full((16, 16, 3), index % 256, np.uint8)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_over_many_small_batches(tmp_path: Path) -> None:
    """A leak of a batch's images, 6 KB, would take 7.7 MB; one of its features and names about 3 MB.

    `python -m benchmarks.scaling --sizes 50000` is the same over 50,000 images.
    """
    resident = Resident()
    encode_images(
        lambda images: images.float().mean(dim=3).flatten(1),  # [B, 48]
        Pictures(MEMORY_IMAGES),
        tmp_path,
        meta=META.__class__(files=()),
        shard_size=500,
        batch_size=4,
        workers=2,
        reporter=resident,
    )
    assert len(resident.samples) == MEMORY_IMAGES // 4
    early, late = resident.samples[250:500], resident.samples[-250:]
    assert np.median(late) - np.median(early) < 2**21
    assert len(read_features(tmp_path).values) == MEMORY_IMAGES
