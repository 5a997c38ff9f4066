"""Which of several processes this one is, as `torchrun`, `accelerate launch` and `mpirun` say in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diticli.errors import ConfigError

_VARIABLES = {
    "world": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
}
"""By field of `Team`, those of torchrun first, then Open MPI's, Intel MPI's and MVAPICH's."""
_REMEDY = "Start the processes by torchrun or accelerate launch; to run as one process, unset {names}."


@dataclass(frozen=True, kw_only=True)
class Team:
    """One process among `world` that share work without talking to one another.

    Attributes:
        rank: of this process, 0 to world - 1.
        world: number of processes, on all machines.
        local_rank: of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local_rank < 0:
            raise ConfigError(
                f"Process {self.rank} ({self.local_rank} on its machine) of {self.world} cannot be.",
                remedy="Set RANK, LOCAL_RANK and WORLD_SIZE as torchrun does, or none of them.",
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Team:
        """From RANK, LOCAL_RANK and WORLD_SIZE, or what an MPI calls them; alone without a size, or with a size of 1.

        Raises:
            ConfigError: when they are no numbers, do not fit together, or do not say which process this is.
        """
        given = {
            field: name
            for field, names in _VARIABLES.items()
            if (name := next((name for name in names if environment.get(name)), None))
        }
        if "world" not in given:
            return cls()
        said = ", ".join(f"{name}={environment[name]}" for name in given.values())
        remedy = _REMEDY.format(names=", ".join(given.values()))
        if not all(environment[name].isdecimal() for name in given.values()):
            raise ConfigError(f"These are no process numbers: {said}.", remedy=remedy)
        fields = {field: int(environment[name]) for field, name in given.items()}
        if fields["world"] > 1 and "rank" not in fields:
            raise ConfigError(
                f"{said} says that there are {fields['world']} processes, and nothing says which one this is.",
                remedy=remedy,
            )
        return cls(**fields) if fields["world"] != 1 else cls()

    def device(self, name: str | None) -> str | None:
        """The device asked for, else this process's own GPU where the machine has several processes and GPUs."""
        gpus = torch.cuda.device_count() if name in (None, "auto", "cuda") and self.world > 1 else 0
        return f"cuda:{self.local_rank % gpus}" if gpus else name
