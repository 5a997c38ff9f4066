"""Fused operations of `diti`: each in its own folder, with a plain PyTorch reference and Triton kernels.

Use an operation as `from diti_kernels.masked_linear import masked_linear`. Which implementation runs is
decided by `diti_kernels.dispatch` from the tensor's device and the environment variable DITI_KERNELS.
Importing this package imports neither Triton nor a kernel, and works where Triton is not installed.
"""

from __future__ import annotations

from diti_kernels.dispatch import Backend, Decision, backend_for, decide

__all__ = ["Backend", "Decision", "backend_for", "decide"]
