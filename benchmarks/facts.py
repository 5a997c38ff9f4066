"""Where and with what a measurement was taken, and how fast that device multiplies."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from diticli.files import write_json
from diticli.training.rundir import versions

# Dense matrix throughput in TFLOP/s from the vendors' data sheets, by part of the device's name.
DATASHEET = {
    "H200": {"bf16": 989.0, "tf32": 495.0, "fp32": 67.0},
    "H100 NVL": {"bf16": 835.0, "tf32": 417.0, "fp32": 60.0},
    "H100 PCIe": {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100": {"bf16": 989.0, "tf32": 495.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
}

SETTINGS = ("DITI_", "GLIBC_", "OMP_", "TRITON_")
"""Beginnings of environment variables that change what is measured."""


def collect(device: torch.device) -> dict[str, Any]:
    """Date, command, device, threads and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *_without_places(sys.argv[1:])]),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load_average_at_start": os.getloadavg()[0],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
        "versions": versions(),
    }


def _without_places(arguments: Sequence[str]) -> list[str]:
    """The arguments, with PATH for where the official checkout lies on this machine."""
    before = ["", *arguments]
    return ["PATH" if last == "--official" else this for last, this in zip(before, arguments, strict=False)]


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores"


Clock = Literal["wall", "processor"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""Seconds by the clock on the wall, and of all threads of this process on its processors."""


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits for the device."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


@functools.cache
def matmul_peak(device: torch.device, precision: str, clock: Clock = "wall") -> float:
    """FLOP/s of the largest of ten square matrix products, in "bf16", "tf32" or "fp32"."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    wait, best, before = synchroniser(device), 0.0, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        for _ in range(10):
            wait()
            started = CLOCKS[clock]()
            a @ b
            wait()
            best = max(best, 2 * size**3 / (CLOCKS[clock]() - started))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return best


def datasheet_peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the vendor states for dense products; None for a device not listed."""
    name = device_name(device)
    found = next((rates for part, rates in DATASHEET.items() if all(word in name for word in part.split())), None)
    return None if found is None else found[precision] * 1e12


def write(path: Path, result: dict[str, Any]) -> None:
    """JSON, put in place whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result, indent=1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
