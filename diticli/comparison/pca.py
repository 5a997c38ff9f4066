"""Principal components of raw pixels, fitted on training rows only."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from diticli.features.rows import FeatureRows
from diticli.types import FloatArray, Rows

FIT_ROWS = 20_000
"""Training rows that the axes are fitted on, drawn at random where there are more: memory stays bounded."""
_BLOCK = 4096


def pca_features(values: FeatureRows, rows: Rows, train: Rows, dims: int, *, seed: int = 0) -> FloatArray:
    """Coordinates [M, at most dims] of `values[rows]` along the principal axes of the training rows.

    Args:
        values: float32 [N, P] pixels.
        rows: [M] rows to project.
        train: which of 0..M-1 the axes are fitted on.
        dims: number of axes; fewer where pixels or training rows are fewer.
        seed: of the draw of training rows, where there are more than `FIT_ROWS`.
    """
    if len(train) > FIT_ROWS:
        train = np.sort(np.random.default_rng(seed).choice(train, FIT_ROWS, replace=False))
    dims = min(dims, max(1, len(train) - 1), values.shape[1])  # centred rows span one dimension less than there are
    pca = PCA(dims, svd_solver="covariance_eigh" if len(train) > values.shape[1] else "full")
    pca.fit(np.asarray(values[rows[train]], dtype=np.float32))
    parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([pca.transform(np.asarray(values[part], dtype=np.float32)) for part in parts]).astype(
        np.float32
    )
