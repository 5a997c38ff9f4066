"""Array types that many modules name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
FloatArray = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
"""Indices of rows."""
