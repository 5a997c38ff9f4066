"""Is a difference real? Scores of two contenders on the same resamples of the test images.

Paired percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), on the draws of
`diticli.probing.bootstrap`. It covers other test images of the same kind, not other seeds of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diticli.types import DoubleArray

ALPHA = 0.05
LOWER_IS_BETTER = frozenset({"mse", "mse_raw"})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A contender's score less that of the first one.

    Attributes:
        value: on the test images.
        low: of its 95 % interval.
        high: likewise.
        p: two-sided: how often resamples lie on the other side of 0, doubled.
        adjusted_p: for being one of several contenders (Holm).
        verdict: "better", "worse", or "no clear difference" where `adjusted_p` is above `ALPHA`.
    """

    value: float
    low: float
    high: float
    p: float
    adjusted_p: float = 1.0
    verdict: str = ""


def difference(value: float, own_B: DoubleArray, first_B: DoubleArray) -> Difference | None:
    """Of scores [B] on the same resamples; None where no resample has both.

    Args:
        value: the difference on the test images themselves.
        own_B: of the contender.
        first_B: of the first one.
    """
    drawn = own_B - first_B
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, (0.025, 0.975))
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return Difference(value=value, low=float(low), high=float(high), p=p)


def with_verdicts(found: Sequence[Difference | None], metric: str) -> list[Difference | None]:
    """The differences of several contenders to the first with adjusted p and verdict.

    Args:
        found: one a contender, None for unknown.
        metric: which decides whether higher is better.
    """
    known = [item for item in found if item is not None]
    adjusted = iter(holm([item.p for item in known]))
    return [item if item is None else _with_verdict(item, next(adjusted), metric) for item in found]


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for being several (Holm, Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _with_verdict(found: Difference, adjusted: float, metric: str) -> Difference:
    gains = found.value < 0 if metric in LOWER_IS_BETTER else found.value > 0
    verdict = "no clear difference" if adjusted > ALPHA else "better" if gains else "worse"
    return replace(found, adjusted_p=adjusted, verdict=verdict)
