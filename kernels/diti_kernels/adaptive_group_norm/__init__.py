"""Adaptive group norm: y = SiLU(x_hat * scale + shift). See README.md for the maths."""

from __future__ import annotations

from diti_kernels.adaptive_group_norm.op import adaptive_group_norm
from diti_kernels.adaptive_group_norm.reference import adaptive_group_norm_reference

__all__ = ["adaptive_group_norm", "adaptive_group_norm_reference"]
