"""Bootstrap of the test rows: how far a score would move with other images of the same kind.

Rows are drawn with replacement, or whole groups where rows of one group (a person, a scene) are alike (the cluster
bootstrap: Field and Welsh, JRSS-B 2007). All scores see the same draws, so their means and differences have
intervals too. The models stay as they are: intervals tell nothing of other training rows or seeds.
Percentile intervals: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.types import DoubleArray, FloatArray

Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK_VALUES = 2**17
"""Blocks that fit a core's cache are scored several times as fast as large ones."""
_STREAM = 0xB007
"""Keeps the draws apart from what else a run's seed draws."""


@dataclass(frozen=True, kw_only=True)
class TestDraws:
    """Resamples of N test rows. Going through them twice gives the same draws.

    Attributes:
        unit_of_row: [N] which of the units drawn with replacement each row belongs to: itself, or its group.
        resamples: B.
        seed: of the draws.
    """

    __test__ = False  # no test of pytest's

    unit_of_row: npt.NDArray[np.int64]
    resamples: int = RESAMPLES
    seed: int = 0

    @classmethod
    def of(cls, rows: int, groups: Sequence[str] | None = None, *, seed: int = 0) -> TestDraws:
        """Draws of `rows` rows, or of their groups ([rows], the group of each)."""
        if groups is None:
            return cls(unit_of_row=np.arange(rows), seed=seed)
        units = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
        return cls(unit_of_row=units.reshape(-1), seed=seed)

    @property
    def units(self) -> int:
        """How many rows or groups can be drawn."""
        return int(self.unit_of_row.max()) + 1

    @property
    def usable(self) -> bool:
        """Whether there is anything to vary: a single group says nothing of others."""
        return self.units > 1

    def blocks(self) -> Iterator[FloatArray]:
        """How often each row was drawn: float32 [b, N], a bounded number b of resamples at a time."""
        rng = np.random.default_rng([self.seed, _STREAM])
        size = max(1, min(self.resamples, _BLOCK_VALUES // len(self.unit_of_row)))
        for start in range(0, self.resamples, size):
            drawn = rng.integers(self.units, size=(min(size, self.resamples - start), self.units))
            offsets = np.arange(len(drawn))[:, None] * self.units
            counts = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
            yield counts[:, self.unit_of_row].astype(np.float32)


def interval(values_B: DoubleArray) -> Interval | None:
    """The percentile interval of `LEVEL`; resamples without a score (NaN) are left out, None when none is left."""
    known = values_B[np.isfinite(values_B)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def mean_of(many: Sequence[DoubleArray]) -> DoubleArray:
    """Mean [B] over scores; one that a resample lacks (NaN) takes its mean over the others there."""
    filled = []
    for values_B in many:
        known = np.isfinite(values_B)
        if known.any():
            filled.append(np.where(known, values_B, values_B[known].mean()))
    return np.mean(filled, axis=0) if filled else np.full(len(many[0]), np.nan)
