"""All disentanglement metrics of one code.

report = measure_disentanglement(features.values, table.columns, split, layout=layout)
report.chunks.mig, report.dims.disentanglement; report.to_dict()
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diticli.data.labels import LabelColumn
from diticli.data.splits import Split
from diticli.disentanglement.auroc import captured_attributes, column_aurocs, entropy_reductions, total_auroc_difference
from diticli.disentanglement.codes import Codes, FactorRows, discrete, make_codes
from diticli.disentanglement.factor_vae import VoteScore, cast_votes
from diticli.disentanglement.feature_statistics import check_width
from diticli.disentanglement.importance import balanced_rows, lasso_importance, tree_importance
from diticli.disentanglement.infomec import (
    CLASSES,
    ROWS,
    active_dims,
    info_compactness,
    info_explicitness,
    info_modularity,
    neighbour_information,
)
from diticli.disentanglement.information import (
    bin_columns,
    bin_count,
    entropy,
    factor_labels,
    mean_or_none,
    modularity,
    mutual_information,
    mutual_information_gap,
    mutual_information_gaps,
    top_gap,
)
from diticli.disentanglement.predictability import (
    PARTS,
    chunk_readouts,
    explicitness,
    predictability,
    recall_of_classes,
)
from diticli.disentanglement.report import DisentanglementReport, FactorScores, UnitScores
from diticli.errors import ConfigError, LabelError
from diticli.progress import Reporter, SilentReporter, say_duration
from diticli.statistics import completeness, disentanglement, none_if_nan
from diticli.targets import Requirements, Target, check_lengths, make_targets
from diticli.types import DoubleArray, Rows

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.features.rows import FeatureRows


MAX_ROWS = 20_000
"""Of each part: more are drawn from, so that time and memory have a bound."""
_DRAWN_TRAIN = 0.7
NEEDS = Requirements(train_rows=10, classes=50, scored_classes=2)
"""Of a column that is to be a factor."""


def measure_disentanglement(
    codes_ND: FeatureRows,
    columns: Mapping[str, LabelColumn],
    split: Split | None,
    *,
    layout: ChunkLayout | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> DisentanglementReport:
    """Score a code against known factors: DCI, MIG, SAP, FactorVAE, modularity, explicitness, TAD, InfoMEC.

    What is fitted is fitted on the training rows and scored on the test rows; validation rows are not used. Rows of
    unknown value are left out, factor by factor. Every metric's module says what it measures and where it comes from.

    Args:
        codes_ND: float32 [N, d]; may be a memory map or the rows of shards.
        columns: N labels each, see `diticli.data.labels.LabelColumn`.
        split: of the N rows; None draws 70 % for training and the rest for testing.
        layout: adds scores of chunks as units.
        seed: of the drawn split, of draws of rows and votes, and of the trees.
        reporter: receiver of progress, in factors.

    Raises:
        ConfigError: a negative seed.
        LabelError: columns of another length, too few rows, or none that can be a factor.
        FeatureFileError: values that are not finite, no dim that varies, or a layout of another width.
    """
    reporter = reporter or SilentReporter()
    if seed < 0:
        raise ConfigError(f"The seed {seed} is negative.", remedy="Use 0 or more.")
    check_lengths(columns, len(codes_ND))
    if layout is not None:
        check_width(codes_ND.shape[1], layout)
    train, test = _parts(len(codes_ND), split, seed)
    found, skipped = make_targets(columns, {"train": train, "test": test}, NEEDS)
    factors = [_as_factor(target) for target in found]
    codes = make_codes(codes_ND, train, test, layout if layout is not None and layout.chunks > 1 else None)
    reporter.start("Measuring disentanglement", len(factors), unit="factors")
    measured = []
    began = time.perf_counter()
    for factor in factors:
        measured.append(measure_factor(factor, codes, seed))
        reporter.advance()
        if len(measured) == 1:
            each = time.perf_counter() - began
            say_duration(reporter, "Measuring disentanglement", each * (len(factors) - 1))
    votes = cast_votes(factors, codes, seed)
    reporter.finish()
    scores = assemble_factors(factors, measured, codes, layout)
    return DisentanglementReport(
        dims=assemble_units(factors, measured, codes, votes.dims),
        chunks=assemble_units(factors, measured, codes, votes.chunks, chunks=True) if codes.groups else None,
        informativeness=float(np.mean([score.informativeness for score in scores])),
        explicitness=float(np.mean([score.explicitness for score in scores])),
        info_explicitness=float(np.mean([score.info_explicitness for score in scores])),
        factors=scores,
        skipped=skipped,
        train_rows=len(train),
        test_rows=len(test),
        seed=seed,
    )


def _as_factor(target: Target) -> Target:
    """A category of two classes is a binary factor."""
    return replace(target, kind="binary") if len(target.classes) == 2 else target


def _parts(count: int, split: Split | None, seed: int) -> tuple[Rows, Rows]:
    """Training and test rows, ascending, at most `MAX_ROWS` each."""
    rng = np.random.default_rng(seed)
    if split is None:
        order, cut = rng.permutation(count), round(_DRAWN_TRAIN * count)
        parts = [order[:cut], order[cut:]]
    else:
        parts = [rng.permutation(split.train), rng.permutation(split.test)]
    if not all(map(len, parts)):
        raise LabelError(f"{count} rows cannot be split into two parts.", remedy="Give more labelled images.")
    train, test = (np.sort(part[:MAX_ROWS]) for part in parts)
    return train, test


@dataclass(frozen=True, kw_only=True)
class UnitColumn:
    """Measures of one factor with each of U units (dims or chunks).

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
    """Measures of one factor with all dims and all chunks.

    Attributes:
        importance: [D] by boosted trees.
        lasso: [D] by the lasso.
        informativeness: of the trees, in [0, 1].
        explicitness: AUROC.
        info_explicitness: its part of InfoE.
        neighbours: [D] information with each dim by nearest neighbours, in shares of the entropy.
        dims: every dim alone.
        chunks: every chunk's readout; None without chunks.
        not_converged: "lasso", "explicitness" and "InfoE", where a fit stopped at its limit of iterations.
    """

    importance: DoubleArray
    lasso: DoubleArray
    informativeness: float
    explicitness: float
    info_explicitness: float
    neighbours: DoubleArray
    dims: UnitColumn
    chunks: UnitColumn | None
    not_converged: tuple[str, ...]


