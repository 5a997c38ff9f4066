"""Whether channels_last maps are faster than NCHW on this machine's CPU in float32: measured once, and kept.

A convolution (in channels_last by Winograd's algorithm, where that is faster here) and an adaptive group norm with
SiLU, forward and backward, in both layouts. The result lies beside the compiled norms (`diti_kernels.native`), one file
for each processor, PyTorch, number of threads and C sources.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diti_kernels import native
from diti_kernels.adaptive_group_norm import adaptive_group_norm, compiled_rows
from diti_kernels.winograd import compiled as winograd
from diti_kernels.winograd import convolve_3x3

BATCH, CHANNELS, SIDE, GROUPS = 8, 64, 32, 8
READINGS = 5
LEAST_GAIN = 1.05
"""How many times as fast NCHW has to be to be taken: ties stay with channels_last."""


class Measured(NamedTuple):
    """Milliseconds in both layouts; None where nothing was measured."""

    contiguous: float | None
    channels_last: float | None

    @property
    def wins(self) -> bool:
        """Whether maps should be channels_last."""
        if self.contiguous is None or self.channels_last is None:
            return True
        return self.channels_last < LEAST_GAIN * self.contiguous

    @property
    def reason(self) -> str:
        """Half a sentence for people."""
        if self.contiguous is None or self.channels_last is None:
            return "not measured, DITI_TUNE=0"
        return f"measured here: {self.channels_last:.3g} ms channels_last, {self.contiguous:.3g} ms contiguous"


@functools.cache
def measured(threads: int) -> Measured:
    """What is kept of this machine with so many threads, else what is measured now; nothing is with DITI_TUNE=0."""
    depends_on = (threads, winograd.SOURCE.read_bytes(), compiled_rows.SOURCE.read_bytes())
    times = native.kept_times("layout", Measured._fields, depends_on, lambda clock: measure(clock)._asdict())
    return Measured(**times) if times else Measured(None, None)


def measure(clock: native.Clock = time.process_time) -> Measured:
    """Run both layouts in turn; the least of the readings counts."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        runs = [_step(layout) for layout in (torch.contiguous_format, torch.channels_last)]
        for run in runs:
            run()
        best = [float("inf")] * 2
        for _ in range(READINGS):
            for i, run in enumerate(runs):
                started = clock()
                run()
                best[i] = min(best[i], clock() - started)
    return Measured(1e3 * best[0], 1e3 * best[1])


def _step(layout: torch.memory_format) -> Callable[[], None]:
    def laid(*shape: int) -> Tensor:
        values = torch.linspace(-1, 1, shape[0] * shape[1] * shape[2] * shape[3], dtype=torch.float32).view(shape)
        return values.contiguous(memory_format=layout).requires_grad_()

    x, weight = laid(BATCH, CHANNELS, SIDE, SIDE), laid(CHANNELS, CHANNELS, 3, 3)
    scale, shift = torch.ones(BATCH, CHANNELS), torch.zeros(BATCH, CHANNELS)
    gradient = torch.ones(BATCH, CHANNELS, SIDE, SIDE).contiguous(memory_format=layout)

    def run() -> None:
        y = adaptive_group_norm(convolve_3x3(x, weight), scale, shift, GROUPS)
        torch.autograd.grad((y * gradient).sum(), (x, weight))  # given a gradient, PyTorch imports SymPy: half a second

    return run
