"""Device and precision: what was asked for, or the best this machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from diticli.config import Precision
from diticli.errors import DeviceError


def resolve_device(name: str | None) -> torch.device:
    """`cpu`, `cuda`, `cuda:N`, or auto/None: CUDA where there is one.

    Raises:
        DeviceError: for a device that this machine does not have.
    """
    if name in (None, "", "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(str(name))
    except RuntimeError as error:
        raise DeviceError(f"There is no device {name!r}.", remedy="Use cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"{name} is not supported.", remedy="Use cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("PyTorch sees no CUDA GPU here.", remedy="Use --device cpu, or install a CUDA build.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"There is no {device}, only {torch.cuda.device_count()} GPU(s).", remedy="Count from 0.")
    return device


def resolve_precision(name: Precision, device: torch.device) -> Precision:
    """`fp32` or `bf16`; auto takes bf16 where the hardware computes in it.

    Raises:
        DeviceError: when bf16 is asked for on a GPU without it.
    """
    if device.type == "cuda":
        with on_device(device):  # PyTorch asks the current GPU
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if name == "bf16" and not has_bf16:
            raise DeviceError("This GPU does not compute in bf16.", remedy="Use --precision fp32.")
    else:
        has_bf16 = _cpu_has_bf16()
    if name == "auto":
        return "bf16" if has_bf16 else "fp32"
    return name


@contextlib.contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a GPU that is named by number the current one within the block; nothing for other devices."""
    with torch.cuda.device(device) if device.type == "cuda" and device.index is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def gpu_convolutions(device: torch.device, dtype: torch.dtype, *, timed: bool = False) -> Iterator[None]:
    """How a GPU computes convolutions within the block; nothing changes on a CPU.

    Args:
        device: where they are computed.
        dtype: float32 then is float32. PyTorch's default is TF32, whose factors have 10 bits of mantissa.
        timed: cuDNN times its algorithms when a shape first comes and takes the fastest, which is worth it where the
            same shapes come many times.
    """
    cudnn, changed = torch.backends.cudnn, {}
    exact = device.type == "cuda" and dtype == torch.float32
    if exact and cudnn.conv.fp32_precision == "tf32":  # type: ignore[attr-defined]
        changed["allow_tf32"] = False
    if device.type == "cuda" and timed and not cudnn.benchmark:
        changed["benchmark"] = True
    try:
        for name, value in changed.items():
            setattr(cudnn, name, value)
        yield
    finally:
        for name, value in changed.items():
            setattr(cudnn, name, not value)


@contextlib.contextmanager
def global_generators_kept(device: torch.device) -> Iterator[None]:
    """Give the global random generators back as they were: of the CPU, and of the GPUs when they are in use."""
    gpus = device.type == "cuda" or torch.cuda.is_initialized()  # `torch.manual_seed` seeds all of them
    with torch.random.fork_rng(range(torch.cuda.device_count()) if gpus else ()):
        yield


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies in bf16 (about twice as fast for these networks); elsewhere it is slow."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
