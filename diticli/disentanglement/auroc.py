"""AUROC of single units, which several metrics share, and the total AUROC difference (TAD).

TAD: Yeats, Liu, Womble and Li, "NashAE: Disentangling Representations Through Adversarial Covariance Minimization",
ECCV 2022 (arXiv 2209.10677), as in the authors' evaluation on CelebA: a unit predicts a binary attribute with AUROC
max(a, 1 - a); an attribute is captured when its best unit reaches 0.75 and no other attribute takes away more than a
fifth of its entropy; TAD = sum over captured attributes of (best AUROC - second best).

A number is cut at its median (ours); a category is left out. A copy of independent factors gets half their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.metrics import mutual_info_score, roc_auc_score

from diticli.disentanglement.information import top_gap
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


CAPTURED_AUROC = 0.75
MAX_ENTROPY_REDUCTION = 0.2


def captured_attributes(aurocs_UA: DoubleArray, reductions: Sequence[float]) -> npt.NDArray[np.bool_]:
    """[A] which attributes count.

    Args:
        aurocs_UA: [units, attributes] in [0.5, 1].
        reductions: [A] of `entropy_reductions`.
    """
    return (aurocs_UA.max(axis=0) >= CAPTURED_AUROC) & (np.asarray(reductions) <= MAX_ENTROPY_REDUCTION)


def total_auroc_difference(aurocs_UA: DoubleArray, captured: npt.NDArray[np.bool_]) -> float | None:
    """TAD in [0, A / 2]; None for fewer than two units."""
    if len(aurocs_UA) < 2:
        return None
    return float(sum(top_gap(column) or 0.0 for column in aurocs_UA.T[captured]))


def entropy_reductions(attributes_NA: DoubleArray) -> list[float]:
    """[A] the largest share of each attribute's entropy that another attribute explains.

    Args:
        attributes_NA: [rows, attributes] 0, 1, or NaN where unknown; pairs are counted where both are known.
    """
    count = attributes_NA.shape[1]
    return [max((_reduction(attributes_NA, a, b) for b in range(count) if b != a), default=0.0) for a in range(count)]


def _reduction(attributes: DoubleArray, explained: int, by: int) -> float:
    pair = attributes[:, [explained, by]]
    pair = pair[~np.isnan(pair).any(axis=1)].astype(np.int64)
    entropy = mutual_info_score(pair[:, 0], pair[:, 0]) if len(pair) else 0.0
    return float(mutual_info_score(pair[:, 0], pair[:, 1]) / entropy) if entropy > 0 else 0.0
