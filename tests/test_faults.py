"""Faults put into real runs: nothing is lost, and what went wrong is said. `python -m benchmarks.faults` counts more.

On a CPU in float32 a resumed run is the undisturbed run, bit for bit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from faults import injections
from faults.catalogue import FAULTS, Fault
from faults.processes import LIMIT, run
from faults.settings import Bench, encode_command, train_command
from faults.training import check_run

from diticli.errors import ConfigError
from diticli.files import FolderLock
from diticli.training import stopping


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(
    ("fault", "number"),
    [pytest.param(fault, i, id=f"{fault.name} {i}") for fault in FAULTS for i in range(fault.tries_in_test)],
)
def test_nothing_is_lost(bench: Bench, fault: Fault, number: int) -> None:
    fault.put(bench, random.Random(f"{fault.name} {number}"))


def test_a_lock_ends_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").write_text("process 1 on a machine that lost power")
    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with (
            pytest.raises(ConfigError, match=f"Another run is writing into .*process {os.getpid()}"),
            FolderLock(tmp_path),
        ):
            pass
        assert (tmp_path / ".lock").exists(), "a refusal takes nothing away"
    assert not (tmp_path / ".lock").exists()
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    with FolderLock(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
    assert not (tmp_path / "new" / "run").exists(), "nothing came of it"


def _no_locks(*arguments: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(("world", "patience"), [("1", stopping.REPEAT_SECONDS), ("2", stopping.LAUNCHED_SECONDS)])
def test_signals_close_together_are_one_request(monkeypatch: pytest.MonkeyPatch, world: str, patience: float) -> None:
    """A launcher passes on what a terminal sent to all; a later signal does not wait for the step."""
    now, before = [100.0], signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with stopping.StopRequest() as stop:
        assert stop.now() == 0
        signal.raise_signal(signal.SIGTERM)
        now[0] += patience
        signal.raise_signal(signal.SIGINT)
        assert stop.now() == signal.SIGTERM
        now[0] += 0.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """KiB -> a real file system of that size; again for another size of the same."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[Path] = []

    def resize(kilobytes: int) -> Path:
        option = f"{'remount,' if mounted else ''}size={kilobytes}k"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        mounted.append(folder)
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_small_disk_fills_up(bench: Bench, small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """A file system of its own: a checkpoint and two at most fit, later two and a half, then all."""
    assert bench.run
    for kilobytes, kept in ((1000, 1), (2000, 2), (20_000, 0)):
        out = small_disk(kilobytes) / "run"
        ended = run(train_command(out), tmp_path / f"{kilobytes}.log")
        assert ended.status == (74 if kept else 0), ended.text
        assert len(list((out / "checkpoints").glob("*"))) == (kept or 1), "of a finished run the last one"
        assert ("No space left on device" in ended.text) == bool(kept)
    check_run(bench, out)
    for kilobytes in (4, 16, 10_000):
        features = small_disk(kilobytes + 3000) / "features.npy"
        (features.parent / "ballast").write_bytes(bytes(2**10 * 3000 - _used(features.parent)))
        ended = run(encode_command(bench.faces, features, bench.run), tmp_path / "encode.log")
        assert ended.status == (0 if kilobytes > 100 else 65), ended.text
    assert features.read_bytes() == bench.features.read_bytes()


def _used(folder: Path) -> int:
    """Bytes of a file system in use, without its ballast."""
    (folder / "ballast").unlink(missing_ok=True)
    status = os.statvfs(folder)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_memory_does_not_grow(tmp_path: Path) -> None:
    """300 steps; the first 100 fill caches."""
    log = tmp_path / "memory"
    more = ("base.images=8", "features.images=2400", "checkpoint_every=50", "log_every=10")
    inject = partial(injections.watch_memory, log)
    ended = run(train_command(tmp_path / "run", *more), tmp_path / "log", inject=inject, seconds=4 * LIMIT)
    assert ended.status == 0, ended.text
    kilobytes = [int(line) for line in log.read_text().split()]
    assert len(kilobytes) >= 30
    kilobytes = kilobytes[-30:]
    assert max(kilobytes[20:]) - max(kilobytes[10:20]) < 4096, kilobytes
