"""Checkpoints: safetensors plus JSON, checksummed, written beside and renamed into place.

`checkpoints/step-00001000/` holds `weights`, `ema`, `optimizer` and `totals` (.safetensors) and `state.json`
with the step and the SHA-256 of each file and of itself. The last two are kept.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diticli.errors import CheckpointError
from diticli.files import publish_folder, sha256_of, write_json, write_tensors
from diticli.reading import quoted
from diticli.sealed import read_sealed, sealed

KEEP = 2
MAX_STEP = 10**12
Tensors = dict[str, torch.Tensor]
_TENSOR_FILE = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
_STATE = {"stage": str, "step": int, "sha256": dict}
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """State of a stage after `state["step"]` steps."""

    tensors: dict[str, Tensors]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`, then drop all but the newest two.

    Raises:
        CheckpointError: when it cannot be written; earlier checkpoints stay as they were.
    """
    target = folder / f"step-{checkpoint.state['step']:08d}"

    def fill(beside: Path) -> None:
        sums = {}
        for name, tensors in checkpoint.tensors.items():
            path = beside / f"{name}.safetensors"
            write_tensors(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()})
            sums[path.name] = sha256_of(path)
        write_json(beside / "state.json", sealed({**checkpoint.state, "sha256": sums}))

    try:
        publish_folder(target, fill, replace=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"Cannot write the checkpoint {target}: {error}.",
            remedy="Free some disk space, then run the same command again: it goes on from the previous checkpoint.",
        ) from error
    for old in list_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").is_file())


def drop_other_stages(folder: Path, stage: str) -> None:
    """Remove what another stage left: a run killed between publishing its result and tidying up.

    Left in place, checkpoints of a higher step would outlive the new stage's own.
    """
    for path in list_checkpoints(folder):
        try:
            other = _read_state(path)["stage"] != stage
        except (OSError, ValueError):
            continue  # `load_checkpoint` will name it
        if other:
            shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, verifying every checksum.

    Raises:
        CheckpointError: naming the damaged file.
    """
    remedy = f"Delete {path} to go on from the checkpoint before it."
    try:
        state = _read_state(path)
        tensors = {}
        for name, expected in state["sha256"].items():
            if sha256_of(path / name) != expected:
                raise CheckpointError(f"{path / name} is damaged: its checksum differs.", remedy=remedy)
            tensors[Path(name).stem] = load_file(path / name)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the checkpoint {path}: {error}.", remedy=remedy) from error
    return Checkpoint(tensors, state)


def _read_state(path: Path) -> dict[str, Any]:
    """What `state.json` says, when it names files of its own folder alone.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is damaged.
    """
    try:
        state = read_sealed(path / "state.json")
        whole = all(type(state[key]) is kind for key, kind in _STATE.items())
    except (KeyError, TypeError) as error:
        raise ValueError(f"state.json is damaged ({error!r})") from error
    if not whole:
        raise ValueError("state.json is damaged")
    if not 0 <= state["step"] <= MAX_STEP:
        raise ValueError(f"state.json names the step {quoted(state['step'])}")
    if foreign := [name for name in state["sha256"] if not _TENSOR_FILE.fullmatch(name)]:
        raise ValueError(f"state.json names {quoted(foreign[0])}")
    return state


def not_finite(parts: Mapping[str, Mapping[str, torch.Tensor]]) -> str:
    """Name of the first tensor with a NaN or an infinity, "PART: NAME"; empty when all are finite."""
    for part, tensors in parts.items():
        floats = [(name, value) for name, value in tensors.items() if value.is_floating_point()]
        # One wait for the device per part, not per tensor.
        flags = torch.stack([value.isfinite().all() for _, value in floats]).tolist() if floats else []
        for (name, _), finite in zip(floats, flags, strict=True):
            if not finite:
                return f"{part}: {name}"
    return ""


def check_fits(
    part: str, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, partly: bool = False
) -> None:
    """See that tensors of a file have the names, shapes and types of those that they replace.

    Copying would spread a single number over a whole tensor, and the fused optimizers do not look at shapes at all.

    Args:
        part: name of the file, for the message.
        tensors: from the file.
        expected: what they replace.
        partly: whether some may be missing.

    Raises:
        ValueError: naming the first that differs.
    """
    missing = [] if partly else sorted(expected.keys() - tensors.keys())
    if names := missing or sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"{part} {'lacks' if missing else 'has an unknown'} {quoted(names[0])}")
    for name, value in tensors.items():
        own = expected[name]
        if value.shape != own.shape or value.dtype != own.dtype:
            found, wanted = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (value, own))
            raise ValueError(f"{part}: {name} is {found} where {wanted} belongs")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """Adam's moments as named tensors "INDEX.exp_avg"."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Inverse of `flatten_optimizer`.

    Raises:
        ValueError: when they are not what Adam keeps of these parameters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    expected = {f"{i}.{key}": p for i, p in enumerate(parameters) for key in _MOMENTS}
    expected |= {f"{i}.step": torch.zeros(()) for i in range(len(parameters))}
    check_fits("optimizer", tensors, expected, partly=True)  # what never had a gradient has no moments
    state: dict[int, Tensors] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        if key != "exp_avg" and not bool((value >= 0).all()):
            raise ValueError(f"optimizer: {name} is negative")
        state.setdefault(int(index), {})[key] = _laid_out_as(parameters[int(index)], value)
    if incomplete := [index for index, entry in state.items() if len(entry) != len(_MOMENTS) + 1]:
        raise ValueError(f"optimizer has a part of {incomplete[0]} alone")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value` with the strides of its parameter: a file knows none, and the fused optimizers walk plain memory."""
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def check_identity(checkpoint: Checkpoint, identity: str, path: Path) -> None:
    """Whether the checkpoint at `path` is of the run with this identity.

    Raises:
        CheckpointError: when it is not.
    """
    if checkpoint.state.get("identity") != identity:
        raise CheckpointError(
            f"{path} was written with other settings or other images.",
            remedy="Give the run a new --out, or restore the settings and images it was started with.",
        )
