"""Several processes that work on one job: which one this is, how they meet, and how they fail together.

    rank = join(device)                       # wait for all others that torchrun started
    mine = images[rank.local_slice(batch)]    # this process's part of a global batch
    with PeerMonitor(rank, device, reporter): # an error of one process ends all, each with the reason
        ...

A process that waits for a failed one in a collective learns nothing: on a GPU it waits for minutes, on a CPU it
sees a closed connection. So a failure is written where the processes met (their key-value store), and a thread of
each looks there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from diticli.errors import ConfigError, DiTiError, OtherProcessError
from diticli.models.transfer import Download, upload
from diticli.progress import Reporter
from diticli.reading import quoted, shortened

if TYPE_CHECKING:
    from accelerate import Accelerator

JOIN_SECONDS = 25
"""How long a process waits for the others to start; the variable DITI_JOIN_SECONDS overrides it."""
_VARIABLES = {
    "count": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "index": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "local": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
}
"""By field of `Rank`: the names of torchrun, Open MPI, Intel MPI and MVAPICH."""
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")

_FAILURE_KEY, _ACK_KEY = "diti/failure", "diti/failure-seen/{rank}"
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0
"""How long a process may take to end by itself after another failed."""
_ACK_SECONDS = 30.0
"""How long a process that failed waits until the others have seen why; a living one looks every half second, if it is
given the time."""
_EXIT_STATUS = 69
_NO_MESSAGE = "Another process of this run ended without an error message."
_WORK_TIMEOUT = timedelta(days=7)
"""Of processes that wait for each other's work: `PeerMonitor` reports a failure within seconds."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Which of several processes this one is.

    Attributes:
        index: of this process, 0 to count - 1; process 0 writes what belongs to all.
        count: number of processes, on all machines.
        local: index of this process on its machine.
    """

    index: int = 0
    count: int = 1
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count or self.local < 0:
            raise ConfigError(
                f"Process {self.index} ({self.local} on its machine) of {self.count} cannot be.",
                remedy="Set RANK, LOCAL_RANK and WORLD_SIZE as torchrun does, or none of them.",
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Rank:
        """From RANK, LOCAL_RANK and WORLD_SIZE, or what an MPI calls them; alone without a size, or with a size of 1.

        Raises:
            ConfigError: when they are no numbers, do not fit together, or do not say which process this is.
        """
        given = {
            field: name
            for field, names in _VARIABLES.items()
            if (name := next((name for name in names if environment.get(name)), None))
        }
        if "count" not in given:
            return cls()
        found = ", ".join(f"{name}={environment[name]}" for name in given.values())
        remedy = "Start the processes by torchrun or accelerate launch; to run as one process, unset "
        remedy += f"{', '.join(given.values())}."
        if not all(_is_number(environment[name]) for name in given.values()):
            raise ConfigError(f"These are no process numbers: {shortened(found)}.", remedy=remedy)
        fields = {field: int(environment[name]) for field, name in given.items()}
        if fields["count"] > 1 and "index" not in fields:
            raise ConfigError(
                f"{found} says that there are {fields['count']} processes, and nothing says which one this is.",
                remedy=remedy,
            )
        return cls(**fields) if fields["count"] != 1 else cls()

    @classmethod
    def from_accelerator(cls, accelerator: Accelerator) -> Rank:
        """As Accelerate counts."""
        return cls(
            index=accelerator.process_index, count=accelerator.num_processes, local=accelerator.local_process_index
        )

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports what belongs to all."""
        return self.index == 0

    def local_slice(self, batch: int) -> slice:
        """Positions of a global batch that belong to this process; `batch` must be divisible by `count`."""
        local = batch // self.count
        return slice(self.index * local, (self.index + 1) * local)

    def device(self, name: str | None) -> str | None:
        """The device asked for, else this process's own GPU where the machine has several processes and GPUs."""
        gpus = torch.cuda.device_count() if name in (None, "auto", "cuda") and self.count > 1 else 0
        return f"cuda:{self.local % gpus}" if gpus else name


