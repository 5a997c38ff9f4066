"""Quick starts: commands that are made when they are asked for, and torch imported without the garbage collector."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import cleandoc
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from diticli.memory import keep_freed_memory

Maker = Callable[[], Any]
"""Makes a command as Typer runs it."""


class _Commands(Mapping[str, Any]):
    """Name -> command, made at the first look."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self._makers = makers
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __contains__(self, name: object) -> bool:
        return name in self._makers


class LazyGroup(TyperGroup):
    """A group whose commands are those of `MAKERS`, in that order."""

    MAKERS: ClassVar[Mapping[str, Maker]]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(self.MAKERS)  # type: ignore[assignment]

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, for help and completion; Typer would make the commands."""
        return list(self.commands)


def paragraphs(docstring: str | None) -> str:
    """A help text whose lines end where the terminal's do, not where the source's did."""
    return "\n\n".join(" ".join(part.split()) for part in cleandoc(docstring or "").split("\n\n"))


def command(name: str, run: Callable[..., Any], **settings: Any) -> Any:
    """A command of a function; `settings` as of `typer.Typer.command`."""
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    said = settings.pop("help", None) or run.__doc__
    single.command(name, help=paragraphs(said), **settings)(run)
    return typer.main.get_command(single)


def imported(name: str) -> Maker:
    """Makes the command of `diticli.commands.NAME`: of its function of that name, or of its group `app`."""

    def make() -> Any:
        module = import_module(f"diticli.commands.{name}")
        found = getattr(module, "app", None) or getattr(module, name)
        return typer.main.get_command(found) if isinstance(found, typer.Typer) else command(name, found)

    return make


def import_torch() -> None:
    """Import torch while the garbage collector rests, and take what is there by then from its lists for good.

    It finds nothing to collect there, looks again and again all the same, and once more when the process ends: together
    0.3 s of the 2 s of encoding one picture. Memory that is freed is kept for the next tensors: otherwise networks take
    1.1 to 1.2 times as long on a CPU.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()
    keep_freed_memory()
