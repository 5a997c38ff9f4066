"""Skill of a model at an attribute, on one scale for all kinds, and how each test row moves that number.

The scale, called skill, is 0 for a model that knows nothing and 1 for one that knows all: R2 of numbers, and
(score - base rate) / (1 - base rate) with the average precision of binary attributes and the accuracy of categories.

A row's influence is the derivative of the skill by the row's weight. The skill of a resample is then, to first
order, skill + counts @ influence (the infinitesimal jackknife: Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 22), which makes 1,000 resamples of thousands of models one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from diticli.probing.targets import Kind, Target
from diticli.types import DoubleArray, Rows

Measure = Literal["r2", "average_precision", "accuracy"]

MEASURES: dict[Kind, Measure] = {"number": "r2", "binary": "average_precision", "category": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A model's skill on N test rows.

    Attributes:
        value: at most 1; below 0 for a model that is worse than the base rate.
        base_rate: of the measure: `value` 0 means this score.
        influence: [N] derivative by each row's weight, summing to 0; 0 where the truth is unknown.
    """

    value: float
    base_rate: float
    influence: DoubleArray


def skill_of(target: Target, rows: Rows, outputs: npt.NDArray[np.floating]) -> Skill:
    """Skill of a model with `outputs` [len(rows), width] on `rows`."""
    known = ~np.isnan(target.values[rows])
    truth = target.values[rows][known]
    measure = {"number": _r2, "binary": _precision_gain, "category": _accuracy_gain}[target.kind]
    value, base_rate, derivative = measure(truth, np.asarray(outputs[known], dtype=np.float64))
    influence = np.zeros(len(rows))
    influence[known] = derivative
    return Skill(value=value, base_rate=base_rate, influence=influence)


def _r2(truth: DoubleArray, outputs: DoubleArray) -> tuple[float, float, DoubleArray]:
    errors, deviations = np.square(truth - outputs[:, 0]), np.square(truth - truth.mean())
    mse, variance = errors.mean(), deviations.mean()
    influence = (mse * (deviations - variance) / variance - (errors - mse)) / (variance * len(truth))
    return 1 - float(mse / variance), 0.0, influence


def _accuracy_gain(truth: DoubleArray, logits: DoubleArray) -> tuple[float, float, DoubleArray]:
    commonest = np.bincount(truth.astype(np.int64)).argmax()
    hits = (logits.argmax(axis=1) == truth).astype(np.float64)
    base = (truth == commonest).astype(np.float64)
    influences = (hits - hits.mean()) / len(truth), (base - base.mean()) / len(truth)
    return _gain(float(hits.mean()), float(base.mean()), *influences)


def _precision_gain(truth: DoubleArray, outputs: DoubleArray) -> tuple[float, float, DoubleArray]:
    value, influence = average_precision(truth, outputs[:, 0])
    base = float(truth.mean())
    return _gain(value, base, influence, (truth - base) / len(truth))


def average_precision(truth: DoubleArray, scores: DoubleArray) -> tuple[float, DoubleArray]:
    """Average precision of `scores` [N] for `truth` [N] in {0, 1}, and its influence [N].

    With y_g ones at the threshold g, and n_g rows of which a share p_g are ones at it or above: AP = sum_g y_g p_g / P.
    A row of truth y at the threshold h moves p_g of every g from h on by (y - p_g) / n_g.
    """
    order = np.argsort(-scores, kind="stable")
    ones, descending = truth[order], -scores[order]
    first, last = (np.searchsorted(descending, descending, side=side) for side in ("left", "right"))
    precision = np.cumsum(ones)[last - 1] / last
    total = ones.sum()
    value = float(ones @ precision / total)
    by_one, by_any = (_sums_from(ones * weight / last)[first] for weight in (np.ones(len(ones)), precision))
    influence = np.empty(len(truth))
    influence[order] = (ones * (precision + by_one - value) - by_any) / total
    return value, influence


def _sums_from(values: DoubleArray) -> DoubleArray:
    """Sum from each place to the end."""
    return np.cumsum(values[::-1])[::-1]


def _gain(
    score: float, base: float, score_influence: DoubleArray, base_influence: DoubleArray
) -> tuple[float, float, DoubleArray]:
    """(score - base) / (1 - base) with its influence; 0 where all rows are of one class."""
    room = 1 - base
    if room <= 0:
        return 0.0, base, np.zeros(len(score_influence))
    influence = score_influence / room + (score - 1) / room**2 * base_influence
    return (score - base) / room, base, influence
