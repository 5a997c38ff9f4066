"""The processes that compare together: who does what, waiting for each other, and failing together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace, TracebackType
from typing import Self, TypeVar

import torch
from torch import distributed

from diticli.encoding.team import Team
from diticli.models.device import resolve_device
from diticli.progress import Reporter, SilentReporter
from diticli.training.companions import Companions
from diticli.training.joining import join

_Item = TypeVar("_Item")
_PATIENCE = timedelta(days=7)
"""How long a process waits for work of others that goes on: a failure is reported within seconds by `Companions`."""


class Crew:
    """One process among those that `torchrun` or `accelerate launch` started; alone it does everything.

    As a context it spreads what ends it, see `Companions`.

    Args:
        device: the device asked for; None takes a GPU of this process's own where there is one.
        reporter: of the first process; the others are silent.

    Attributes:
        team: this process among all.
        device: where it computes.
        reporter: what it reports to.

    Raises:
        ConfigError: when the environment's process numbers do not fit together.
        DeviceError: for a device that this machine does not have.
    """

    def __init__(self, device: str | None = None, reporter: Reporter | None = None) -> None:
        self.team = Team.from_environment()
        self.device = resolve_device(self.team.device(device))
        self.reporter = (reporter or SilentReporter()) if self.leads else SilentReporter()
        self._began = False
        self._held = contextlib.ExitStack()

    @property
    def leads(self) -> bool:
        """Whether this process writes what belongs to all."""
        return self.team.rank == 0

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Those of `items` that this process does."""
        return list(items[self.team.rank :: self.team.world])

    def wait(self) -> None:
        """Until all processes are here."""
        if self.team.world > 1:
            distributed.barrier()

    def __enter__(self) -> Self:
        if self.team.world > 1:
            if not distributed.is_initialized():
                # They only wait for one another: gloo does that on any machine, also for several processes on one GPU.
                join(torch.device("cpu"), patience=_PATIENCE)
                self._began = True
            peers = SimpleNamespace(
                process_index=self.team.rank, num_processes=self.team.world, device=torch.device("cpu")
            )
            self._held.enter_context(Companions(peers, self.reporter))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._held.__exit__(kind, error, trace)
        finally:
            if self._began:
                distributed.destroy_process_group()
