"""Mutual information between units and factors, counted on histograms, in nats."""

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
