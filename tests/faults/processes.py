"""`diti` commands as real processes that start in a blink: a fork server imports the libraries once for all."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

LIMIT = 300.0
"""Seconds after which a command counts as hanging: it needs two, and many on a busy machine."""
Injection = Callable[[], None]
"""What happens in the process before its command begins."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("diticli.training.run", "diticli.encoding.encode", "diticli.tuning.tune", "diticli.models.load"),
        *("diticli.commands.app", "diticli.commands.train", "diticli.commands.encode", "pydantic", "torch._dynamo"),
    ]
)


@dataclass
class Command:
    """A command under way."""

    process: ForkServerProcess
    log: Path
    started: float = field(default_factory=time.monotonic)

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def wait(self, seconds: float = LIMIT) -> Ended:
        """How it ended.

        Raises:
            TimeoutError: when it hangs; it is killed.
        """
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds:g} s:\n{self.text}")
        return Ended(self.process.exitcode, self.text, time.monotonic() - self.started)

    def wait_until(self, happened: Callable[[], bool], seconds: float = LIMIT) -> None:
        """Until something is seen, or the command has ended."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and not happened():
            if time.monotonic() > end:
                raise TimeoutError(self.text)
            time.sleep(0.005)

    @property
    def text(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass(frozen=True)
class Ended:
    """Exit status (negative: the signal), output of both streams, and duration."""

    status: int
    text: str
    seconds: float


def start(
    arguments: Sequence[object], log: Path, *, inject: Injection | None = None, env: Mapping[str, str] | None = None
) -> Command:
    """Begin `diti ARGUMENTS`; `inject` must be a module-level function or a partial of one."""
    texts = [str(argument) for argument in arguments]
    process = _context.Process(target=_run, args=(texts, str(log), inject, dict(env or {})))
    process.start()
    return Command(process, log)


def run(arguments: Sequence[object], log: Path, *, inject: Injection | None = None, seconds: float = LIMIT) -> Ended:
    """`diti ARGUMENTS` to its end."""
    return start(arguments, log, inject=inject).wait(seconds)


def start_world(
    arguments: Sequence[object], world: int, logs: Path, *, inject: Mapping[int, Injection] | None = None
) -> list[Command]:
    """The same command as `world` processes that find each other, as `torchrun` starts them.

    Args:
        arguments: of `diti`.
        world: how many.
        logs: folder of their outputs.
        inject: by rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [
        start(
            arguments,
            logs / f"rank-{rank}.log",
            inject=(inject or {}).get(rank),
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]


def run_world(arguments: Sequence[object], world: int, logs: Path) -> list[Ended]:
    """The same command as `world` processes, to their ends."""
    return [command.wait() for command in start_world(arguments, world, logs)]


def _run(arguments: list[str], log: str, inject: Injection | None, env: dict[str, str]) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    gc.freeze()  # what the server imported is no garbage: going through it took a quarter of a training's time
    os.fsync = lambda _: None  # see conftest.py
    os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started these tests in the background ignores it
    multiprocessing.set_start_method("fork", force=True)  # as in a command that nobody's fork server started
    import torch

    from diticli.commands.app import app

    torch.set_num_threads(1)
    if inject is not None:
        inject()
    app(arguments, prog_name="diti")
