"""How faithful are edits? Scores from what a held-out attribute classifier says before and after.

Everything here is arithmetic on readings and pixels; `diticli.evaluation.evaluate` makes them. Attributes are in
standard deviations of the training images (`AttributeClassifier.read`), so that one unit means the same for all.

Legend of shape suffixes: N images, A attributes, P pairs, G edits, R resamples, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.statistics import Bootstrap, Estimate
from diticli.types import DoubleArray

Pixels = npt.NDArray[np.uint8]
MIN_TRANSFER = 0.5
"""A swap moves an attribute when its transfer rate is at least this."""


def transfer_rates(
    before_NA: DoubleArray, after_NA: DoubleArray, other_NA: DoubleArray, *, seed: int = 0
) -> list[Estimate]:
    """Share of the partner's attribute that an edit brought along, per attribute.

    The coefficient of `other` in the least-squares fit after = kept * before + share * other + constant, over all
    images. An edit that only erases the attribute scores 0; the slope of (after - before) on (other - before) would
    call that half an exchange, since whatever is erased comes nearer to any partner. The interval is a bootstrap over
    pairs, since both directions of a pair share two images.

    Args:
        before_NA: readings of the unedited (reconstructed) images; rows 2i and 2i+1 are a pair.
        after_NA: readings of the edited ones.
        other_NA: readings of their partners.
        seed: of the bootstrap.
    """
    values_1A, draws_R1A = resampled_transfer_rates(before_NA, after_NA[None], other_NA, seed=seed)
    return [
        Estimate.from_resamples(value, draws_R) for value, draws_R in zip(values_1A[0], draws_R1A[:, 0].T, strict=True)
    ]


def resampled_transfer_rates(
    before_NA: DoubleArray, after_GNA: DoubleArray, other_NA: DoubleArray, *, seed: int = 0
) -> tuple[DoubleArray, DoubleArray]:
    """The shares of `transfer_rates` for G edits of the same images, [G, A], and for draws of pairs, [RESAMPLES, G, A].

    A draw holds the same pairs for all edits, so that what is computed from several of them can be resampled too.
    """
    counts_RP = np.concatenate(
        [np.ones((1, len(before_NA) // 2)), Bootstrap.over_rows(len(before_NA) // 2, seed=seed).counts()]
    )

    def drawn(values_GNA: DoubleArray) -> DoubleArray:
        """Sums over the images of each draw, all of them first, [1 + RESAMPLES, G, A]."""
        pairs_PGA = values_GNA.reshape(len(values_GNA), -1, 2, values_GNA.shape[-1]).sum(axis=2).swapaxes(0, 1)
        return np.tensordot(counts_RP, pairs_PGA, axes=1)

    # Both directions of a pair count, so that difference and sum are orthogonal: each has its own slope.
    wanted_1NA, both_1NA = (other_NA - before_NA)[None], (other_NA + before_NA)[None]
    apart = _ratio(drawn(wanted_1NA * (after_GNA - before_NA)), drawn(wanted_1NA**2), otherwise=0.0)
    images = drawn(np.ones_like(both_1NA))
    mean = drawn(both_1NA) / images
    together = _ratio(
        drawn(both_1NA * after_GNA) - mean * drawn(after_GNA), drawn(both_1NA**2) - mean**2 * images, otherwise=0.5
    )
    # apart = (1 - kept + share) / 2 and together = (kept + share) / 2; 0 and 1/2 where images do not differ.
    shares = apart + together - 0.5
    return shares[0], shares[1:]


def side_effects(
    before_NA: DoubleArray, after_NA: DoubleArray, other_NA: DoubleArray, shares: Sequence[Estimate]
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


def _ratio(top: DoubleArray, bottom: DoubleArray, *, otherwise: float) -> DoubleArray:
    return np.divide(top, bottom, out=np.full_like(top, otherwise), where=np.broadcast_to(bottom > 1e-9, top.shape))
