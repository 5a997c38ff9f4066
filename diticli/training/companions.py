"""Messages between the processes of one run, beside gradients: that one was asked to stop, or that one failed.

A process that waits for a failed one in a collective learns nothing: on a GPU it waits for minutes, on a CPU it
sees a closed connection. So a failure is written where the processes met (their key-value store), and a thread of
each looks there.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import distributed
from torch.distributed import distributed_c10d

from diticli.errors import ConfigError, DiTiError, OtherProcessError
from diticli.models.transfer import Download, upload
from diticli.progress import Reporter

_FAILURE, _HEARD = "diti/failure", "diti/heard/{rank}"
_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 5.0
"""How long a process may take to end by itself after another failed."""
_HEARING_SECONDS = 30.0
"""How long a process that failed stays for others to hear why: one that lives looks every half second, if it is given
the time."""
_STATUS = 69
_LOST = "Another process of this run ended without a word."


class Companions:
    """The processes of a run, seen from one of them; alone it does nothing.

    As a context it spreads what ends it: an error of one process becomes an `OtherProcessError` of the others, or
    their end where they wait for a device that will not answer.

    Args:
        accelerator: knows rank and number of processes.
        reporter: told why, before a process that waits in vain is ended.

    Raises:
        OtherProcessError: on leaving, in place of an error that another process caused.
    """

    def __init__(self, accelerator: Accelerator, reporter: Reporter) -> None:
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.device, self.reporter = accelerator.device, reporter
        self._votes: list[Callable[[], torch.Tensor]] = []
        self._over = threading.Event()
        self._heard = ""
        self._exchanged: dict[str, int] = {}
        if self.world > 1:
            self._store = distributed_c10d._get_default_store()

    def agree_to_stop(self, number: int) -> int:
        """The largest `number` that any process gave at the call before this one; every process gets the same.

        One call late, so that no step waits for the answer. A process alone gets its own at once.

        Args:
            number: of the signal that asks this process to stop, 0 for none.
        """
        if self.world == 1:
            return number
        self._votes.append(self._vote(number))
        return int(self._votes.pop(0)()) if len(self._votes) > 1 else 0

    def check_same(self, what: str, number: int) -> None:
        """Make sure that all processes have the same `number` of `what`.

        Raises:
            ConfigError: when they do not.
        """
        if self.world == 1:
            return
        most, least = (int(self._vote(value)()) for value in (number, -number))
        if most != -least:
            raise ConfigError(
                f"The processes of this run see different {what}: {-least} and {most}, process {self.rank} {number}.",
                remedy="All of them need the same run directory and the same images, on a file system they share.",
            )

    def exchange(self, what: str, value: Any) -> list[Any]:
        """The `value` (fit for JSON) that each process gave under the name `what`, by rank; all must ask alike."""
        if self.world == 1:
            return [value]
        number = self._exchanged[what] = self._exchanged.get(what, 0) + 1
        keys = [f"diti/{what}/{number}/{rank}" for rank in range(self.world)]
        self._store.set(keys[self.rank], json.dumps(value))
        while not self._store.check(keys):  # not `wait`: that would keep `_watch` from the store
            time.sleep(0.01)
        return [json.loads(self._store.get(key)) for key in keys]

    def __enter__(self) -> Self:
        if self.world > 1:
            threading.Thread(target=self._watch, name="companions", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self.world == 1:
            return
        if error is None:
            while self._votes:
                self._votes.pop()()
        elif isinstance(error, Exception):
            self._spread(error)

    def _vote(self, number: int) -> Callable[[], torch.Tensor]:
        """Begin a vote for the largest number; what is returned waits for its result, and for nothing after it."""
        ballot = upload(torch.tensor([number]), self.device)
        work = distributed.all_reduce(ballot, distributed.ReduceOp.MAX, async_op=True)
        if self.device.type == "cuda":
            work.wait()  # the stream, not this process
            return Download(ballot).wait

        def result() -> torch.Tensor:
            work.wait()
            return ballot

        return result

    def _spread(self, error: Exception) -> None:
        """Tell the others, and wait until they heard it; or find out that they told it first."""
        try:
            mine = _LOST if _connection_lost(error) else self._confession(error)
            if not (first := self._heard):
                first = self._store.compare_set(_FAILURE, "", mine).decode()
                self._store.set(_HEARD.format(rank=self.rank), "")
        except distributed.DistError:  # the process that kept the store
            mine, first = "", _LOST
        told_here = first == mine != _LOST
        if told_here or (first != _LOST and self.rank == 0):  # process 0 keeps the store
            self._wait_for_listeners()
        if not told_here and not isinstance(error, DiTiError):
            raise OtherProcessError(
                first, remedy="Remove the cause, then run the same command again: it goes on from the last checkpoint."
            ) from error

    def _confession(self, error: Exception) -> str:
        text = error.message if isinstance(error, DiTiError) else f"{type(error).__name__}: {error}"
        return f"Process {self.rank} of {self.world} failed: {text}"

    def _wait_for_listeners(self) -> None:
        end = time.monotonic() + _HEARING_SECONDS
        keys = [_HEARD.format(rank=rank) for rank in range(self.world) if rank != self.rank]
        with contextlib.suppress(distributed.DistError):  # whoever kept the store heard it and is gone
            while not self._store.check(keys) and time.monotonic() < end:
                time.sleep(0.05)

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._look()
            if self._heard and not self._over.wait(_GRACE_SECONDS):
                self.reporter.warn(f"{self._heard} This process waits in vain and ends.")
                os._exit(_STATUS)

    def _look(self) -> None:
        """Remember a failure before saying that it was heard: the process that failed may have kept the store."""
        try:
            if self._store.check([_FAILURE]):
                self._heard = self._store.get(_FAILURE).decode()
                self._store.set(_HEARD.format(rank=self.rank), "")
        except distributed.DistError:
            self._heard = self._heard or _LOST


def _connection_lost(error: Exception) -> bool:
    """Whether an error is nothing but the end of another process, as seen by a collective."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer"))