def join(device: torch.device, *, timeout: timedelta | None = None) -> Rank:
    """Meet the other processes that a launcher started; alone, or where a group is there already, nothing happens.

    Args:
        device: where this process computes; a GPU without a number stands for that of its local rank.
        timeout: of collectives, None: PyTorch's.

    Raises:
        ConfigError: when the environment does not say where the processes meet, or which one this is.
        OtherProcessError: when they did not all come within `JOIN_SECONDS`.
    """
    rank = Rank.from_environment()
    if rank.count == 1 or distributed.is_initialized():
        return rank
    if missing := [name for name in _ADDRESS if not os.environ.get(name)]:
        raise ConfigError(
            f"{rank.count} processes were started, and {' and '.join(missing)} does not say where they meet.",
            remedy="Start them by torchrun or accelerate launch, or unset WORLD_SIZE (or the MPI's variables) "
            "to run as one process.",
        )
    port = os.environ["MASTER_PORT"]
    if not _is_number(port) or int(port) >= 2**16:
        raise ConfigError(f"MASTER_PORT={shortened(port)} is no port.", remedy="Set it to a number, as torchrun does.")
    store = _meet(rank)
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else rank.local % torch.cuda.device_count())
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=distributed.PrefixStore("default_pg", store),
        rank=rank.index,
        world_size=rank.count,
        timeout=timeout,
    )
    return rank


@contextlib.contextmanager
def sharing_work(reporter: Reporter) -> Iterator[PeerMonitor]:
    """Processes that each do a part and only wait for each other, joined and watched for the length of the block.

    gloo does that on any machine, also for several processes on one GPU.

    Raises:
        ConfigError: as `join`.
        OtherProcessError: as `join` and `PeerMonitor`.
    """
    cpu, joined_before = torch.device("cpu"), distributed.is_initialized()
    try:
        with PeerMonitor(join(cpu, timeout=_WORK_TIMEOUT), cpu, reporter) as peers:
            yield peers
    finally:
        if distributed.is_initialized() and not joined_before:
            distributed.destroy_process_group()


class PeerMonitor:
    """Messages between the processes of a job besides gradients: failures, stops, checks; one process alone sends none.

    As a context it spreads what ends it: an error of one process becomes an `OtherProcessError` of the others, or
    their end where they wait for a device that will not answer.

    Args:
        rank: this process among all, which have joined.
        device: where votes are counted: that of the process group.
        reporter: receives the reason before a process that waits in vain is ended.

    Raises:
        OtherProcessError: on leaving, in place of an error that another process caused.
    """

    def __init__(self, rank: Rank, device: torch.device, reporter: Reporter) -> None:
        self.rank, self.device, self.reporter = rank, device, reporter
        self._votes: list[Callable[[], torch.Tensor]] = []
        self._ended = threading.Event()
        self._failure = ""
        self._gathered: dict[str, int] = {}
        if rank.count > 1:
            self._store = distributed_c10d._get_default_store()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.rank.count > 1:
            distributed.barrier()

    def agree_to_stop(self, number: int) -> int:
        """The largest `number` that any process gave at the call before this one; every process gets the same.

        One call late, so that no step waits for the answer. A process alone gets its own at once.

        Args:
            number: of the signal that asks this process to stop, 0 for none.
        """
        if self.rank.count == 1:
            return number
        self._votes.append(self._vote(number))
        return int(self._votes.pop(0)()) if len(self._votes) > 1 else 0

    def check_same(self, what: str, number: int) -> None:
        """Make sure that all processes have the same `number` of `what`.

        Raises:
            ConfigError: when they do not.
        """
        if self.rank.count == 1:
            return
        most, least = (int(self._vote(value)()) for value in (number, -number))
        if most != -least:
            raise ConfigError(
                f"The processes of this run see different {what}: {-least} and {most}, "
                f"process {self.rank.index} {number}.",
                remedy="All of them need the same run directory and the same images, on a file system they share.",
            )

    def gather(self, what: str, value: Any) -> list[Any]:
        """The `value` (fit for JSON) that each process gave under the name `what`, by rank; all must call it."""
        if self.rank.count == 1:
            return [value]
        number = self._gathered[what] = self._gathered.get(what, 0) + 1
        keys = [f"diti/{what}/{number}/{index}" for index in range(self.rank.count)]
        self._store.set(keys[self.rank.index], json.dumps(value))
        while not self._store.check(keys):  # not `wait`: that would keep `_watch` from the store
            time.sleep(0.01)
        return [json.loads(self._store.get(key)) for key in keys]

    def __enter__(self) -> Self:
        if self.rank.count > 1:
            threading.Thread(target=self._watch, name="peer monitor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self.rank.count == 1:
            return
        if error is None:
            while self._votes:
                self._votes.pop()()
        elif isinstance(error, Exception):
            self._broadcast_failure(error)

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

    def _broadcast_failure(self, error: Exception) -> None:
        """Write the error for the others and wait until they saw it; or find that another process failed first."""
        try:
            mine = _NO_MESSAGE if _connection_lost(error) else self._failure_message(error)
            if not (first := self._failure):
                first = self._store.compare_set(_FAILURE_KEY, "", mine).decode()
                self._store.set(_ACK_KEY.format(rank=self.rank.index), "")
        except distributed.DistError:  # the process that kept the store
            mine, first = "", _NO_MESSAGE
        failed_here = first == mine != _NO_MESSAGE
        if failed_here or (first != _NO_MESSAGE and self.rank.is_main):  # process 0 keeps the store
            self._wait_for_acks()
        if not failed_here and not isinstance(error, DiTiError):
            raise OtherProcessError(
                first, remedy="Remove the cause, then run the same command again: it goes on from the last checkpoint."
            ) from error

    def _failure_message(self, error: Exception) -> str:
        text = error.message if isinstance(error, DiTiError) else f"{type(error).__name__}: {error}"
        return f"Process {self.rank.index} of {self.rank.count} failed: {text}"

    def _wait_for_acks(self) -> None:
        end = time.monotonic() + _ACK_SECONDS
        keys = [_ACK_KEY.format(rank=index) for index in range(self.rank.count) if index != self.rank.index]
        with contextlib.suppress(distributed.DistError):  # whoever kept the store saw it and is gone
            while not self._store.check(keys) and time.monotonic() < end:
                time.sleep(0.05)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            self._poll()
            if self._failure and not self._ended.wait(_GRACE_SECONDS):
                self.reporter.warn(f"{self._failure} This process waits in vain and ends.")
                os._exit(_EXIT_STATUS)

    def _poll(self) -> None:
        """Remember a failure before acknowledging it: the process that failed may have kept the store."""
        try:
            if self._store.check([_FAILURE_KEY]):
                self._failure = self._store.get(_FAILURE_KEY).decode()
                self._store.set(_ACK_KEY.format(rank=self.rank.index), "")
        except distributed.DistError:
            self._failure = self._failure or _NO_MESSAGE


def _connection_lost(error: Exception) -> bool:
    """Whether an error is nothing but the end of another process, as seen by a collective."""
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "Connection closed by peer"))


