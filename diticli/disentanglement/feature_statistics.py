"""Statistics of features that need no labels: which dims hold the variance, and how chunks share it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diticli.errors import FeatureFileError
from diticli.types import DoubleArray

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.features.rows import FeatureRows


ACTIVE_SHARE = 0.01
"""A dimension is active from this share of the mean variance of all dimensions."""
_BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class ChunkStatistics:
    """Statistics of one chunk's features.

    Attributes:
        dims: it owns.
        active_dims: of them.
        variance: summed over its dims.
        share: of the variance of all chunks.
        effective_rank: of its covariance, from 1 to `dims`; 0 when constant.
    """

    dims: int
    active_dims: int
    variance: float
    share: float
    effective_rank: float


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """All statistics of N rows of d features.

    Attributes:
        rows: N.
        dims: d.
        active_dims: dims with at least 1 % of the mean variance. (Burda et al., ICLR 2016, count
            variances above 0.01, for codes whose prior has variance 1; a share needs no prior.)
        variance: summed over dims.
        effective_rank: exp of the entropy of the covariance's eigenvalues, each divided by their sum (Roy and Vetterli,
            EUSIPCO 2007, definition 1, on eigenvalues in place of singular values); from 1 to d.
        participation_ratio: (sum of eigenvalues)^2 / sum of their squares, from 1 to d.
        chunks: [K] one entry per chunk; empty without a layout.
        chunk_correlation: [K][K] RV coefficient of each two chunks: ||C_ab||_F^2 / (||C_aa||_F ||C_bb||_F) with the
            blocks C_ab of the covariance (Robert and Escoufier, 1976); it equals linear CKA (Kornblith et al., ICML
            2019, equation 4, linear kernel). 0 unrelated, 1 equal up to rotation and scale; a constant chunk has zeros.
        mean_chunk_correlation: over pairs of different chunks; None with fewer than two.
    """

    rows: int
    dims: int
    active_dims: int
    variance: float
    effective_rank: float
    participation_ratio: float
    chunks: tuple[ChunkStatistics, ...]
    chunk_correlation: tuple[tuple[float, ...], ...]
    mean_chunk_correlation: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form: only finite numbers, None, tuples and dictionaries."""
        return asdict(self)


def measure_statistics(codes_ND: FeatureRows, layout: ChunkLayout | None = None) -> FeatureStatistics:
    """Statistics of raw features, in their own scale.

    Args:
        codes_ND: float32 [N, d], read in blocks; may be a memory map or the rows of shards.
        layout: adds statistics of chunks.

    Raises:
        FeatureFileError: fewer than two rows, values that are not finite, no dimension that varies, or a layout of
            another width.
    """
    rows, dims = codes_ND.shape
    if layout is not None:
        check_width(dims, layout)
    covariance = _covariance(codes_ND)
    variances = np.diag(covariance)
    if variances.sum() == 0:
        raise FeatureFileError(f"All {dims} features are constant.", remedy="Check the model that made them.")
    active = variances >= ACTIVE_SHARE * variances.mean()
    slices = [] if layout is None else [slice(*ends) for ends in zip(layout.starts, layout.ends, strict=True)]
    correlation = _correlation(covariance, slices)
    return FeatureStatistics(
        rows=rows,
        dims=dims,
        active_dims=int(active.sum()),
        variance=float(variances.sum()),
        effective_rank=effective_rank(covariance),
        participation_ratio=float(variances.sum() ** 2 / np.square(covariance).sum()),
        chunks=tuple(_chunk(covariance, active, part) for part in slices),
        chunk_correlation=tuple(map(tuple, correlation.tolist())),
        mean_chunk_correlation=_mean_of_pairs(correlation),
    )


def effective_rank(covariance: DoubleArray) -> float:
    """exp(-sum p ln p) over the eigenvalues of `covariance` [D, D], p being their shares; 0 for a zero matrix."""
    values = np.linalg.eigvalsh(covariance).clip(min=0)
    if values.sum() == 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares))))


def check_width(dims: int, layout: ChunkLayout) -> None:
    """Raise `FeatureFileError` when `layout` is not one of features of `dims` dimensions."""
    if layout.latent_dim != dims:
        raise FeatureFileError(
            f"The chunks cover {layout.latent_dim} dimensions, the features have {dims}.",
            remedy="Give the layout of the model that made the features.",
        )


def _covariance(codes: FeatureRows) -> DoubleArray:
    """Two passes in float64: one over the mean first, so that large means cost no digits."""
    rows, dims = codes.shape
    if rows < 2:
        raise FeatureFileError(f"{rows} rows of features have no variance.", remedy="Give at least two.")
    starts = range(0, rows, _BLOCK_ROWS)
    mean = sum((_block(codes, start).sum(axis=0) for start in starts), np.zeros(dims)) / rows
    if not np.isfinite(mean).all():
        raise FeatureFileError("Some features are not finite.", remedy="Encode these images again.")
    gram = np.zeros((dims, dims))
    for start in starts:
        centred = _block(codes, start) - mean
        gram += centred.T @ centred
    gram[:, _constant(gram, mean, rows)] = 0
    gram[_constant(gram, mean, rows)] = 0
    return gram / (rows - 1)


def _constant(gram: DoubleArray, mean: DoubleArray, rows: int) -> npt.NDArray[np.bool_]:
    """Deviations that float32 cannot tell from rounding."""
    return np.sqrt(np.diag(gram) / rows) <= 1e-6 * np.abs(mean)


def _block(codes: FeatureRows, start: int) -> DoubleArray:
    return np.asarray(codes[start : start + _BLOCK_ROWS], dtype=np.float64)


def _chunk(covariance: DoubleArray, active: npt.NDArray[np.bool_], part: slice) -> ChunkStatistics:
    own = covariance[part, part]
    return ChunkStatistics(
        dims=len(own),
        active_dims=int(active[part].sum()),
        variance=float(np.trace(own)),
        share=float(np.trace(own) / np.trace(covariance)),
        effective_rank=effective_rank(own),
    )


def _correlation(covariance: DoubleArray, slices: list[slice]) -> DoubleArray:
    norms = np.zeros((len(slices), len(slices)))
    for row, a in enumerate(slices):
        norms[row] = [np.square(covariance[a, b]).sum() for b in slices]
    scale = np.sqrt(np.outer(np.diag(norms), np.diag(norms)))
    return np.divide(norms, scale, out=np.zeros_like(norms), where=scale > 0)


def _mean_of_pairs(correlation: DoubleArray) -> float | None:
    if len(correlation) < 2:
        return None
    return float(correlation[np.triu_indices(len(correlation), k=1)].mean())
