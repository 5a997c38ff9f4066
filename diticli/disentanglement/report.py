"""Results of the disentanglement metrics, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diticli.data.label_columns import Kind
from diticli.targets import SkippedTarget


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """Scores of a code whose units are its dims, or its chunks. None: the metric is undefined for this code.

    Higher is better throughout. 1 is perfect, except for `tad`, which counts attributes.

    Attributes:
        units: units that vary over the training rows; the others count for nothing.
        disentanglement: DCI, boosted trees: does each unit predict one factor?
        completeness: DCI, boosted trees: is each factor predicted by one unit?
        linear_disentanglement: the same from lasso weights, None also where the lasso predicts no factor.
        linear_completeness: likewise.
        mig: mutual information gap.
        sap: separated attribute predictability.
        factor_vae: FactorVAE score; `factor_vae_chance` is what a code without information gets.
        factor_vae_chance: one over the number of factors in it.
        modularity: of Ridgeway and Mozer.
        info_modularity: InfoM of InfoMEC.
        info_compactness: InfoC of InfoMEC.
        tad: total AUROC difference, summed over `captured`.
        captured: attributes that one unit predicts with AUROC 0.75 or more.
        considered: how many attributes `captured` was chosen from.
    """

    units: int
    disentanglement: float | None
    completeness: float | None
    linear_disentanglement: float | None
    linear_completeness: float | None
    mig: float | None
    sap: float | None
    factor_vae: float | None
    factor_vae_chance: float | None
    modularity: float | None
    info_modularity: float | None
    info_compactness: float | None
    tad: float | None
    captured: tuple[str, ...]
    considered: int


@dataclass(frozen=True, kw_only=True)
class FactorScores:
    """Shares of one factor in the scores.

    Attributes:
        name: of the factor.
        kind: "binary", "number" or "category"; a category of two classes counts as binary.
        informativeness: what boosted trees predict on test rows: R2 of numbers, 2 AUROC - 1 of classes; at least 0.
        explicitness: AUROC of a linear classifier, mean over classes; 0.5 is chance.
        info_explicitness: its part of InfoE, the share of its entropy that a logistic regression explains.
        best_dim: the dim that shares most information with it.
        best_chunk: likewise, the chunk whose linear readout does; None without chunks.
        dim_mig: its gap, in shares of its entropy; None where undefined.
        chunk_mig: likewise.
        dim_sap: its gap in predictability; None where undefined.
        chunk_sap: likewise.
        chunk_information: [K] mutual information with each chunk's linear readout, in shares of its entropy.
        not_converged: which of "lasso", "explicitness" and "InfoE" stopped at the limit of iterations and may be off.
    """

    name: str
    kind: Kind
    informativeness: float
    explicitness: float
    info_explicitness: float
    best_dim: int
    best_chunk: int | None
    dim_mig: float | None
    chunk_mig: float | None
    dim_sap: float | None
    chunk_sap: float | None
    chunk_information: tuple[float, ...]
    not_converged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DisentanglementReport:
    """Scores of a code against known factors.

    Attributes:
        dims: every dimension of the code is a unit.
        chunks: every chunk is a unit; None without a layout or with a single chunk.
        informativeness: mean over factors, in [0, 1].
        explicitness: mean over factors, in [0.5, 1] up to noise.
        info_explicitness: InfoE of InfoMEC, mean over factors, in [0, 1].
        factors: in the order of the columns.
        skipped: columns that could not be used.
        train_rows: rows that fitted and that mutual information and AUROC of single dims were counted on.
        test_rows: rows that scored what was fitted.
        seed: of every draw.
    """

    dims: UnitScores
    chunks: UnitScores | None
    informativeness: float
    explicitness: float
    info_explicitness: float
    factors: tuple[FactorScores, ...]
    skipped: tuple[SkippedTarget, ...]
    train_rows: int
    test_rows: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form: only strings, finite numbers, None, tuples and dictionaries."""
        return asdict(self)
