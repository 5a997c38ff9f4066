"""Columns of single factors put together into the scores of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diticli.disentanglement.codes import Codes
from diticli.disentanglement.columns import FactorColumn, UnitColumn
from diticli.disentanglement.dci import completeness, disentanglement, sum_groups
from diticli.disentanglement.factors import Factor
from diticli.disentanglement.gaps import mean_or_none, top_gap
from diticli.disentanglement.mig import mutual_information_gap, mutual_information_gaps
from diticli.disentanglement.modularity import modularity
from diticli.disentanglement.report import FactorScores, UnitScores
from diticli.disentanglement.tad import captured_attributes, entropy_reductions, total_auroc_difference
from diticli.disentanglement.votes import VoteScore

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout


def assemble_units(
    factors: Sequence[Factor], measured: Sequence[FactorColumn], codes: Codes, votes: VoteScore, *, chunks: bool = False
) -> UnitScores:
    """Scores of the dims, or of the chunks."""
    columns = [_column(item, chunks) for item in measured]
    importance = np.stack([item.importance for item in measured], axis=1)
    lasso = np.stack([item.lasso for item in measured], axis=1)
    if chunks:
        importance, lasso = sum_groups(importance, codes.groups), sum_groups(lasso, codes.groups)
    tad, captured, considered = _captured(factors, columns, codes)
    return UnitScores(
        units=len(importance),
        disentanglement=disentanglement(importance),
        completeness=completeness(importance),
        linear_disentanglement=disentanglement(lasso),
        linear_completeness=completeness(lasso),
        mig=mutual_information_gap(np.stack([column.shares for column in columns], axis=1)),
        sap=mean_or_none([top_gap(column.predictability) for column in columns]),
        factor_vae=votes.accuracy,
        factor_vae_chance=votes.chance if votes.accuracy is not None else None,
        modularity=modularity(np.stack([column.information for column in columns], axis=1)),
        tad=tad,
        captured=captured,
        considered=considered,
    )


def assemble_factors(
    factors: Sequence[Factor], measured: Sequence[FactorColumn], codes: Codes, layout: ChunkLayout | None
) -> tuple[FactorScores, ...]:
    """What each factor adds to the scores."""
    return tuple(_factor(factor, item, codes, layout) for factor, item in zip(factors, measured, strict=True))


def _column(item: FactorColumn, chunks: bool) -> UnitColumn:
    return item.chunks if chunks and item.chunks is not None else item.dims


def _captured(
    factors: Sequence[Factor], columns: Sequence[UnitColumn], codes: Codes
) -> tuple[float | None, tuple[str, ...], int]:
    """TAD, the captured attributes' names, and of how many."""
    pairs = [(factor, column.aurocs) for factor, column in zip(factors, columns, strict=True)]
    chosen = [(factor, aurocs) for factor, aurocs in pairs if aurocs is not None]
    if not chosen:
        return None, (), 0
    aurocs = np.stack([aurocs for _, aurocs in chosen], axis=1)
    train = codes.train_rows
    attributes = np.stack([factor.classes(2, train)[train] for factor, _ in chosen], axis=1)
    captured = captured_attributes(aurocs, entropy_reductions(attributes))
    names = tuple(factor.name for (factor, _), yes in zip(chosen, captured, strict=True) if yes)
    return total_auroc_difference(aurocs, captured), names, len(chosen)


def _factor(factor: Factor, item: FactorColumn, codes: Codes, layout: ChunkLayout | None) -> FactorScores:
    dims, chunks = item.dims, item.chunks
    information = np.zeros(layout.chunks if layout is not None and chunks is not None else 0)
    if chunks is not None:
        information[list(codes.chunks)] = chunks.shares
    return FactorScores(
        name=factor.name,
        kind=factor.kind,
        informativeness=item.informativeness,
        explicitness=item.explicitness,
        best_dim=int(codes.dims[dims.information.argmax()]),
        best_chunk=None if chunks is None else codes.chunks[int(chunks.information.argmax())],
        dim_mig=mutual_information_gaps(dims.shares[:, None])[0],
        chunk_mig=None if chunks is None else mutual_information_gaps(chunks.shares[:, None])[0],
        dim_sap=top_gap(dims.predictability),
        chunk_sap=None if chunks is None else top_gap(chunks.predictability),
        chunk_information=tuple(information.tolist()),
        not_converged=item.not_converged,
    )
