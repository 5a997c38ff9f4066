"""The statistics that probing, evaluation and comparison share: estimates with intervals, bootstrap, ranks, modularity.

Shape suffixes: B resamples, N rows, U units (dims, chunks or groups of chunks), F factors or attributes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from diticli.types import DoubleArray, FloatArray, Rows

Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK_VALUES = 2**17
"""Blocks that fit a core's cache are scored several times as fast as large ones."""
_STREAM = 0xB007
"""Keeps the draws apart from what else a run's seed draws."""


def interval(values_B: DoubleArray) -> Interval | None:
    """The percentile interval of `LEVEL`; resamples without a score (NaN) are left out, None when none is left.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    known = values_B[np.isfinite(values_B)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval, which is None where resamples cannot tell, e.g. of a single group of rows."""

    value: float
    low: float | None
    high: float | None

    @classmethod
    def from_resamples(cls, value: float, values_B: DoubleArray | None) -> Self:
        """An estimate from what the resamples gave."""
        low, high = (None, None) if values_B is None else interval(values_B) or (None, None)
        return cls(value=float(value), low=low, high=high)

    @property
    def differs(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def number(self, most: int = 3) -> str:
        """The number alone, with the decimals that the interval allows."""
        return self.text(most=most).partition(" ")[0]

    def text(self, *, scale: float = 1, most: int = 3) -> str:
        """Number and interval times `scale`, with the decimals that the interval allows: "0.81 [0.78, 0.84]".

        Args:
            scale: e.g. 100 for percent.
            most: decimals at most, and of a number without interval.
        """
        if self.low is None or self.high is None:
            return _decimal(scale * self.value, most)
        count = min(most, decimals(scale * self.low, scale * self.high))
        value, low, high = (_decimal(scale * part, count) for part in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def decimals(low: float, high: float) -> int:
    """Decimals of a number that an interval allows: the first of which its half width holds two units, at most three.

    Two for an interval of no width; more where an end would become a 0 that it is not.
    """
    half = (high - low) / 2
    if not half:
        return 2
    count = min(3, max(0, math.ceil(-math.log10(half / 2)))) if 0 < half < math.inf else 3
    while count < 3 and any(end and not round(end, count) for end in (low, high)):
        count += 1
    return count


def _decimal(value: float, count: int) -> str:
    return f"{round(value, count) + 0.0:.{count}f}"  # + 0.0: no "-0.00"


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Resamples of N rows. Going through them twice gives the same ones.

    Rows are drawn with replacement, or whole groups where rows of one group (a person, a scene) are alike (the cluster
    bootstrap: Field and Welsh, JRSS-B 2007). All scores see the same draws, so their means and differences have
    intervals too. Models stay as they are: intervals tell nothing of other training rows or seeds.

    Attributes:
        unit_of_row: [N] which of the units drawn with replacement each row belongs to: itself, or its group.
        resamples: B.
        seed: of the draws.
    """

    unit_of_row: Rows
    resamples: int = RESAMPLES
    seed: int = 0

    @classmethod
    def over_rows(
        cls, rows: int, groups: Sequence[str] | None = None, *, seed: int = 0, resamples: int = RESAMPLES
    ) -> Bootstrap:
        """Resamples of `rows` rows, or of their groups ([rows], the group of each)."""
        if groups is None:
            return cls(unit_of_row=np.arange(rows), resamples=resamples, seed=seed)
        units = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
        return cls(unit_of_row=units.reshape(-1), resamples=resamples, seed=seed)

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

    def counts(self) -> DoubleArray:
        """How often each row was drawn in all resamples, [B, N]."""
        return np.concatenate([block.astype(np.float64) for block in self.blocks()])


def mean_of(many: Sequence[DoubleArray]) -> DoubleArray:
    """Mean [B] over scores; one that a resample lacks (NaN) takes its mean over the others there."""
    filled = []
    for values_B in many:
        known = np.isfinite(values_B)
        if known.any():
            filled.append(np.where(known, values_B, values_B[known].mean()))
    return np.mean(filled, axis=0) if filled else np.full(len(many[0]), np.nan)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for being several (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def mean_of_runs(values_RS: DoubleArray, overlap: float) -> Estimate:
    """Mean and 95 % interval (Student's t) of [runs, seeds]; NaN where a value is undefined.

    Over the runs, each averaged over the seeds, where there are several; else over the seeds, whose splits share rows,
    with the variance of Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003:
    1 / seeds + test rows / training rows in place of 1 / seeds.

    Args:
        values_RS: of one method.
        overlap: test rows over training rows, where each seed draws a split, else 0.
    """
    from scipy import stats

    mean = float(values_RS.mean())
    error, freedom = _error(values_RS, overlap)
    if not np.isfinite(error):
        return Estimate(value=mean, low=None, high=None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * error)
    return Estimate(value=mean, low=mean - half, high=mean + half)


def difference_p(first_RS: DoubleArray, other_QS: DoubleArray, overlap: float) -> float | None:
    """Two-sided p of the difference of two methods on the same seeds; None where nothing varies or is undefined.

    Several runs of both: Welch's test of their means. Of one of them: its runs against the other's one, seed by seed.
    Of none: seeds in pairs, with the variance for shared rows.
    """
    from scipy import stats

    runs = [len(first_RS), len(other_QS)]
    if min(runs) > 1:
        with np.errstate(all="ignore"):
            p = float(stats.ttest_ind(other_QS.mean(axis=1), first_RS.mean(axis=1), equal_var=False).pvalue)
        return p if np.isfinite(p) else None
    gaps = other_QS - first_RS
    error, freedom = _error(gaps, overlap)
    if not np.isfinite(error) or error == 0:
        return None
    return float(2 * stats.t.sf(abs(gaps.mean()) / error, freedom))


def _error(values_RS: DoubleArray, overlap: float) -> tuple[float, int]:
    """Standard error of the mean and its degrees of freedom; NaN where there is one value, or an undefined one."""
    runs, seeds = values_RS.shape
    if runs > 1:
        return float(values_RS.mean(axis=1).std(ddof=1) / np.sqrt(runs)), runs - 1
    if seeds > 1:
        return float(values_RS.std(ddof=1) * np.sqrt(1 / seeds + overlap)), seeds - 1
    return np.nan, 0


def spearman(first: DoubleArray, second: DoubleArray) -> DoubleArray:
    """Rank correlation along the last axis, of each row; NaN where a row holds NaN, or ties alone."""
    from scipy.stats import rankdata

    first, second = np.broadcast_arrays(first, second)
    ranks = [rankdata(values, axis=-1, nan_policy="propagate") for values in (first, second)]
    a, b = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    bottom = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return np.divide((a * b).sum(axis=-1), bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


# Disentanglement and completeness of a matrix of importances or effects: the D and C of DCI (Eastwood and Williams, "A
# Framework for the Quantitative Evaluation of Disentangled Representations", ICLR 2018, OpenReview By-7dz-AZ, section
# 2). With R_uf the importance of unit u for factor f: D_u = 1 - H_F(R_u. / sum_f R_uf), D = sum_u rho_u D_u with rho_u
# the share of u in all importance; C_f = 1 - H_U(R_.f / sum_u R_uf), C = mean over factors. H_B: entropy to base B.


def concentration(effects: DoubleArray) -> DoubleArray:
    """1 - entropy of each distribution over the last axis, over that of the uniform one: 1 one-hot, 0 uniform.

    Args:
        effects: [..., M], at least 0.

    Returns:
        [...]; NaN where all effects are 0, or there is but one.
    """
    count = effects.shape[-1]
    total = effects.sum(axis=-1, keepdims=True)
    if count < 2:
        return np.full(effects.shape[:-1], np.nan)
    shares = np.divide(effects, total, out=np.zeros_like(effects), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.where(total[..., 0] > 0, 1 + (shares * logs).sum(axis=-1) / np.log(count), np.nan)


def completeness(effects_UF: DoubleArray) -> DoubleArray:
    """C in [0, 1]: does one unit alone matter for a factor? Mean of `concentration` over factors that any matters for.

    Args:
        effects_UF: [..., U, F], at least 0.

    Returns:
        [...]; NaN for one unit, or when nothing matters.
    """
    return _weighted_mean(np.swapaxes(effects_UF, -1, -2), weighted=False)


def disentanglement(effects_UF: DoubleArray) -> DoubleArray:
    """D in [0, 1]: does a unit matter for one factor alone? `concentration` of units, weighted by how much they matter.

    Args:
        effects_UF: [..., U, F], at least 0.

    Returns:
        [...]; NaN for one factor, or when nothing matters.
    """
    return _weighted_mean(effects_UF, weighted=True)


def none_if_nan(value: float | npt.NDArray[np.float64]) -> float | None:
    """A single number, None for NaN: what JSON and tables take."""
    return None if np.isnan(value) else float(value)


def _weighted_mean(effects: DoubleArray, *, weighted: bool) -> DoubleArray:
    scores, total = concentration(effects), effects.sum(axis=-1)
    weights = np.where(np.isnan(scores), 0.0, total if weighted else 1.0)
    whole = weights.sum(axis=-1)
    mean = (np.nan_to_num(scores) * weights).sum(axis=-1)
    return np.divide(mean, whole, out=np.full_like(whole, np.nan), where=whole > 0)
