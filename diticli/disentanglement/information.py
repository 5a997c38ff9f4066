"""Mutual information of units and factors on histograms, in nats: the mutual information gap, and modularity.

MIG: Chen et al., "Isolating Sources of Disentanglement in VAEs", NeurIPS 2018 (arXiv 1802.04942), equation 6: MIG =
mean over factors of (I(best unit; factor) - I(second best; factor)) / H(factor). Histograms of 20 bins as in Locatello
et al., "Challenging Common Assumptions", ICML 2019 (arXiv 1811.12359). A copy of the factors gets 1 less the counting
noise, a code without information 0.

Modularity: does each unit share information with one factor only?

Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss", NeurIPS 2018 (arXiv 1802.05312),
section 3: a unit u with its largest information at factor f deviates from the ideal (that value for f, 0 elsewhere) by
delta_u = sum over g != f of I(u; g)^2 / (I(u; f)^2 (F - 1)); modularity = mean over units of 1 - delta_u.

A copy of the factors gets 1 less the counting noise; a unit that shares as much with every factor gets 0, and so does
one that shares nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from diticli.types import DoubleArray

Labels = npt.NDArray[np.int64]

BINS = 20
"""Bins of a unit, and of a factor that is a number: the number used by Locatello et al. (ICML 2019)."""
_ROWS_PER_CELL = 5


def bin_count(rows: int) -> int:
    """At most `BINS`, fewer where a table of bins by bins would have under five rows a cell: counting noise reads as
    information, about (bins - 1)^2 / (2 rows) nats."""
    return max(2, min(BINS, math.isqrt(rows // _ROWS_PER_CELL)))


def bin_columns(values_ND: DoubleArray, bins: int) -> Labels:
    """[N, D] bin of each value, 0..bins-1: `bins` equal widths from each column's least value to its largest."""
    binned = np.empty(values_ND.shape, dtype=np.int64)
    for column, values in enumerate(values_ND.T):
        edges = np.histogram_bin_edges(values, bins)
        binned[:, column] = np.digitize(values, edges[1:-1])
    return binned


def mutual_information(binned_ND: Labels, labels: Labels) -> DoubleArray:
    """[D] mutual information of each column of `binned_ND` with `labels` [N], both from 0 on.

    The same as `sklearn.metrics.mutual_info_score` column by column, with one count for all columns.
    """
    rows, columns = binned_ND.shape
    bins, classes = int(binned_ND.max()) + 1, int(labels.max()) + 1
    cells = (np.arange(columns) * bins + binned_ND) * classes + labels[:, None]
    joint = np.bincount(cells.ravel(), minlength=columns * bins * classes).reshape(columns, bins, classes) / rows
    independent = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    terms = joint * np.log(np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0))
    return terms.sum(axis=(1, 2)).clip(min=0)


def entropy(labels: Labels) -> float:
    """Entropy of `labels` [N] in nats."""
    shares = np.bincount(labels) / len(labels)
    shares = shares[shares > 0]
    return float(-np.sum(shares * np.log(shares)))


def factor_labels(kind: str, values: DoubleArray) -> Labels:
    """[N] what a factor's information is counted on: its classes, or the bins of a number."""
    if kind != "number":
        return values.astype(np.int64)
    return bin_columns(values[:, None], bin_count(len(values)))[:, 0]


def top_gap(scores: DoubleArray) -> float | None:
    """Largest of `scores` [units] minus the second largest; None for fewer than two units."""
    if len(scores) < 2:
        return None
    second, first = np.sort(scores)[-2:]
    return float(first - second)


def mean_or_none(values: list[float | None]) -> float | None:
    """Mean of the values that are defined; None when none is."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def mutual_information_gaps(shares_UF: DoubleArray) -> list[float | None]:
    """[F] the gap of each factor.

    Args:
        shares_UF: [units, factors] mutual information in shares of the factor's entropy.
    """
    return [top_gap(column) for column in shares_UF.T]


def mutual_information_gap(shares_UF: DoubleArray) -> float | None:
    """MIG in [0, 1]; None for fewer than two units."""
    return mean_or_none(mutual_information_gaps(shares_UF))


def modularity(information_UF: DoubleArray) -> float | None:
    """Modularity in [0, 1] of mutual information [units, factors] in nats; None for fewer than two factors."""
    if information_UF.shape[1] < 2:
        return None
    squares = np.square(information_UF)
    largest = squares.max(axis=1)
    others = (squares.sum(axis=1) - largest) / (squares.shape[1] - 1)
    deviations = np.divide(others, largest, out=np.ones_like(largest), where=largest > 0)
    return float(np.mean(1 - deviations))
