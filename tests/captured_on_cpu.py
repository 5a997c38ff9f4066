"""CUDA graphs without a GPU: operators are kept with the very tensors of the capture, and run on these again."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diticli.models import compiled
from diticli.models.compiled import StepGraph


class Tape(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`, and for the context that captures it.

    As on a GPU, a replay runs no Python of what was captured: it knows tensors by where they lie, and numbers of the
    host as they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def kept(self) -> list[tuple[Any, Any, Any, Any]]:
        """What a replay runs."""
        return self.calls

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, out in self.kept():
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Forgetful(Tape):
    """Keeps what was made of the weights when it was captured, such as their copies in half precision."""

    def kept(self) -> list[tuple[Any, Any, Any, Any]]:
        return [call for call in self.calls if not any(isinstance(arg, torch.nn.Parameter) for arg in call[1])]


def fake_gpu(monkeypatch: pytest.MonkeyPatch, kind: type[Tape] = Tape) -> list[Tape]:
    """Let training steps be captured on the CPU; returns the graphs that are made."""
    tapes: list[Tape] = []

    def new() -> Tape:
        tapes.append(kind())
        return tapes[-1]

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "CUDAGraph": new,
        "graph": lambda tape, **how: tape,
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "mem_get_info": lambda device: (60, 100),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(StepGraph, "_sides", {})
    monkeypatch.setattr(compiled, "CAPTURED_DEVICES", ("cpu",))
    monkeypatch.setenv("DITI_KERNELS", "reference")  # norms in C are no operators
    return tapes
