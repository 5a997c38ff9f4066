"""One number for each chunk, by the rule of papers with vectors as units: its first principal component.

Du et al., "Unsupervised Learning of Compositional Energy Concepts", NeurIPS 2021 (arXiv 2111.03042), and after them
Yang et al., "DisDiff", NeurIPS 2023 (arXiv 2301.13721): a unit that is a vector is replaced by its first principal
component before scores that are made for scalars. What a chunk holds beside its largest direction is lost.

Legend of shape suffixes: N rows, D dims, K chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diticli.disentanglement.feature_statistics import check_width
from diticli.types import FloatArray, Rows

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout


def first_components(values_ND: FloatArray, layout: ChunkLayout, train: Rows) -> FloatArray:
    """[N, K] coordinate of each row along the first principal axis of each chunk's dims.

    The axes are those of the training rows; dims are centred, not rescaled, as in the papers. The sign is that of the
    axis's largest weight.

    Raises:
        FeatureFileError: for a layout of another width.
    """
    check_width(values_ND.shape[1], layout)
    columns = []
    for own_ND in np.split(values_ND, layout.ends[:-1], axis=1):
        own = own_ND.astype(np.float64)
        centred = own - own[train].mean(axis=0)
        axis = np.linalg.eigh(centred[train].T @ centred[train])[1][:, -1]
        columns.append(centred @ (axis * np.sign(axis[np.abs(axis).argmax()])))
    return np.stack(columns, axis=1).astype(np.float32)
