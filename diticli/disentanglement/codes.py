"""Features ready for disentanglement metrics: standardised training and test rows, and the dims of each unit.

Shape suffixes: N rows, D dims that vary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diticli.errors import FeatureFileError
from diticli.targets import Target
from diticli.types import DoubleArray, Rows

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.features.rows import FeatureRows


_CONSTANT = 1e-6


@dataclass(frozen=True, kw_only=True)
class FactorRows:
    """A code and one factor, on the rows where the factor is known.

    Attributes:
        kind: of the factor.
        x_train: [N, D] codes, standardised by all training rows.
        y_train: [N] values.
        x_test: [M, D].
        y_test: [M].
    """

    kind: str
    x_train: DoubleArray
    y_train: DoubleArray
    x_test: DoubleArray
    y_test: DoubleArray


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Features (the code) on training and on test rows.

    Attributes:
        train_rows: row numbers of `train`.
        test_rows: row numbers of `test`.
        train: [N, D] standardised.
        test: [M, D] standardised by the training rows.
        dims: [D] the dims that vary over the training rows, by their number in the whole code.
        ranges: [D] largest less least value of these dims over the training rows, not standardised.
        groups: for every chunk with such a dim, the positions of its dims among `dims`.
        chunks: the numbers of these chunks.
    """

    train_rows: Rows
    test_rows: Rows
    train: DoubleArray
    test: DoubleArray
    dims: Rows
    ranges: DoubleArray
    groups: tuple[Rows, ...]
    chunks: tuple[int, ...]

    def known_rows(self, factor: Target) -> FactorRows:
        """The rows where `factor` is known."""
        parts = []
        for codes, rows in ((self.train, self.train_rows), (self.test, self.test_rows)):
            values = factor.values[rows]
            known = ~np.isnan(values)
            parts += [codes if known.all() else codes[known], values[known]]
        return FactorRows(kind=factor.kind, x_train=parts[0], y_train=parts[1], x_test=parts[2], y_test=parts[3])


def make_codes(codes: FeatureRows, train: Rows, test: Rows, layout: ChunkLayout | None) -> Codes:
    """Read and standardise the two parts.

    Raises:
        FeatureFileError: values that are not finite, or no dim that varies.
    """
    raw = [np.asarray(codes[rows], dtype=np.float64) for rows in (train, test)]
    if not all(np.isfinite(part).all() for part in raw):
        raise FeatureFileError("Some features are not finite.", remedy="Encode these images again.")
    mean, std = raw[0].mean(axis=0), raw[0].std(axis=0)
    varies = std > _CONSTANT * np.abs(mean)
    if not varies.any():
        raise FeatureFileError(
            f"All {len(std)} features are constant over the {len(train)} training rows.",
            remedy="Check the model that made them.",
        )
    dims = np.flatnonzero(varies)
    chunk_of = np.searchsorted(layout.ends, dims, side="right") if layout is not None else np.zeros(0, dtype=np.int64)
    chunks = np.unique(chunk_of)
    standard = [(part[:, dims] - mean[dims]) / std[dims] for part in raw]
    return Codes(
        train_rows=train,
        test_rows=test,
        train=standard[0],
        test=standard[1],
        dims=dims,
        ranges=np.ptp(raw[0][:, dims], axis=0),
        groups=tuple(np.flatnonzero(chunk_of == chunk) for chunk in chunks),
        chunks=tuple(chunks.tolist()),
    )


def discrete(factor: Target, parts: int, train: Rows) -> Target:
    """The factor with classes for values, NaN where unknown; a number is cut at the `parts` quantiles of `train`."""
    if factor.kind != "number":
        return factor
    known = factor.values[factor.known(train)]
    edges = np.unique(np.quantile(known, np.arange(1, parts) / parts))
    edges = edges[edges > known.min()]  # an edge at the minimum would leave an empty class below it
    if not len(edges):
        edges = known[known > known.min()].min(keepdims=True)
    cut = np.searchsorted(edges, factor.values, side="right").astype(np.float64)
    return replace(factor, kind="category", values=np.where(np.isnan(factor.values), np.nan, cut))
