"""Whether `torch.compile` works here: a tiny function is compiled in a process of its own.

A process of its own can be stopped, and cannot harm this one: a first compilation may take half a minute, and a
broken tool chain may crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

# One thread: a pool of compiling processes takes longer to start than the function takes to compile.
_CODE = """
import os, sys
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
import torch
from torch.nn.functional import silu
x = torch.linspace(-1, 1, 64, device=sys.argv[1] or ("cuda" if torch.cuda.is_available() else "cpu"))
torch.testing.assert_close(torch.compile(lambda x: silu(x) * 2, fullgraph=True)(x), silu(x) * 2)
"""


class CompileResult(NamedTuple):
    """How the trial went.

    Attributes:
        works: None when it had not ended in time.
        message: half a sentence for people; of a failure, its last line.
    """

    works: bool | None
    message: str


class CompileTrial:
    """A trial that runs beside other work.

    Args:
        device: where the function runs; None takes CUDA where there is one.
        seconds: how long it may take, from now on.
    """

    def __init__(self, device: str | None, seconds: float) -> None:
        self.seconds, self.start = seconds, time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="diti-compile-")
        self._process = subprocess.Popen(
            # -P and a folder of its own: the working folder, perhaps somebody else's data, must lend no modules.
            [sys.executable, "-P", "-c", _CODE, "" if device in (None, "auto") else device],
            cwd=self._folder.name,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that compilers it started end with it
        )

    def result(self) -> CompileResult:
        """Wait for the end, or for the time to be over."""
        left = self.start + self.seconds - time.monotonic()
        try:
            _, stderr = self._process.communicate(timeout=max(left, 0.1))
        except subprocess.TimeoutExpired:
            self.stop()
            return CompileResult(None, f"undecided after {self.seconds:.0f} s, a first compilation can take longer")
        self._folder.cleanup()
        if self._process.returncode == 0:
            return CompileResult(True, f"works, a tiny function took {time.monotonic() - self.start:.1f} s")
        return CompileResult(False, _reason(stderr, self._process.returncode))

    def stop(self) -> None:
        """End it and the compilers it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
        self._folder.cleanup()


def _reason(stderr: str, status: int) -> str:
    """The line of a traceback that names the error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return (named or lines or [f"it ended with status {status}"])[-1]