def _meet(rank: Rank) -> distributed.Store:
    """The store of all processes, once all of them are there."""
    seconds = _join_seconds()
    found: list[distributed.Store] = []
    failed: list[Exception] = []

    def meet() -> None:
        try:
            waiting = timedelta(seconds=seconds)
            numbers = {"rank": rank.index, "world_size": rank.count}
            store, _, _ = next(distributed.rendezvous("env://", **numbers, timeout=waiting))
            # A restart by torchrun meets in the same store.
            keys = f"diti/joined/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
            store.set(f"{keys}{rank.index}", "")
            store.wait([f"{keys}{index}" for index in range(rank.count)], waiting)
            store.set_timeout(distributed.default_pg_timeout)
            found.append(store)
        except Exception as error:
            failed.append(error)

    # In a thread: what answers at the address may be no store, and a socket waits without an end.
    thread = threading.Thread(target=meet, name="join", daemon=True)
    thread.start()
    thread.join(seconds + 2)
    if thread.is_alive():  # at the end of the process it must not be inside PyTorch
        _hang_up(int(os.environ["MASTER_PORT"]))
        thread.join(2)
    if found:
        return found[0]
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    text = str(failed[0]).strip().splitlines()[0][:200] if failed else f"no answer within {seconds} s"
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        raise OtherProcessError(
            f"Process {rank.index} of {rank.count} cannot open {place}: the port is in use.",
            remedy="Choose another port (torchrun --master-port), or end what uses it.",
        )
    raise OtherProcessError(
        f"Process {rank.index} of {rank.count} did not meet all others at {place} ({text}).",
        remedy="See what the other processes say. Processes that start more slowly need DITI_JOIN_SECONDS "
        f"(now {seconds}).",
    ) from (failed[0] if failed else None)


def _hang_up(port: int) -> None:
    """Shut down this process's connections to the port where the processes meet, so that whoever waits there fails."""
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as connection:
            if connection.getpeername()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)


def _is_number(text: str) -> bool:
    """Whether a variable holds a whole number of a few digits."""
    return text.isdecimal() and text.isascii() and len(text) <= 9


def _join_seconds() -> int:
    text = os.environ.get("DITI_JOIN_SECONDS", "") or str(JOIN_SECONDS)
    if not _is_number(text) or not 1 <= int(text) <= 999_999:
        raise ConfigError(
            f"DITI_JOIN_SECONDS={quoted(text)} is no number of seconds.", remedy="Set a whole number from 1 to 999999."
        )
    return int(text)
