"""What the tests of the operations share: where an implementation runs, and a Python apart from this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import diti_kernels
import torch
from diti_kernels.dispatch import VARIABLE

_UNKNOWN = ("TRITON_INTERPRET", "TRITON_DEFAULT_FP_FUSION", VARIABLE)


class Site(NamedTuple):
    """One implementation on one device."""

    backend: str
    device: str

    @property
    def place(self) -> torch.device:
        """The device as PyTorch takes it."""
        return torch.device(self.device)

    @property
    def low_precision(self) -> torch.dtype:
        """bfloat16, except in Triton's interpreter, which cannot multiply it."""
        return torch.float16 if self == ("triton", "cpu") else torch.bfloat16


def run_python(code: str, **environment: str) -> str:
    """Standard output of `code` in a new process that knows `diti_kernels` but none of the variables that change it."""
    env = {key: value for key, value in os.environ.items() if key not in _UNKNOWN}
    root = str(Path(diti_kernels.__path__[0]).parent)
    env |= {"PYTHONPATH": os.pathsep.join([root, env.get("PYTHONPATH", "")]), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
