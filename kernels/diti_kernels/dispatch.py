"""The one place that chooses between the Triton kernels and plain PyTorch.

`DITI_KERNELS=auto|triton|reference` (default auto). Which is faster depends on the GPU and on how
an operation runs, so `auto` is the reference, but for sites where a measurement says otherwise (`diti_kernels.sites`).
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Backend = Literal["triton", "reference"]
VARIABLE = "DITI_KERNELS"
CHOICES = ("auto", "triton", "reference")
# Every launch names it: Triton's own default is on up to 3.9, where it warns, and off from 3.10.
LAUNCH_OPTIONS = {"enable_fp_fusion": True}


class Decision(NamedTuple):
    """What runs and why.

    Attributes:
        backend: "triton" or "reference".
        reason: half a sentence for people, e.g. "DITI_KERNELS=reference".
    """

    backend: Backend
    reason: str


def backend_for(tensor: torch.Tensor) -> Backend:
    """Which implementation serves operations on `tensor`; logs the answer and its reason once.

    Under `torch.compile` the answer is taken when the graph is traced and stays with that graph.

    Raises:
        ValueError: when DITI_KERNELS is none of auto, triton, reference.
        RuntimeError: when DITI_KERNELS=triton and Triton cannot run on this tensor's device.
    """
    return _decide_and_log(tensor.device.type)


def is_forced() -> bool:
    """Whether DITI_KERNELS names an implementation, so that no other may stand in where it is faster.

    Raises:
        ValueError: when it is none of auto, triton, reference.
    """
    return _setting() != "auto"


def decide(device_type: str) -> Decision:
    """The decision for a device type ("cpu", "cuda", ...), with its reason and without logging it.

    Raises:
        ValueError: when DITI_KERNELS is none of auto, triton, reference.
        RuntimeError: when DITI_KERNELS=triton and Triton cannot run on this device.
    """
    setting = _setting()
    if setting == "triton":
        _require_triton(device_type)
    return _decision(setting, device_type)


@functools.cache
def _decision(setting: str, device_type: str) -> Decision:
    unless = ", unless this GPU was seen to be faster by Triton" if (setting, device_type) == ("auto", "cuda") else ""
    return Decision("triton" if setting == "triton" else "reference", f"{VARIABLE}={setting}{unless}")


def _setting() -> str:
    setting = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if setting not in CHOICES:
        raise ValueError(f"{VARIABLE}={setting[:200]!r} is unknown. Set it to auto, triton or reference.")
    return setting


Function = TypeVar("Function", bound=Callable[..., object])


def constant_in_graphs(function: Function) -> Function:
    """Let Dynamo call `function` while it traces and keep the result, as what it reads (the environment) is no tensor.

    `torch.compiler.assume_constant_result` does the same, but imports Dynamo, which imports Triton.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010 (mypy knows no such attribute)
    return function


@constant_in_graphs
def _decide_and_log(device_type: str) -> Backend:
    decision = decide(device_type)
    _log_once(device_type, decision)
    return decision.backend


@functools.cache
def _log_once(device_type: str, decision: Decision) -> None:
    logger.info("diti_kernels on %s: %s (%s)", device_type, decision.backend, decision.reason)


def _require_triton(device_type: str) -> None:
    """Raise unless Triton can run on `device_type` in this process."""
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError(
            f"{VARIABLE}=triton, but Triton is not installed. Install it (pip install triton) or set "
            f"{VARIABLE}=reference."
        )
    if device_type != "cuda" and not (device_type == "cpu" and triton_is_interpreted()):
        raise RuntimeError(
            f"{VARIABLE}=triton, but Triton cannot run on a {device_type} tensor. Move it to a CUDA device, "
            f"set {VARIABLE}=reference, or, on the CPU and for tests only, set TRITON_INTERPRET=1 before "
            "Triton is imported."
        )


def triton_is_interpreted() -> bool:
    """Whether Triton's functions run in its interpreter. Imports Triton.

    TRITON_INTERPRET is read when a function is decorated, so Triton's own functions tell the truth where the
    variable, set too late, would not.
    """
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    return not isinstance(tl.max, JITFunction)
