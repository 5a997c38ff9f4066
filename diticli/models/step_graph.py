"""A sampler's step as one CUDA graph: at small batches a GPU waits for Python to launch the next kernel.

A graph and not `torch.compile`: capturing takes a few steps' time, compiling takes longer than a whole edit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import ClassVar

import torch

Step = Callable[..., torch.Tensor]
LARGEST_BATCH = 16
"""Larger batches keep a GPU busy by themselves. Unmeasured."""


class StepGraph:
    """A function of CUDA tensors of fixed shapes, captured once and replayed.

    Args:
        step: launches kernels on its inputs, and neither waits for nor reads from the device.
        inputs: of the shapes and dtypes that all calls will have.

    The graph is captured on the device of the inputs, whichever is current. Each device has one side stream, which is
    kept: cuBLAS holds a workspace for every stream.
    """

    _sides: ClassVar[dict[torch.device, torch.cuda.Stream]] = {}
    _capturing: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, step: Step, *inputs: torch.Tensor) -> None:
        self._device = inputs[0].device
        # Buffers made under inference mode could not be written to outside it.
        with (
            self._capturing,
            torch.inference_mode(False),
            torch.no_grad(),
            torch.cuda.device(self._device),
        ):
            self._inputs = [value.clone() for value in inputs]
            side = self._side()
            side.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(side):  # libraries choose and initialise their algorithms before the capture
                for _ in range(3):
                    step(*self._inputs)
            torch.cuda.current_stream(self._device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads may allocate pinned memory meanwhile, as those that feed a training do.
            with torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"):
                self._output = step(*self._inputs)

    def _side(self) -> torch.cuda.Stream:
        if self._device not in self._sides:
            self._sides[self._device] = torch.cuda.Stream(self._device)
        return self._sides[self._device]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """`step(*inputs)`, in memory of its own."""
        with torch.cuda.device(self._device):
            for mine, value in zip(self._inputs, inputs, strict=True):
                mine.copy_(value)
            self._graph.replay()
            return self._output.clone()


def wants_graph(x: torch.Tensor) -> bool:
    """Whether a batch is small enough, on a GPU; DITI_CUDA_GRAPH=0 never captures."""
    return x.is_cuda and 0 < len(x) <= LARGEST_BATCH and os.environ.get("DITI_CUDA_GRAPH", "1") != "0"
