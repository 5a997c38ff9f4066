"""Scores of a probe's models on the test rows, as entries of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.probing.fit import Choice
from diticli.probing.mask import MaskedFit
from diticli.probing.report import AttributeReport, MaskedScore
from diticli.probing.resampled import Resampled, intervals_of, mean_intervals_of
from diticli.probing.splits import Split
from diticli.probing.targets import Target
from diticli.statistics import Interval
from diticli.types import DoubleArray


def attribute_report(
    target: Target,
    choice: Choice,
    outputs: DoubleArray,
    resampled: Resampled,
    split: Split,
    few: MaskedFit | None,
    layout: ChunkLayout | None,
) -> AttributeReport:
    """Scores of one attribute.

    Args:
        target: the attribute.
        choice: its model.
        outputs: [N, width] of its model on the test rows.
        resampled: scores on resamples of them; empty for no intervals.
        split: parts of the rows.
        few: the model on few dimensions, or None.
        layout: chunks, to tell whose these dimensions are.
    """
    score = target.score(split.test, outputs)
    intervals = intervals_of(resampled)
    low, high = intervals.get(score.metric, (None, None))
    return AttributeReport(
        name=target.name,
        kind=target.kind,
        metric=score.metric,
        value=score.value,
        base_rate=score.base_rate,
        extras=score.extras | target.extras,
        n_train=len(target.known(split.train)),
        n_val=len(target.known(split.val)),
        n_test=len(target.known(split.test)),
        regularisation=choice.reg,
        converged=choice.converged,
        low=low,
        high=high,
        intervals=intervals,
        masked=None if few is None else _masked_score(few, layout),
    )


def mean_intervals(
    attributes: Sequence[AttributeReport], resampled: Mapping[str, Resampled]
) -> dict[str, dict[str, Interval]]:
    """Intervals of `ProbeReport.means`, from the scores of each attribute on the same resamples."""
    kinds = dict.fromkeys(item.kind for item in attributes)
    alike = {kind: [resampled[item.name] for item in attributes if item.kind == kind] for kind in kinds if resampled}
    return {kind: mean_intervals_of(many) for kind, many in alike.items()}


def _masked_score(few: MaskedFit, layout: ChunkLayout | None) -> MaskedScore:
    ends = layout.ends if layout else ()
    chunks = np.searchsorted(ends, few.dims, side="right")
    return MaskedScore(
        dims=few.dims,
        value=few.score.value,
        extras=few.score.extras,
        by_weight=few.by_weight.value,
        by_weight_extras=few.by_weight.extras,
        converged=few.converged,
        per_chunk=tuple(np.bincount(chunks, minlength=len(ends)).tolist()) if layout else (),
    )
