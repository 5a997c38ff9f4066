"""C sources compiled once for this machine's processor, and loaded without PyTorch's headers.

A source takes a second to compile. The library is kept in `~/.cache/diti/native` (`$XDG_CACHE_HOME`), under a name
that says source, compiler, options and processor. Where there is no compiler, the folder is not the user's own, or the
result is wrong, callers take plain PyTorch instead, and `Library.reason` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from diti_kernels.dispatch import decide

logger = logging.getLogger(__name__)

SECONDS = 60
"""How long a compiler may take."""
OPTIONS = (
    *("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=gnu11"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
"""None of these reorders a sum or lets a NaN pass."""
HEADERS = Path(__file__).absolute().parent
"""The folder of what the sources include."""

Clock = Callable[[], float]
"""Seconds, of which differences are taken."""
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors that C code can read: a fake tensor, say, has no memory."""


class Library(NamedTuple):
    """A loaded library, or why there is none.

    Attributes:
        functions: None where there is none.
        reason: half a sentence for people.
    """

    functions: ctypes.CDLL | None
    reason: str


def load(source: Path, check: Callable[[ctypes.CDLL], bool]) -> Library:
    """The functions of a C file.

    Args:
        source: the file.
        check: whether they give the right results; called once a process.
    """
    found = _load(source)
    if found.functions is not None and not check(found.functions):
        found = Library(None, "what the compiler made of it gives wrong results")
    logger.info("%s: %s", source.name, found.reason)
    return found


def forbidden(device_type: str) -> Library | None:
    """None, or why DITI_KERNELS lets no C code run."""
    try:
        decision = decide(device_type)
    except (ValueError, RuntimeError) as error:  # the operation itself raises it
        return Library(None, str(error))
    if decision.backend != "reference" or decision.reason.endswith("=reference"):
        return Library(None, decision.reason)
    return None


def _load(source: Path) -> Library:
    if sys.platform == "win32":
        return Library(None, "not compiled on Windows")
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return Library(None, "there is no C compiler")
    try:
        folder = own_folder()
        path = folder / f"{source.stem}-{_digest(source, compiler)}.so"
        if not path.exists():
            _compile(compiler, source, path)
        return Library(ctypes.CDLL(str(path)), f"compiled by {Path(compiler).name}")
    except subprocess.TimeoutExpired:
        return Library(None, f"{Path(compiler).name} took more than {SECONDS} s")
    except subprocess.CalledProcessError as error:
        first = (error.stderr.strip().splitlines() or [""])[0][:200]
        return Library(None, f"{Path(compiler).name} failed: {first}")
    except OSError as error:
        return Library(None, f"cannot be compiled: {error.strerror or error}")


def own_folder() -> Path:
    """The folder of libraries, which nobody else may write to, since what lies there is run.

    Raises:
        PermissionError: when it belongs to someone else, or others may write to it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diti" / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} is not the user's own")
    return folder


def _digest(source: Path, compiler: str) -> str:
    """Of all that the library depends on."""
    resolved = Path(compiler).resolve()
    status = resolved.stat()
    facts = (*OPTIONS, str(resolved), status.st_size, status.st_mtime_ns, processor(), _headers())
    return hashlib.sha256(repr(facts).encode() + source.read_bytes()).hexdigest()[:32]


def _headers() -> list[bytes]:
    """What the sources may include, see `_compile`."""
    return [header.read_bytes() for header in sorted(HEADERS.glob("*.h"))]


@functools.cache
def processor() -> str:
    """The processor's model and what it can do, which `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines[:80]}
    return " ".join(found[name] for name in wanted if name in found)


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Make the library; another process may make the same one meanwhile."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        command = [compiler, *OPTIONS, "-I", str(HEADERS), str(source.absolute()), "-o", str(made), "-lm"]
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
        os.replace(made, path)


def kept_times(
    name: str, wanted: Sequence[str], depends_on: object, measure: Callable[[Clock], dict[str, float]]
) -> dict[str, float]:
    """Times measured once on this machine, and kept in `own_folder` for each processor, PyTorch and number of threads.

    What is not kept is measured now; what cannot be kept, in every process. With DITI_TUNE=0 nothing is measured.

    Args:
        name: of the file.
        wanted: names of the times.
        depends_on: what else they depend on, by its `repr`.
        measure: takes the times, in milliseconds, by a clock: the processor's of one thread, so that other work matters
            little, and the wall's of several, which spend the processor's time on waiting for each other.

    Returns:
        Milliseconds by name; empty where nothing was measured.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    try:
        facts = (torch.__version__, processor(), depends_on, OPTIONS, _headers(), clock.__name__)
        path = own_folder() / f"{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.json"
    except OSError:
        path = None
    times = None if path is None else _read_times(path, wanted)
    if times is not None:
        return times
    if os.environ.get("DITI_TUNE", "").strip() in ("0", "0.0"):
        return {}
    times = measure(clock)
    if path is not None:
        with contextlib.suppress(OSError):
            _keep(path, json.dumps(times))
    return times


def _read_times(path: Path, wanted: Sequence[str]) -> dict[str, float] | None:
    try:
        times = json.loads(path.read_bytes()[:10_000])
        found = {str(name): float(time) for name, time in times.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return found if set(found) == set(wanted) and all(0 < time < 1e6 for time in found.values()) else None


def _keep(path: Path, text: str) -> None:
    """Put a small file there; another process may put the same one there meanwhile."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        made.write_text(text)
        os.replace(made, path)
