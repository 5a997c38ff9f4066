"""How far the best unit is ahead of the second best."""

from __future__ import annotations

import numpy as np

from diticli.types import DoubleArray


def top_gap(scores: DoubleArray) -> float | None:
    """Largest of `scores` [units] minus the second largest; None for fewer than two units."""
    if len(scores) < 2:
        return None
    second, first = np.sort(scores)[-2:]
    return float(first - second)


def mean_or_none(values: list[float | None]) -> float | None:
    """Mean of the values that are defined; None when none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None
