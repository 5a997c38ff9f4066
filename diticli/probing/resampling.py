"""Scores on resamples of the test rows: all metrics exactly, or one measure to first order for thousands of models.

`resample_scores` gives the metrics of `diticli.probing.metrics` on many resamples at once.

`skill_of` is one scale for all kinds: 0 for a model that knows nothing and 1 for one that knows all. It is R2 of
numbers, and (score - base rate) / (1 - base rate) with the average precision of binary attributes and the accuracy of
categories. A row's influence is the derivative of the skill by the row's weight. The skill of a resample is then, to
first order, skill + counts @ influence (the infinitesimal jackknife: Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 22), which makes 1,000 resamples of thousands of models one matrix product.

Shape suffixes: N rows, B resamples, P rows whose truth is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from diticli.data.label_columns import Kind
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Bootstrap, Interval, interval, mean_of
from diticli.targets import Target
from diticli.types import DoubleArray, FloatArray, Rows

Resampled = dict[str, DoubleArray]
"""Metric -> [B] its value on every resample, NaN where that has too few rows to tell."""
_Scorer = Callable[[FloatArray], Resampled]


def resample_scores(
    targets: Sequence[Target],
    rows: Rows,
    outputs: Mapping[str, DoubleArray],
    draws: Bootstrap,
    reporter: Reporter | None = None,
) -> dict[str, Resampled]:
    """Scores of every target on every resample, by name; empty when nothing can be resampled.

    Args:
        targets: what the models predict.
        rows: [N] the rows that `draws` draws.
        outputs: name of a target -> [N, width] outputs of its model.
        draws: which rows, the same for all targets.
        reporter: receiver of progress, in resamples.
    """
    if not draws.usable:
        return {}
    scorers = {target.name: _scorer(target, rows, outputs[target.name]) for target in targets}
    found: dict[str, list[Resampled]] = {name: [] for name in scorers}
    reporter = reporter or SilentReporter()
    reporter.start("Resampling test rows", draws.resamples, unit="resamples")
    for weights_BN in draws.blocks():
        for name, scorer in scorers.items():
            found[name].append(scorer(weights_BN))
        reporter.advance(len(weights_BN))
    reporter.finish()
    return {
        name: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for name, parts in found.items()
    }


def intervals_of(resampled: Mapping[str, DoubleArray]) -> dict[str, Interval]:
    """Interval of each metric that has one."""
    intervals = {metric: interval(values_B) for metric, values_B in resampled.items()}
    return {metric: found for metric, found in intervals.items() if found is not None}


def mean_intervals_of(many: Sequence[Resampled]) -> dict[str, Interval]:
    """Interval of the mean over attributes of each metric, rows resampled jointly."""
    return intervals_of({metric: mean_of([one[metric] for one in many]) for metric in many[0]}) if many else {}


def _scorer(target: Target, rows: Rows, outputs: DoubleArray) -> _Scorer:
    known = ~np.isnan(target.standard[rows])
    truth, outputs = target.standard[rows][known], outputs[known]
    if target.kind == "binary":
        score = _binary(truth, outputs[:, 0])
    elif target.kind == "number":
        score = _number(truth, outputs[:, 0], scale=target.scale)
    else:
        score = _category(truth, outputs)
    return score if known.all() else lambda weights_BN: score(weights_BN[:, known])


def _category(truth: DoubleArray, logits: DoubleArray) -> _Scorer:
    correct = (logits.argmax(axis=1) == truth).astype(np.float64)
    moments = np.stack([np.ones(len(truth)), correct], axis=1)

    def score(weights_BN: FloatArray) -> Resampled:
        with np.errstate(invalid="ignore"):
            total, hits = (weights_BN @ moments).T
            return {"accuracy": hits / total}

    return score


def _number(truth: DoubleArray, predicted: DoubleArray, *, scale: float) -> _Scorer:
    """All metrics are functions of seven moments; both variables are centred first, for precision."""
    error = truth - predicted
    y, p = truth - truth.mean(), predicted - predicted.mean()
    moments = np.stack([np.ones(len(y)), y, p, y * y, p * p, y * p, error * error], axis=1)

    def score(weights_BN: FloatArray) -> Resampled:
        with np.errstate(invalid="ignore", divide="ignore"):
            total, *sums = (weights_BN @ moments).T
            y1, p1, yy, pp, yp, mse = (one / total for one in sums)
            var_y, var_p = (np.maximum(square - mean * mean, 0) for square, mean in ((yy, y1), (pp, p1)))
            deviations = np.sqrt(var_y * var_p)
            floor = 1e-12 * float(y.var())
            r = np.where(deviations > 0, np.clip((yp - y1 * p1) / deviations, -1, 1), 0.0)
            varies = var_y > floor
            return {
                "pearson_r": np.where(varies, r, np.nan),
                "r2": np.where(varies, 1 - mse / var_y, np.nan),
                "mse": mse,
                "mse_raw": mse * scale**2,
            }

    return score


def _binary(truth: DoubleArray, scores: DoubleArray) -> _Scorer:
    """Rows are sorted once, then only the P ones count; equal scores are one threshold, as in scikit-learn."""
    order = np.argsort(-scores, kind="stable")
    descending = -scores[order]
    ones = np.flatnonzero(truth[order])
    first, last = (np.searchsorted(descending, descending[ones], side=side) for side in ("left", "right"))
    ones_before, ones_until = np.searchsorted(ones, first), np.searchsorted(ones, last)

    def score(weights_BN: FloatArray) -> Resampled:
        sorted_BN = np.take(weights_BN, order, axis=1)
        own_BP = sorted_BN[:, ones]
        rows_above, ones_above = _sums_before(sorted_BN), _sums_before(own_BP)
        true_BP, all_BP = ones_above[:, ones_until], rows_above[:, last]
        false_BP = (all_BP - true_BP + rows_above[:, first] - ones_above[:, ones_before]) / 2
        positives = ones_above[:, -1].astype(np.float64)
        negatives = rows_above[:, -1] - positives
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = _sum_of(own_BP, true_BP / np.maximum(all_BP, 1)) / positives
            area = 1 - _sum_of(own_BP, false_BP) / (positives * negatives)
        return {"average_precision": precision, "roc_auc": area}

    return score


def _sums_before(counts_BN: FloatArray) -> FloatArray:
    """[B, N + 1] sums of the first 0..N; exact in float32 up to 2^24 rows."""
    sums = np.zeros((counts_BN.shape[0], counts_BN.shape[1] + 1), dtype=np.float32)
    np.cumsum(counts_BN, axis=1, out=sums[:, 1:])
    return sums


def _sum_of(counts_BP: FloatArray, values_BP: npt.NDArray[np.floating]) -> DoubleArray:
    return np.einsum("bp,bp->b", counts_BP, values_BP, dtype=np.float64)


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
    known = ~np.isnan(target.standard[rows])
    truth = target.standard[rows][known]
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
