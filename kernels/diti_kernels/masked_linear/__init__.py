"""Timestep-masked projection of features: emb = (m ⊙ z) Wᵀ + bias. See README.md for the maths."""

from __future__ import annotations

from diti_kernels.masked_linear.op import masked_linear
from diti_kernels.masked_linear.reference import masked_linear_reference

__all__ = ["masked_linear", "masked_linear_reference"]
