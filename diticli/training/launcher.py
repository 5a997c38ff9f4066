"""Ignore variables by which `accelerate launch` would change a training: the run's own settings decide."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from diticli.distributed import Rank

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


@contextlib.contextmanager
def launcher_hidden(rank: Rank) -> Iterator[None]:
    """Within the block the environment holds this process's numbers as torchrun gives them, and nothing of Accelerate.

    What changes a result comes from the settings of a run alone.

    Args:
        rank: this process; alone it has no numbers.
    """
    before = dict(os.environ)
    mpi = ("OMPI_COMM_WORLD_", "PMI_", "MPI_LOCAL", "MV2_COMM_WORLD_")
    for name in before:
        foreign = name.startswith("ACCELERATE_") and name not in _HARMLESS
        if foreign or name.startswith(mpi) or (rank.count == 1 and name in _NUMBERS):
            del os.environ[name]
    if rank.count > 1:
        os.environ |= {"RANK": str(rank.index), "WORLD_SIZE": str(rank.count), "LOCAL_RANK": str(rank.local)}
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