def measure_factor(factor: Target, codes: Codes, seed: int) -> FactorColumn:
    """Everything that is measured factor by factor."""
    rows = codes.known_rows(factor)
    importance, informativeness = tree_importance(rows, seed)
    attribute = None if factor.kind == "category" else _attribute(factor, codes)
    lasso, lasso_converged = lasso_importance(rows, seed)
    auroc, auroc_converged = explicitness(codes.known_rows(discrete(factor, PARTS, codes.train_rows)), seed)
    classes = codes.known_rows(discrete(factor, CLASSES, codes.train_rows))
    info, info_converged = info_explicitness(classes, seed)
    fits = {"lasso": lasso_converged, "explicitness": auroc_converged, "InfoE": info_converged}
    return FactorColumn(
        importance=importance,
        lasso=lasso,
        informativeness=informativeness,
        explicitness=auroc,
        info_explicitness=info,
        neighbours=_neighbour_shares(classes, seed),
        dims=_dims_column(rows, attribute),
        chunks=_chunks_column(rows, codes, attribute) if codes.groups else None,
        not_converged=tuple(name for name, converged in fits.items() if not converged),
    )


def _neighbour_shares(rows: FactorRows, seed: int) -> DoubleArray:
    """[D] information of a factor of classes with each dim, in shares of its entropy, on training rows."""
    chosen = balanced_rows(rows, ROWS, np.random.default_rng(seed))
    labels = np.unique(rows.y_train[chosen], return_inverse=True)[1].astype(np.int64)
    return neighbour_information(rows.x_train[chosen], labels, seed) / entropy(labels)


def _attribute(factor: Target, codes: Codes) -> FactorRows:
    return codes.known_rows(discrete(factor, 2, codes.train_rows))


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


