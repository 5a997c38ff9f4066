"""How the processes of one run find each other, or all end with the reason; and what their launcher may not change."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta

import torch
from torch import distributed

from diticli.encoding.team import Team
from diticli.errors import ConfigError, OtherProcessError

JOIN_SECONDS = 25
"""How long a process waits for the others to start; DITI_JOIN_SECONDS says otherwise."""
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_HARMLESS = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE")
_CHANGES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1",),
    "ACCELERATE_MIXED_PRECISION": ("no",),
    "ACCELERATE_DOWNCAST_BF16": ("no",),
    "ACCELERATE_DYNAMO_BACKEND": ("no",),
    "ACCELERATE_USE_CPU": (),
    "ACCELERATE_USE_DEEPSPEED": (),
    "ACCELERATE_USE_FSDP": (),
    "ACCELERATE_USE_MEGATRON_LM": (),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (),
    "ACCELERATE_USE_SAGEMAKER": (),
    "ACCELERATE_TORCH_DEVICE": (),
}
"""Variables of Accelerate that would change a training, and values that would not (beside an empty one and false)."""


def join(device: torch.device, *, patience: timedelta | None = None) -> Team:
    """Meet the other processes that a launcher started; alone, or where a group is there already, nothing happens.

    Args:
        device: where this process computes; a GPU without a number stands for that of its local rank.
        patience: of collectives, None: PyTorch's.

    Raises:
        ConfigError: when the environment does not say where the processes meet, or which one this is.
        OtherProcessError: when they did not all come within `JOIN_SECONDS`.
    """
    team = Team.from_environment()
    if team.world == 1 or distributed.is_initialized():
        return team
    if missing := [name for name in _ADDRESS if not os.environ.get(name)]:
        raise ConfigError(
            f"{team.world} processes were started, and {' and '.join(missing)} does not say where they meet.",
            remedy="Start them by torchrun or accelerate launch, or unset WORLD_SIZE (or the MPI's variables) "
            "to run as one process.",
        )
    if not os.environ["MASTER_PORT"].isdecimal():
        raise ConfigError(
            f"MASTER_PORT={os.environ['MASTER_PORT']} is no port.", remedy="Set it to a number, as torchrun does."
        )
    store = _meet(team)
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else team.local_rank % torch.cuda.device_count())
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=distributed.PrefixStore("default_pg", store),
        rank=team.rank,
        world_size=team.world,
        timeout=patience,
    )
    return team


def _meet(team: Team) -> distributed.Store:
    """The store of all processes, when all of them came."""
    seconds = _join_seconds()
    found: list[distributed.Store] = []
    failed: list[Exception] = []

    def meet() -> None:
        try:
            waiting = timedelta(seconds=seconds)
            store, _, _ = next(distributed.rendezvous("env://", rank=team.rank, world_size=team.world, timeout=waiting))
            # A restart by torchrun meets in the same store.
            keys = f"diti/joined/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
            store.set(f"{keys}{team.rank}", "")
            store.wait([f"{keys}{rank}" for rank in range(team.world)], waiting)
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
            f"Process {team.rank} of {team.world} cannot open {place}: the port is in use.",
            remedy="Choose another port (torchrun --master-port), or end what uses it.",
        )
    raise OtherProcessError(
        f"Process {team.rank} of {team.world} did not meet all others at {place} ({text}).",
        remedy="See what the other processes say. Processes that start more slowly need DITI_JOIN_SECONDS "
        f"(now {seconds}).",
    ) from (failed[0] if failed else None)


def _hang_up(port: int) -> None:
    """Shut down this process's connections to the port where the processes meet, so that whoever waits there fails."""
    for descriptor in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(descriptor))) as connection:
            if connection.getpeername()[1] == port:
                connection.shutdown(socket.SHUT_RDWR)


def _join_seconds() -> int:
    text = os.environ.get("DITI_JOIN_SECONDS", "") or str(JOIN_SECONDS)
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"DITI_JOIN_SECONDS={text} is no number of seconds.", remedy="Set a whole number from 1.")
    return int(text)


@contextlib.contextmanager
def launcher_hidden(team: Team) -> Iterator[None]:
    """Within the block the environment holds this process's numbers as torchrun gives them, and nothing of Accelerate.

    What changes a result comes from the settings of a run alone.

    Args:
        team: this process; alone it has no numbers.
    """
    before = dict(os.environ)
    mpi = ("OMPI_COMM_WORLD_", "PMI_", "MPI_LOCAL", "MV2_COMM_WORLD_")
    for name in before:
        foreign = name.startswith("ACCELERATE_") and name not in _HARMLESS
        if foreign or name.startswith(mpi) or (team.world == 1 and name in _NUMBERS):
            del os.environ[name]
    if team.world > 1:
        os.environ |= {"RANK": str(team.rank), "WORLD_SIZE": str(team.world), "LOCAL_RANK": str(team.local_rank)}
    try:
        yield
    finally:
        for name in before.keys() | {"RANK", "WORLD_SIZE", "LOCAL_RANK"}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def ignored_variables(device: str, precision: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Variables of Accelerate that ask for another training than the settings do, as "NAME=value".

    Args:
        device: of the run.
        precision: of the run, "bf16" or "no".
        environment: of this process.
    """
    same = {
        "ACCELERATE_MIXED_PRECISION": (precision,),
        "ACCELERATE_USE_CPU": ("true", "1", "yes") if device == "cpu" else (),
        "ACCELERATE_TORCH_DEVICE": (device,),
    }
    neutral = {name: (*values, *same.get(name, ()), "", "false", "0") for name, values in _CHANGES.items()}
    return [
        f"{name}={environment[name]}"
        for name in sorted(neutral)
        if name in environment and environment[name].lower() not in neutral[name]
    ]
