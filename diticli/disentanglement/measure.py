"""All disentanglement metrics of one code.

report = measure_disentanglement(features.values, table.columns, split, layout=layout)
report.chunks.mig, report.dims.disentanglement; report.to_dict()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from diticli.disentanglement.assemble import assemble_factors, assemble_units
from diticli.disentanglement.codes import make_codes
from diticli.disentanglement.columns import measure_factor
from diticli.disentanglement.factors import LabelledColumn, make_factors
from diticli.disentanglement.report import DisentanglementReport
from diticli.disentanglement.statistics import check_width
from diticli.disentanglement.votes import cast_votes
from diticli.errors import ConfigError, LabelError
from diticli.progress import Reporter, SilentReporter
from diticli.types import Rows

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.features.rows import FeatureRows


MAX_ROWS = 20_000
"""Of each part: more are drawn from, so that time and memory have a bound."""
_DRAWN_TRAIN = 0.7


class Parts(Protocol):
    """Rows to fit on and rows to score on, as `diticli.probing.splits.Split` has them."""

    @property
    def train(self) -> Rows:
        """Row indices."""

    @property
    def test(self) -> Rows:
        """Row indices."""


def measure_disentanglement(
    codes_ND: FeatureRows,
    columns: Mapping[str, LabelledColumn],
    split: Parts | None,
    *,
    layout: ChunkLayout | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> DisentanglementReport:
    """Score a code against known factors: DCI, MIG, SAP, FactorVAE, modularity, explicitness, TAD.

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
        LabelError: columns of another length, too few rows, or none that can serve as a factor.
        FeatureFileError: values that are not finite, no dim that varies, or a layout of another width.
    """
    reporter = reporter or SilentReporter()
    if seed < 0:
        raise ConfigError(f"The seed {seed} is negative.", remedy="Use 0 or more.")
    _check_lengths(columns, len(codes_ND))
    if layout is not None:
        check_width(codes_ND.shape[1], layout)
    train, test = _parts(len(codes_ND), split, seed)
    factors, skipped = make_factors(columns, train, test)
    if not factors:
        reasons = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
        raise LabelError(
            f"None of the {len(columns)} columns can serve as a factor ({reasons}).",
            remedy="Give more labelled images, or attributes that vary.",
        )
    codes = make_codes(codes_ND, train, test, layout if layout is not None and layout.chunks > 1 else None)
    reporter.start("Measuring disentanglement", len(factors), unit="factors")
    measured = []
    for factor in factors:
        measured.append(measure_factor(factor, codes, seed))
        reporter.advance()
    votes = cast_votes(factors, codes, seed)
    reporter.finish()
    scores = assemble_factors(factors, measured, codes, layout)
    return DisentanglementReport(
        dims=assemble_units(factors, measured, codes, votes.dims),
        chunks=assemble_units(factors, measured, codes, votes.chunks, chunks=True) if codes.groups else None,
        informativeness=float(np.mean([score.informativeness for score in scores])),
        explicitness=float(np.mean([score.explicitness for score in scores])),
        factors=scores,
        skipped=skipped,
        train_rows=len(train),
        test_rows=len(test),
        seed=seed,
    )


def _check_lengths(columns: Mapping[str, LabelledColumn], count: int) -> None:
    for name, column in columns.items():
        if len(column.values) != count:
            raise LabelError(
                f"The attribute {name!r} has {len(column.values)} values for {count} rows.",
                remedy="Join labels and features by file name first.",
            )


def _parts(count: int, split: Parts | None, seed: int) -> tuple[Rows, Rows]:
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
