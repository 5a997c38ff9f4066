"""Faults put into a process before its command begins. Module-level functions: the fork server calls them by name."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .processes import LIMIT, Injection


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes: writing fails in its middle, as on a full disk.

    The log of the command is a file as well: it needs 1,000.
    """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def fill_disk_at(step: int, size: int) -> None:
    """`limit_files` from a step of stage 2 on."""
    at_step(step, lambda: limit_files(size))


def signal_at(step: int, number: int, stage: str = "features") -> None:
    """This process gets a signal after step `step` of a stage."""
    at_step(step, lambda: os.kill(os.getpid(), number), stage)


def fail_at(step: int, text: str) -> None:
    """Step `step` of stage 2 raises."""

    def fail() -> None:
        raise ValueError(text)

    at_step(step, fail)


def hang_at(step: int) -> None:
    """Step `step` of stage 2 says so and does not return, as where a device waits for a process that is gone."""

    def hang() -> None:
        print(f"step {step} is reached", flush=True)
        time.sleep(10 * LIMIT)

    at_step(step, hang)


def turn_clock(seconds: float) -> None:
    """The wall clock jumps at every look, ahead or (negative) back."""
    began, looks = time.time(), iter(range(10**9))
    time.time = lambda: began + seconds * next(looks)  # type: ignore[assignment]


def kill_decoder_at(step: int) -> None:
    """A process that decodes images gets a SIGKILL after step `step`, as from a kernel out of memory."""

    def kill() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    at_step(step, kill, "base")


def delete_at(step: int, path: Path) -> None:
    """A file vanishes after step `step`."""
    at_step(step, path.unlink, "base")


def fill_disk_when_publishing(size: int) -> None:
    """`limit_files` once the finished model is about to be written."""
    from diticli.training.rundir import RunDirectory

    publish = RunDirectory.publish

    def limited(self: RunDirectory, target: Path, save: Callable[[Path], None]) -> None:
        if target == self.model:
            limit_files(size)
        publish(self, target, save)

    RunDirectory.publish = limited  # type: ignore[method-assign]


def delete_once_listed(path: Path) -> None:
    """A file vanishes after the images were listed and before any is encoded."""
    from diticli.encoding import encode

    begin = encode._begin

    def vanished(*arguments: Any) -> None:
        path.unlink()
        begin(*arguments)

    encode._begin = vanished


def save_every_batch() -> None:
    """Encoded rows count after every batch, not every few seconds."""
    _after_batch(lambda writer, count: writer.checkpoint())


def signal_at_batch(batch: int, number: int) -> None:
    """This process gets a signal after so many batches were encoded."""
    _after_batch(lambda writer, count: count == batch and os.kill(os.getpid(), number))


def both(first: Injection, second: Injection) -> None:
    """Two faults."""
    first()
    second()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Injection | None]:
    """A folder without permission to write; for the superuser, who needs none, what makes it so in a command."""
    folder.mkdir()
    folder.chmod(0o555)
    try:
        yield refuse_writing if os.getuid() == 0 else None
    finally:
        folder.chmod(0o755)


def refuse_writing() -> None:
    """Opening and making files below `read-only` fails."""
    real_open, real_mkdir = os.open, os.mkdir

    def refused(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and "/read-only/" in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real_open(path, flags, *arguments, **options)

    def no_mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if "/read-only/" in f"{path}/":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        real_mkdir(path, *arguments, **options)

    os.open, os.mkdir = refused, no_mkdir  # type: ignore[assignment]


def watch_memory(log: Path, every: int = 10) -> None:
    """Append the resident memory in KiB after every so many steps of stage 2."""
    count = iter(range(10**9))

    def look() -> None:
        if next(count) % every == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with log.open("a") as file:
                file.write(f"{pages * resource.getpagesize() // 1024}\n")

    at_step(None, look)


def _after_batch(happen: Callable[[Any, int], object]) -> None:
    from diticli.features.writer import FeatureWriter

    append, count = FeatureWriter.append, iter(range(1, 10**9))

    def appended(self: FeatureWriter, *arguments: Any, **options: Any) -> None:
        append(self, *arguments, **options)
        happen(self, next(count))

    FeatureWriter.append = appended  # type: ignore[method-assign]


def at_step(step: int | None, happen: Callable[[], object], stage: str = "features") -> None:
    """Call `happen` after a step of a stage; None: after each."""
    from diticli.training.loop import StageTrainer

    train_step = StageTrainer.train_step

    def stepped(self: StageTrainer, inputs: Any) -> None:
        train_step(self, inputs)
        if self.stage.name == stage and step in (None, self.step):
            happen()

    StageTrainer.train_step = stepped  # type: ignore[method-assign]