def assemble_units(
    factors: Sequence[Target], measured: Sequence[FactorColumn], codes: Codes, votes: VoteScore, *, chunks: bool = False
) -> UnitScores:
    """Scores of the dims, or of the chunks."""
    columns = [_column(item, chunks) for item in measured]
    importance = np.stack([item.importance for item in measured], axis=1)
    lasso = np.stack([item.lasso for item in measured], axis=1)
    if chunks:
        importance, lasso = _sum_groups(importance, codes.groups), _sum_groups(lasso, codes.groups)
    tad, captured, considered = _captured(factors, columns, codes)
    shares = np.stack([column.shares for column in columns], axis=1)
    active = active_dims(codes.ranges)
    # A chunk is its readout, of which information is counted in bins.
    pruned = shares if chunks else np.stack([item.neighbours for item in measured], axis=1)[active]
    return UnitScores(
        units=len(importance),
        disentanglement=none_if_nan(disentanglement(importance)),
        completeness=none_if_nan(completeness(importance)),
        linear_disentanglement=none_if_nan(disentanglement(lasso)),
        linear_completeness=none_if_nan(completeness(lasso)),
        mig=mutual_information_gap(shares),
        sap=mean_or_none([top_gap(column.predictability) for column in columns]),
        factor_vae=votes.accuracy,
        factor_vae_chance=votes.chance if votes.accuracy is not None else None,
        modularity=modularity(np.stack([column.information for column in columns], axis=1)),
        info_modularity=info_modularity(pruned),
        info_compactness=info_compactness(pruned),
        tad=tad,
        captured=captured,
        considered=considered,
    )


def assemble_factors(
    factors: Sequence[Target], measured: Sequence[FactorColumn], codes: Codes, layout: ChunkLayout | None
) -> tuple[FactorScores, ...]:
    """What each factor adds to the scores."""
    return tuple(_factor(factor, item, codes, layout) for factor, item in zip(factors, measured, strict=True))


def _column(item: FactorColumn, chunks: bool) -> UnitColumn:
    return item.chunks if chunks and item.chunks is not None else item.dims


def _captured(
    factors: Sequence[Target], columns: Sequence[UnitColumn], codes: Codes
) -> tuple[float | None, tuple[str, ...], int]:
    """TAD, the captured attributes' names, and of how many."""
    pairs = [(factor, column.aurocs) for factor, column in zip(factors, columns, strict=True)]
    chosen = [(factor, aurocs) for factor, aurocs in pairs if aurocs is not None]
    if not chosen:
        return None, (), 0
    aurocs = np.stack([aurocs for _, aurocs in chosen], axis=1)
    train = codes.train_rows
    attributes = np.stack([discrete(factor, 2, train).values[train] for factor, _ in chosen], axis=1)
    captured = captured_attributes(aurocs, entropy_reductions(attributes))
    names = tuple(factor.name for (factor, _), yes in zip(chosen, captured, strict=True) if yes)
    return total_auroc_difference(aurocs, captured), names, len(chosen)


def _factor(factor: Target, item: FactorColumn, codes: Codes, layout: ChunkLayout | None) -> FactorScores:
    dims, chunks = item.dims, item.chunks
    information = np.zeros(layout.chunks if layout is not None and chunks is not None else 0)
    if chunks is not None:
        information[list(codes.chunks)] = chunks.shares
    return FactorScores(
        name=factor.name,
        kind=factor.kind,
        informativeness=item.informativeness,
        explicitness=item.explicitness,
        info_explicitness=item.info_explicitness,
        best_dim=int(codes.dims[dims.information.argmax()]),
        best_chunk=None if chunks is None else codes.chunks[int(chunks.information.argmax())],
        dim_mig=mutual_information_gaps(dims.shares[:, None])[0],
        chunk_mig=None if chunks is None else mutual_information_gaps(chunks.shares[:, None])[0],
        dim_sap=top_gap(dims.predictability),
        chunk_sap=None if chunks is None else top_gap(chunks.predictability),
        chunk_information=tuple(information.tolist()),
        not_converged=item.not_converged,
    )


def _sum_groups(importance_DF: DoubleArray, groups: Sequence[Rows]) -> DoubleArray:
    """[K, F] importance of each group of dims: a factor spread over the dims of one chunk is complete there (ours)."""
    return np.stack([importance_DF[group].sum(axis=0) for group in groups])
