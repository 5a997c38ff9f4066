"""Scores of predictions that several metrics share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from diticli.types import DoubleArray


def mean_auroc(truth: DoubleArray, scores_NC: DoubleArray, classes: DoubleArray) -> float:
    """AUROC of each class against the rest, averaged over the classes that `truth` [N] has.

    Args:
        truth: [N] class codes, at least two different ones.
        scores_NC: [N, C] higher means more likely of that class.
        classes: [C] codes of the columns.
    """
    found = [column for column, label in enumerate(classes) if 0 < np.mean(truth == label) < 1]
    values = [roc_auc_score(truth == classes[column], scores_NC[:, column]) for column in found]
    return float(np.mean(values)) if values else 0.5


def column_aurocs(values_ND: DoubleArray, positive: npt.NDArray[np.bool_]) -> DoubleArray:
    """[D] AUROC of each column for `positive` [N], in whichever direction is better: in [0.5, 1].

    The same as `sklearn.metrics.roc_auc_score` column by column, from mean ranks (Mann-Whitney).
    """
    count, positives = len(positive), int(positive.sum())
    sums = np.array([_mid_ranks(column)[positive].sum() for column in values_ND.T])
    areas = (sums - positives * (positives + 1) / 2) / (positives * (count - positives))
    return np.maximum(areas, 1 - areas)


def _mid_ranks(values: DoubleArray) -> DoubleArray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
