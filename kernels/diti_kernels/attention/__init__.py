"""Attention without a gradient in C, on a CPU in float32. See README.md for the maths."""

from __future__ import annotations
