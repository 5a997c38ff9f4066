"""What `diti doctor` reports on GPUs, processor and threads."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from diticli.doctor.finding import Finding


def hardware() -> Iterator[Finding]:
    """Every GPU, or why there is none, then the processor and the threads on it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        yield _gpu(index)
    if not count:
        yield _why_no_gpu([str(w.message) for w in caught])
    yield _processor()
    yield _threads()


def _gpu(index: int) -> Finding:
    """Asking for its memory makes a context there, which a GPU that is full or in exclusive use refuses."""
    properties = torch.cuda.get_device_properties(index)
    what = f"{properties.name}, {{}}, compute capability {properties.major}.{properties.minor}"
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        value = what.format(f"cannot be used now: {(str(error).strip() or repr(error)).splitlines()[0]}")
        remedy = "See nvidia-smi for who uses it, or take another one: --device cuda:N."
        return Finding(topic="hardware", name=f"gpu {index}", value=value, status="note", remedy=remedy)
    memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return Finding(topic="hardware", name=f"gpu {index}", value=what.format(memory))


def _why_no_gpu(complaints: list[str]) -> Finding:
    has_driver = Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None
    if not has_driver:
        return Finding(topic="hardware", name="gpu", value="none: this machine has no NVIDIA driver")
    if torch.version.cuda is None:
        value, remedy = "none: PyTorch is a CPU build", "Install the CUDA build, see https://pytorch.org/get-started."
    else:
        value = f"none: {complaints[0].splitlines()[0] if complaints else 'PyTorch sees no CUDA device'}"
        remedy = f"Check nvidia-smi, CUDA_VISIBLE_DEVICES, and that the driver knows CUDA {torch.version.cuda}."
    return Finding(topic="hardware", name="gpu", value=value, status="note", remedy=remedy)


def _processor() -> Finding:
    flags = _cpu_flags()
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    bf16 = "multiplies in bf16" if "avx512_bf16" in flags else "does not multiply in bf16"
    return Finding(topic="hardware", name="cpu", value=f"{', '.join(units) or platform.machine()}: {bf16}")


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    value = f"{threads} for {cores} core{'s' * (cores != 1)}"
    if threads == cores:
        return Finding(topic="hardware", name="threads", value=value)
    what = "Threads wait for each other" if threads > cores else "Cores stay idle"
    remedy = f"{what}: set OMP_NUM_THREADS={cores} unless this is meant."
    return Finding(topic="hardware", name="threads", value=value, status="note", remedy=remedy)
