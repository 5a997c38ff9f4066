"""How many images fit a GPU together."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARE = 0.8
"""Of the free memory: the rest is for what fragments, and for others."""
PIXELS_ON_CPU = 2**16
"""64 images of 32 px: where larger batches no longer pay on a CPU, they only take memory."""


def suggest_batch_size(run: Callable[[int], object], device: torch.device, *, resolution: int, most: int = 256) -> int:
    """A power of two of images, between 1 and `most`.

    On a GPU by its free memory and by what two and four images take; unmeasured on any. On a CPU by pixels alone.

    Args:
        run: samples that many images for one step on `device`.
        device: where.
        resolution: height and width of the images.
        most: the largest answer.
    """
    if device.type != "cuda":
        fitting = PIXELS_ON_CPU // resolution**2
    else:
        run(2)  # libraries take their workspace
        few, more = _peak(run, 2, device), _peak(run, 4, device)
        each = max(1, (more - few) // 2)
        fitting = int(SHARE * torch.cuda.mem_get_info(device)[0]) // each
    return 1 << (max(1, min(most, fitting)).bit_length() - 1)


def _peak(run: Callable[[int], object], count: int, device: torch.device) -> int:
    """Bytes that `run(count)` takes beyond what is held already."""
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run(count)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held
