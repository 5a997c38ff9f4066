"""3x3 convolutions by Winograd's minimal filtering, on a CPU in float32. See README.md for the maths."""

from __future__ import annotations

from diti_kernels.winograd.op import convolve_3x3

__all__ = ["convolve_3x3"]
