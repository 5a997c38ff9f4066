"""Nearest neighbours of a picture in a feature file, by all chunks or by chosen ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diticli.errors import FeatureFileError
from diticli.features.read import read_features

NEAREST = 8


class Neighbours:
    """Features of a file, standardised.

    Args:
        path: of `diti encode`.
        latent_dim: d of the model.

    Raises:
        FeatureFileError: when it cannot be read, or holds features of another width.
    """

    def __init__(self, path: Path, latent_dim: int) -> None:
        found = read_features(path)
        self._z = np.asarray(found.values, dtype=np.float32)
        if self._z.shape[1] != latent_dim:
            raise FeatureFileError(
                f"{path} holds {self._z.shape[1]} features a picture, the model has {latent_dim}.",
                remedy="Encode the pictures with this model.",
            )
        self._files = tuple(map(str, range(len(self._z)))) if found.meta is None else found.meta.files
        self._scale = self._z.std(axis=0) + 1e-6

    def find(self, z: torch.Tensor, dims: npt.NDArray[np.int64]) -> list[tuple[str, float]]:
        """The nearest pictures and their distances, in standard deviations a dim.

        Args:
            z: [D] features.
            dims: which of them count.
        """
        gap = (self._z[:, dims] - z.numpy()[dims]) / self._scale[dims]
        far = np.sqrt(np.mean(np.square(gap), axis=1))
        return [(self._files[row], float(far[row])) for row in np.argsort(far, kind="stable")[:NEAREST]]
