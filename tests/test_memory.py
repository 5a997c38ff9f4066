"""A GPU that fails or is full, a torchvision that does not fit, in every command: one line, a remedy, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import TINY
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from diticli.commands.app import app
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.memory import device_failure
from diticli.models.frozen import FrozenPair
from diticli.training.loop import StageTrainer

ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later"
TORCHVISION = "Failed to import diffusers.pipelines.pipeline_utils:\noperator torchvision::nms does not exist"
FAILURES: dict[str, tuple[Callable[[], Exception], str, str]] = {
    "GPU failed": (
        lambda: torch.AcceleratorError(ILLEGAL),
        "The GPU failed (CUDA error: an illegal memory access was encountered)",
        "CUDA_LAUNCH_BLOCKING=1",
    ),
    "GPU full, as a library says it": (
        lambda: torch.AcceleratorError("CUDA error: out of memory"),
        "ut of memory",
        "--batch-size",
    ),
    "GPU full": (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB."), "ut of memory", "--batch-size"),
    "torchvision for CUDA beside PyTorch for the CPU": (
        lambda: RuntimeError(TORCHVISION),
        "torchvision is of another build than PyTorch",
        "pip install --force-reinstall torch torchvision",
    ),
}
COMMANDS = [*sorted(command.callback.__name__ for command in app.registered_commands if command.callback), "edit"]


def check(result: Result, said: str, remedy: str) -> None:
    assert result.exit_code not in (0, 1), result.output
    assert isinstance(result.exception, SystemExit)
    error, arrow, *_ = result.output.splitlines()[-2:]
    assert error.startswith("Error: ")
    assert said in error
    assert arrow.startswith("  -> ")
    assert remedy in arrow
    assert "Traceback" not in result.output


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_it_in_a_line(command: str, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, said, remedy = FAILURES[failure]

    def fail(self: TyperGroup, context: Any) -> None:
        raise error()

    monkeypatch.setattr(TyperGroup, "invoke", fail)
    check(CliRunner().invoke(app, [command]), said, remedy)


def raising(monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.AcceleratorError(ILLEGAL)

    monkeypatch.setattr(kind, method, fail)


@pytest.mark.parametrize(
    ("kind", "method", "arguments"),
    [
        (StageTrainer, "train_step", ("train", "--data", "faces", "--out", "run", *TINY)),
        (StageTrainer, "train_step", ("train", "--data", "faces", "--out", "run", "--dry-run", *TINY)),
        (BatchEncoder, "__call__", ("encode", "faces:4", "--model", "shipped", "--out", "feats.npy")),
        (FrozenPair, "estimate", ("edit", "faces:0", "faces:1", "--model", "shipped", "--out", "edit.png")),
    ],
    ids=["train", "dry run", "encode", "edit"],
)
def test_where_the_work_is_done(
    kind: type, method: str, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing between the GPU and the command takes the failure for something else."""
    monkeypatch.chdir(tmp_path)
    raising(monkeypatch, kind, method)
    check(CliRunner().invoke(app, list(arguments)), *FAILURES["GPU failed"][1:])


def test_other_errors_are_left_alone() -> None:
    assert device_failure(RuntimeError("size mismatch")) is None
    assert device_failure(ValueError("CUDA error")) is None
