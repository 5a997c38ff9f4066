"""How faithful are edits? Scores from what a held-out reader says before and after.

Everything here is arithmetic on readings and pixels; `diticli.judging.evaluation` makes them. Attributes are in
standard deviations of the training images (`AttributeReader.read`), so that one unit means the same for all.

Legend of shape suffixes: N images, A attributes, P pairs, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DoubleArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
RESAMPLES = 1000
MOVED = 0.5
"""A swap is said to move an attribute when it carries over at least this share of the difference."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which share of a difference an edit carried over: 0 nothing, 1 all; with its 95 % interval."""

    value: float
    low: float
    high: float


def transferred(before_NA: DoubleArray, after_NA: DoubleArray, other_NA: DoubleArray, *, seed: int = 0) -> list[Share]:
    """Share of the difference between an image and its partner that an edit carried over, per attribute.

    The slope through the origin of (after - before) on (other - before), least squares over all images. The interval
    is a bootstrap over pairs, since both directions of a pair share two images.

    Args:
        before_NA: readings of the unedited (reconstructed) images; rows 2i and 2i+1 are a pair.
        after_NA: readings of the edited ones.
        other_NA: readings of their partners.
        seed: of the bootstrap.
    """
    wanted = other_NA - before_NA
    top_PA = _per_pair(wanted * (after_NA - before_NA))
    bottom_PA = _per_pair(wanted**2)
    draws = np.random.default_rng(seed).integers(len(top_PA), size=(RESAMPLES, len(top_PA)))
    slopes = _ratio(top_PA[draws].sum(axis=1), bottom_PA[draws].sum(axis=1))
    low, high = np.quantile(slopes, (0.025, 0.975), axis=0)
    values = _ratio(top_PA.sum(axis=0), bottom_PA.sum(axis=0))
    return [Share(value=float(v), low=float(a), high=float(b)) for v, a, b in zip(values, low, high, strict=True)]


def unexplained(
    before_NA: DoubleArray, after_NA: DoubleArray, other_NA: DoubleArray, shares: Sequence[Share]
) -> DoubleArray:
    """[A]: root mean square of the change that is no step towards the partner; 0 for a perfect edit."""
    share_A = np.array([share.value for share in shares])
    return np.sqrt(np.mean((after_NA - before_NA - share_A * (other_NA - before_NA)) ** 2, axis=0))


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a step along an attribute's direction does to the attributes, in their standard deviations.

    Attributes:
        target: mean change of the attribute itself.
        leakage: mean change of each other one, by name.
    """

    target: float
    leakage: dict[str, float]

    @property
    def mean_leakage(self) -> float:
        """Mean absolute change of the others; 0 when there is none."""
        return float(np.mean(np.abs(list(self.leakage.values())))) if self.leakage else 0.0

    @property
    def selectivity(self) -> float:
        """Share of the target in the sum of all absolute changes; 1 when nothing else moved."""
        total = abs(self.target) + sum(abs(value) for value in self.leakage.values())
        return abs(self.target) / total if total else 0.0


def change(low_NA: DoubleArray, high_NA: DoubleArray, names: Sequence[str], target: str) -> Change:
    """Half the mean difference between edits by +amount and -amount: the change per amount.

    Args:
        low_NA: readings of the images moved by -amount.
        high_NA: readings of the images moved by +amount.
        names: of the A attributes.
        target: the attribute whose direction it was.
    """
    means = dict(zip(names, (0.5 * (high_NA - low_NA)).mean(axis=0).tolist(), strict=True))
    return Change(target=means.pop(target), leakage=means)


def drift_outside(before_NHWC: Pixels, after_NHWC: Pixels, inside_NHW: npt.NDArray[np.bool_]) -> float:
    """Mean absolute change, in grey levels 0..255, of the pixels where nothing should have changed.

    Args:
        before_NHWC: unedited (reconstructed) images.
        after_NHWC: edited ones.
        inside_NHW: pixels that a perfect edit changes.

    Returns:
        NaN when a perfect edit changes every pixel.
    """
    difference = np.abs(before_NHWC.astype(np.float64) - after_NHWC.astype(np.float64)).mean(axis=-1)
    outside = ~inside_NHW
    return float(difference[outside].mean()) if outside.any() else float("nan")


def differing(first_NHWC: Pixels, second_NHWC: Pixels) -> npt.NDArray[np.bool_]:
    """[N, H, W]: pixels in which two drawings differ."""
    return (first_NHWC != second_NHWC).any(axis=-1)


def to_json(value: Any) -> Any:
    """Dataclasses as dictionaries, NaN as None, numbers rounded to six digits."""
    if hasattr(value, "__dataclass_fields__"):
        extra = (
            {"mean_leakage": value.mean_leakage, "selectivity": value.selectivity} if isinstance(value, Change) else {}
        )
        return to_json({**vars(value), **extra})
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if not np.isfinite(value) else round(float(value), 6)
    return value


def _per_pair(values_NA: DoubleArray) -> DoubleArray:
    return values_NA.reshape(-1, 2, values_NA.shape[1]).sum(axis=1)


def _ratio(top: DoubleArray, bottom: DoubleArray) -> DoubleArray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 1e-12)
