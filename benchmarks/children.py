"""Child processes of the benchmarks: isolated, so that they import the measured code and nothing of the working folder.

`-P` leaves the working folder out of the import path; the packages that are measured come by an absolute path instead,
and each child gets a working folder of its own. The scan of the tests (`tests/code_scan.py`) allows no other child but
the tools that belong to a library.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (ROOT, ROOT / "kernels")
"""Where `benchmarks`, `diticli` and `diti_kernels` are."""


def run_python(
    arguments: Sequence[str],
    *,
    python: Path | str = sys.executable,
    packages: Sequence[Path] = PACKAGES,
    folder: Path | str | None = None,
    environment: Mapping[str, str] = os.environ,
    timeout: float | None = None,
    check: bool = False,
    shown: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a Python to its end, and keep what it says.

    Args:
        arguments: behind `python -P`. Paths must be absolute.
        python: which one.
        packages: folders that it imports from before its own environment.
        folder: its working folder; None makes an empty one that goes when it ends.
        environment: its variables, to which the import path is added.
        timeout: seconds.
        check: whether a status other than 0 is an error.
        shown: whether what it says goes to the terminal instead.

    Raises:
        subprocess.TimeoutExpired, subprocess.CalledProcessError: as `subprocess.run`.
    """
    with _folder(folder) as cwd:
        return subprocess.run(
            [str(python), "-P", *arguments],
            cwd=cwd,
            env=_variables(environment, packages),
            capture_output=not shown,
            text=True,
            timeout=timeout,
            check=check,
        )


@contextmanager
def started_python(
    arguments: Sequence[str],
    *,
    packages: Sequence[Path] = PACKAGES,
    folder: Path | str | None = None,
    stderr: int | None = None,
) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A Python of this environment beside this process, and what it prints, line by line; as `run_python`."""
    with (
        _folder(folder) as cwd,
        subprocess.Popen(
            [sys.executable, "-P", *arguments],
            cwd=cwd,
            env=_variables(os.environ, packages),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            bufsize=1,
        ) as process,
    ):
        assert process.stdout is not None
        yield process, process.stdout


@contextmanager
def _folder(given: Path | str | None) -> Iterator[str]:
    if given is not None:
        yield str(given)
        return
    with tempfile.TemporaryDirectory(prefix="diti-benchmark-") as own:
        yield own


def _variables(environment: Mapping[str, str], packages: Sequence[Path]) -> dict[str, str]:
    """Without a PYTHONPATH of the caller, which may name the working folder."""
    own = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    return own | ({"PYTHONPATH": os.pathsep.join(map(str, packages))} if packages else {})
