"""One factor against every unit: the columns that the scores are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diticli.disentanglement.codes import Codes, FactorRows
from diticli.disentanglement.explicitness import PARTS, explicitness
from diticli.disentanglement.factors import Factor
from diticli.disentanglement.importance import lasso_importance, tree_importance
from diticli.disentanglement.information import bin_columns, bin_count, entropy, factor_labels, mutual_information
from diticli.disentanglement.readout import chunk_readouts
from diticli.disentanglement.sap import predictability, recall_of_classes
from diticli.disentanglement.scores import column_aurocs
from diticli.types import DoubleArray


@dataclass(frozen=True, kw_only=True)
class UnitColumn:
    """One factor against U units.

    Attributes:
        information: [U] mutual information in nats.
        entropy: of the factor's classes, or of a number's bins, in nats.
        predictability: [U] S of the SAP score.
        aurocs: [U] in [0.5, 1] of the factor as a binary attribute; None for a category.
    """

    information: DoubleArray
    entropy: float
    predictability: DoubleArray
    aurocs: DoubleArray | None

    @property
    def shares(self) -> DoubleArray:
        """[U] information in shares of the entropy."""
        return self.information / self.entropy


@dataclass(frozen=True, kw_only=True)
class FactorColumn:
    """One factor against all units.

    Attributes:
        importance: [D] by boosted trees.
        lasso: [D] by the lasso.
        informativeness: of the trees, in [0, 1].
        explicitness: AUROC.
        dims: every dim alone.
        chunks: every chunk's readout; None without chunks.
        not_converged: "lasso" and "explicitness", where a fit stopped at its limit of iterations.
    """

    importance: DoubleArray
    lasso: DoubleArray
    informativeness: float
    explicitness: float
    dims: UnitColumn
    chunks: UnitColumn | None
    not_converged: tuple[str, ...]


def measure_factor(factor: Factor, codes: Codes, seed: int) -> FactorColumn:
    """Everything that is measured factor by factor."""
    rows = codes.of(factor)
    importance, informativeness = tree_importance(rows, seed)
    attribute = None if factor.kind == "category" else _attribute(factor, codes)
    lasso, lasso_converged = lasso_importance(rows, seed)
    auroc, auroc_converged = explicitness(codes.of(_discrete(factor, PARTS, codes)), seed)
    fits = {"lasso": lasso_converged, "explicitness": auroc_converged}
    return FactorColumn(
        importance=importance,
        lasso=lasso,
        informativeness=informativeness,
        explicitness=auroc,
        dims=_dims_column(rows, attribute),
        chunks=_chunks_column(rows, codes, attribute) if codes.groups else None,
        not_converged=tuple(name for name, converged in fits.items() if not converged),
    )


def _discrete(factor: Factor, parts: int, codes: Codes) -> Factor:
    kind = "category" if factor.kind == "number" else factor.kind
    return Factor(name=factor.name, kind=kind, values=factor.classes(parts, codes.train_rows))


def _attribute(factor: Factor, codes: Codes) -> FactorRows:
    return codes.of(_discrete(factor, 2, codes))


def _dims_column(rows: FactorRows, attribute: FactorRows | None) -> UnitColumn:
    """Nothing is fitted but S, so information and AUROC are counted on the larger part: the training rows."""
    labels = factor_labels(rows.kind, rows.y_train)
    return UnitColumn(
        information=mutual_information(bin_columns(rows.x_train, bin_count(len(labels))), labels),
        entropy=entropy(labels),
        predictability=predictability(rows),
        aurocs=None if attribute is None else column_aurocs(rows.x_train, attribute.y_train == 1),
    )


def _chunks_column(rows: FactorRows, codes: Codes, attribute: FactorRows | None) -> UnitColumn:
    """Readouts are fitted, so everything is counted on the test rows."""
    readouts = chunk_readouts(rows, codes.groups)
    labels = factor_labels(rows.kind, rows.y_test)
    if rows.kind == "category":
        said = readouts.x_test.astype(np.int64)
        scores = np.array([recall_of_classes(rows.y_test, column) for column in readouts.x_test.T])
    else:
        said, scores = bin_columns(readouts.x_test, bin_count(len(labels))), predictability(readouts)
    return UnitColumn(
        information=mutual_information(said, labels),
        entropy=entropy(labels),
        predictability=scores,
        aurocs=None if attribute is None else column_aurocs(readouts.x_test, attribute.y_test == 1),
    )
