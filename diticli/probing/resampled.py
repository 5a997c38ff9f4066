"""The metrics of `diticli.probing.metrics` on many resamples of the rows at once.

Shape suffixes: N rows, B resamples, P rows whose truth is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from diticli.probing.targets import Target
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Bootstrap, Interval, interval, mean_of
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
    known = ~np.isnan(target.values[rows])
    truth, outputs = target.values[rows][known], outputs[known]
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
