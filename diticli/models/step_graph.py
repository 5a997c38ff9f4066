"""A sampler's step as one CUDA graph: at small batches a GPU waits for Python to launch the next kernel.

A graph and not `torch.compile`: capturing takes a few steps' time, compiling takes longer than a whole edit.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

Step = Callable[..., torch.Tensor]
LARGEST_BATCH = 16
"""Larger batches keep a GPU busy by themselves. Unmeasured."""


class StepGraph:
    """A function of CUDA tensors of fixed shapes, captured once and replayed.

    Args:
        step: launches kernels on its inputs, and neither waits for nor reads from the device.
        inputs: of the shapes and dtypes that all calls will have.
    """

    def __init__(self, step: Step, *inputs: torch.Tensor) -> None:
        # Buffers made under inference mode could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = [value.clone() for value in inputs]
            side = torch.cuda.Stream(inputs[0].device)
            side.wait_stream(torch.cuda.current_stream(inputs[0].device))
            with torch.cuda.stream(side):  # libraries choose and initialise their algorithms before the capture
                for _ in range(3):
                    step(*self._inputs)
            torch.cuda.current_stream(inputs[0].device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = step(*self._inputs)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """`step(*inputs)`, in memory of its own."""
        for mine, value in zip(self._inputs, inputs, strict=True):
            mine.copy_(value)
        self._graph.replay()
        return self._output.clone()


def wants_graph(x: torch.Tensor) -> bool:
    """Whether a batch is small enough, on a GPU; DITI_CUDA_GRAPH=0 never captures."""
    return x.is_cuda and 0 < len(x) <= LARGEST_BATCH and os.environ.get("DITI_CUDA_GRAPH", "1") != "0"
