"""Scores of one attribute on held-out rows; never NaN for truth that varies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from diticli.targets import Target
from diticli.types import DoubleArray, Rows


@dataclass(frozen=True, kw_only=True)
class Score:
    """Scores of one attribute: the main metric and others.

    Attributes:
        metric: name of the main metric.
        value: its value, higher is better.
        base_rate: the value of a model that knows nothing; 0 for a correlation.
        extras: other metrics by name.
    """

    metric: str
    value: float
    base_rate: float
    extras: dict[str, float] = field(default_factory=dict)


def binary_score(truth: DoubleArray, scores: DoubleArray) -> Score:
    """Average precision of `scores` [N] for `truth` [N] in {0, 1}; the base rate is the share of ones."""
    return Score(
        metric="average_precision",
        value=float(average_precision_score(truth, scores)),
        base_rate=float(truth.mean()),
        extras={"roc_auc": float(roc_auc_score(truth, scores))},
    )


def number_score(truth: DoubleArray, predicted: DoubleArray, *, scale: float) -> Score:
    """Pearson r of `predicted` [N], with MSE and R2.

    Args:
        truth: [N] in the label's unit.
        predicted: [N] in the same unit.
        scale: standard deviation of the training targets; `mse` is in units of its square, `mse_raw` is not.
    """
    mse = float(np.mean(np.square(truth - predicted)))
    deviations = truth.std() * predicted.std()
    covariance = float(np.mean((truth - truth.mean()) * (predicted - predicted.mean())))
    return Score(
        metric="pearson_r",
        value=float(np.clip(covariance / deviations, -1, 1)) if deviations > 0 else 0.0,
        base_rate=0.0,
        extras={"r2": 1 - mse / float(truth.var()), "mse": mse / scale**2, "mse_raw": mse},
    )


def category_score(truth: npt.NDArray[np.int64], logits: DoubleArray) -> Score:
    """Accuracy of the largest of `logits` [N, C] for `truth` [N]; base rate: the commonest class's share."""
    return Score(
        metric="accuracy",
        value=float(np.mean(logits.argmax(axis=1) == truth)),
        base_rate=float(np.bincount(truth).max() / len(truth)),
    )


def score(target: Target, rows: Rows, outputs: DoubleArray) -> Score:
    """Score of a model's `outputs` [len(rows), width] for a target; rows of unknown value do not count."""
    known = ~np.isnan(target.standard[rows])
    truth, outputs = target.standard[rows][known], outputs[known]
    if target.kind == "binary":
        return binary_score(truth, outputs[:, 0])
    if target.kind == "category":
        return category_score(truth.astype(np.int64), outputs)
    raw = (values * target.scale + target.offset for values in (truth, outputs[:, 0]))
    return number_score(*raw, scale=target.scale)


def merit(target: Target, rows: Rows, outputs: DoubleArray) -> float:
    """What the validation rows choose by: the metric, but the error itself for numbers."""
    found = score(target, rows, outputs)
    return -found.extras["mse"] if target.kind == "number" else found.value
