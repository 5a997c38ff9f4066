"""Whether an array is what every feature file holds: finite float32 [N, d]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diticli.data.feature_formats import Array
from diticli.errors import FeatureFileError

_SCAN_VALUES = 2**22


def check_values(path: Path, values: Array) -> None:
    """Check the array that `path` held, block by block.

    Raises:
        FeatureFileError: when it is not finite float32 [N >= 1, d >= 1].
    """
    if values.dtype != np.dtype("<f4") or values.ndim != 2 or 0 in values.shape:
        raise FeatureFileError(
            f"{path} holds {values.dtype} of shape {list(values.shape)}, not float32 [N, d].",
            remedy="Save `features.astype(np.float32)` with one row per image, or run `diti encode`.",
        )
    block = max(1, _SCAN_VALUES // values.shape[1])
    bad = sum(
        int((~np.isfinite(values[start : start + block])).any(axis=1).sum()) for start in range(0, len(values), block)
    )
    if bad:
        raise FeatureFileError(
            f"{bad} of {len(values)} rows of {path} hold NaN or infinite values.",
            remedy="Encode again, in fp32 if a lower precision overflowed.",
        )
