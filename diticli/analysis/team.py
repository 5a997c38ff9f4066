"""Which of several processes this one is, as `torchrun` and `accelerate launch` say in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from diticli.errors import ConfigError


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
        """From RANK, LOCAL_RANK and WORLD_SIZE; alone without them.

        Raises:
            ConfigError: when they are no numbers, or do not fit together.
        """
        keys = {"rank": "RANK", "local_rank": "LOCAL_RANK", "world": "WORLD_SIZE"}
        given = {field: environment[key] for field, key in keys.items() if environment.get(key)}
        if "world" not in given:
            return cls()
        if not all(text.isdecimal() for text in given.values()):
            raise ConfigError(
                f"These are no process numbers: {given}.", remedy="Set RANK, LOCAL_RANK and WORLD_SIZE to numbers."
            )
        return cls(**{field: int(text) for field, text in given.items()})

    def device(self, name: str | None) -> str | None:
        """The device asked for, else this process's own GPU where the machine has several processes and GPUs."""
        gpus = torch.cuda.device_count() if name in (None, "auto", "cuda") and self.world > 1 else 0
        return f"cuda:{self.local_rank % gpus}" if gpus else name
