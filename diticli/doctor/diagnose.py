"""What `diti doctor` reports: the software and hardware found here, and what this package makes of them.

No heavy import at the top: it has to answer where PyTorch is missing or broken.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diticli.doctor.compile_trial import CompileTrial
from diticli.doctor.finding import Finding

# Package -> what has to be importable of it; diffusers itself loads nothing until asked, a pipeline loads torchvision.
NEEDED = {
    "torch": "torch",
    "diffusers": "diffusers.pipelines.pipeline_utils",
    "accelerate": "accelerate",
    "numpy": "numpy",
    "safetensors": "safetensors.torch",
}
OPTIONAL = {
    "triton": "Without it there are no fused kernels and torch.compile has no GPU code: pip install triton.",
    "xformers": "Used where a trial on this GPU found it faster, or with DITI_ATTENTION=xformers.",
}
BRINGS = {"xformers": "calls PyTorch's own attention kernels; used where a trial on a GPU found it faster"}
OTHER_BUILD = "Install both from one place: pip install --force-reinstall torch torchvision, or remove torchvision."
LOW_DISK_GIB = 5
COMPILE_SECONDS = 8.0
CUDA_COMPILE_SECONDS = 30.0
SLOWEST, IMPORT_SECONDS = "diffusers", 30.0
"""The package whose import takes longest, on two busy cores minutes, and how long it may."""


class _ImportIsSlowError(BaseException):
    """No Exception, so that no module that tries optional packages takes it for a missing one."""


def diagnose(device: str | None = None) -> list[Finding]:
    """All findings for `device` (cpu, cuda, cuda:N; None takes CUDA where there is one).

    Takes the time of importing PyTorch, at most `COMPILE_SECONDS` (on CUDA `CUDA_COMPILE_SECONDS`) beside it, and at
    most `IMPORT_SECONDS` for diffusers.

    Raises:
        DeviceError: for a device that this machine does not have.
    """
    trial = CompileTrial(device, COMPILE_SECONDS)
    try:
        findings = list(_software())
        if not any(f.status == "broken" for f in findings):
            findings += _with_torch(device)
            findings.append(_compilation(trial, _is_cuda(device)))
    finally:
        trial.stop()
    # Last, as an import that is stopped leaves PyTorch's own modules half imported.
    findings.insert(2, _importable(SLOWEST, NEEDED[SLOWEST]))
    return findings + list(_storage())


def _with_torch(name: str | None) -> Iterator[Finding]:
    from diti_kernels.sites import is_measured

    from diticli.doctor.choices import speed
    from diticli.doctor.hardware import hardware
    from diticli.models.device import resolve_device

    device = resolve_device(name)
    yield from hardware()
    yield from speed(device)
    if is_measured(device.type):
        from diticli.doctor.tuning import tuning  # here, as it brings the networks

        yield from tuning(device)


def _is_cuda(name: str | None) -> bool:
    from diticli.models.device import resolve_device

    return resolve_device(name).type == "cuda"


def _compilation(trial: CompileTrial, cuda: bool) -> Finding:
    """On CUDA, where training compiles unless told otherwise, Triton needs a C compiler; on a CPU Inductor C++."""
    if cuda:
        trial.seconds = CUDA_COMPILE_SECONDS
    works, message = trial.result()
    if works:
        return Finding(topic="compile", name="torch.compile", value=message)
    names = ("CC", "cc", "gcc", "clang") if cuda else ("CXX", "g++", "clang++")
    compiler = any(shutil.which(name) for name in (os.environ.get(names[0], names[1]), *names[2:]))
    if cuda:
        if not compiler:
            remedy = "Install a C compiler and Python's headers (apt install gcc python3-dev), or train with "
        else:
            remedy = "Ask again when the machine is less busy, or train with " if works is None else "Train with "
        remedy += "--set compile=false."
    elif not compiler:
        remedy = "Install a C++ compiler (apt install g++), or train without --set compile=true."
    elif works is None:
        remedy = "Ask again when the machine is less busy, or just try --set compile=true."
    else:
        remedy = "Train without --set compile=true."
    return Finding(topic="compile", name="torch.compile", value=message, status="note", remedy=remedy)


def _software() -> Iterator[Finding]:
    yield Finding(topic="software", name="python", value=f"{platform.python_version()} ({sys.executable})")
    for package, module in NEEDED.items():
        if package != SLOWEST:
            yield _importable(package, module)
    for package, remedy in OPTIONAL.items():
        try:
            value = ": ".join([version(package), *([BRINGS[package]] if package in BRINGS else [])])
            yield Finding(topic="software", name=package, value=value)
        except PackageNotFoundError:
            yield Finding(topic="software", name=package, value="not installed", status="note", remedy=remedy)


def _importable(package: str, module: str) -> Finding:
    # Diffusers imports xformers where it is installed, which warns where it finds no CUDA: the table says that.
    log = logging.getLogger("xformers")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _limited(IMPORT_SECONDS if package == SLOWEST else 0.0):
            importlib.import_module(module)
        return Finding(topic="software", name=package, value=version(package))
    except PackageNotFoundError:
        return Finding(topic="software", name=package, value="of unknown version")
    except _ImportIsSlowError:
        value = f"{version(package)}, not tried to the end: its import took longer than {IMPORT_SECONDS:g} s"
        remedy = "Ask again when the machine is less busy."
        return Finding(topic="software", name=package, value=value, status="note", remedy=remedy)
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        text = str(error).strip() or repr(error)
        reason, remedy = text.splitlines()[0], f"Install it anew: pip install --force-reinstall {package}."
        if torchvision_of_another_build(error):
            reason, remedy = text.splitlines()[-1], OTHER_BUILD
        value = f"cannot be imported: {reason}"
        return Finding(topic="software", name=package, value=value, status="broken", remedy=remedy)
    finally:
        log.setLevel(level)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_ImportIsSlowError` in the block after so many seconds; 0, or outside the main thread: never."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _ImportIsSlowError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def torchvision_of_another_build(error: BaseException) -> bool:
    """Whether an import failed because one of PyTorch and torchvision is for the CPU and the other for CUDA."""
    return "operator torchvision::" in str(error)


def _storage() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    value = f"{free:,.1f} GiB free in {here}"
    if not os.access(here, os.W_OK):
        remedy = "Go to a folder that is yours, or name one with --out."
        yield Finding(topic="storage", name="disk", value=f"{here} cannot be written", status="note", remedy=remedy)
    elif free < LOW_DISK_GIB:
        remedy = "A run keeps several copies of its weights: make room, or name another disk with --out."
        yield Finding(topic="storage", name="disk", value=value, status="note", remedy=remedy)
    else:
        yield Finding(topic="storage", name="disk", value=value)
    yield from _hub_cache()


def _hub_cache() -> Iterator[Finding]:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return
    folder = Path(HF_HUB_CACHE)
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if os.access(existing, os.W_OK):
        yield Finding(topic="storage", name="hugging face cache", value=f"{folder} can be written")
        return
    value, remedy = f"{folder} cannot be written", "Set HF_HOME to a folder that is yours."
    yield Finding(topic="storage", name="hugging face cache", value=value, status="note", remedy=remedy)
