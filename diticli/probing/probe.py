"""Linear probes on cached features: how well does a linear model predict each attribute?

report = probe_features(features.values, columns, groups)      # the evaluation of arXiv 2401.11430, section 5
report.means["binary"]["average_precision"]; save_directions(report.directions, Path("probe"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch

from diticli.chunks import ChunkLayout
from diticli.disentanglement import measure_disentanglement, measure_statistics
from diticli.errors import ChunkError, ConfigError, LabelError
from diticli.features.read import FeatureMeta, FeatureRows
from diticli.probing.attribute_scores import attribute_report, mean_intervals
from diticli.probing.chunk_probe import probe_chunks
from diticli.probing.fit import REGULARISATIONS, Choice, batches, fit_targets
from diticli.probing.fitted import fitted_directions
from diticli.probing.linear import FeatureSpace
from diticli.probing.mask import MaskedFit, ProbeRows, fit_masked
from diticli.probing.promask import MaskSettings
from diticli.probing.report import ProbeReport, SkippedAttribute, mean_scores
from diticli.probing.resampled import resample_scores
from diticli.probing.splits import FRACTIONS, Split, split_rows
from diticli.probing.targets import Target, TargetColumn, UnfitError, make_target
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Bootstrap
from diticli.types import Rows


def probe_features(
    values: FeatureRows,
    columns: Mapping[str, TargetColumn],
    groups: Sequence[str] | None = None,
    *,
    rows: Rows | None = None,
    split: Split | None = None,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    meta: FeatureMeta | None = None,
    mask: MaskSettings | None = None,
    device: torch.device | str = "cpu",
    statistics: bool = False,
    metrics: bool = False,
    atlas: bool = False,
    reporter: Reporter | None = None,
) -> ProbeReport:
    """Train and score a linear probe for every column.

    Features are standardised by the training rows. Binary columns get logistic regression (average
    precision), numbers ridge regression (Pearson r, MSE, R2), categories multinomial logistic regression
    (accuracy). The validation rows choose the regularisation; nothing is refitted on them. Rows of unknown
    value are left out, attribute by attribute.

    With `mask`, the training rows also choose a few dimensions for each attribute (see
    `diticli.probing.promask`), and a second classifier is fitted on them alone.

    Args:
        values: float32 [N, d], may be a memory map or the rows of shards; one float32 copy of the used rows is made.
        columns: M labels each, for the used rows.
        groups: [M] group of each used row; no group crosses splits.
        rows: [M] which rows of `values` the labels belong to; None means all.
        split: of the used rows; None draws one from `groups`, `seed` and `fractions`.
        seed: of the drawn split.
        fractions: of train, validation and test.
        meta: of the feature file: model and chunks go into the directions.
        mask: learn which few dimensions predict each attribute, fit on them as well, and compare.
        device: where masks are learned.
        statistics: also say how the features vary, over all N rows, see `diticli.disentanglement.statistics`.
        metrics: also score disentanglement, with the columns as factors, see `diticli.disentanglement`.
        atlas: also probe each chunk of `meta` alone, all others, and all up to it, see `diticli.probing.chunk_probe`.
        reporter: receiver of progress.

    Raises:
        ChunkError: an atlas of features whose chunks are unknown.
        ConfigError: impossible fractions or seed, or a mask of more dims than vary.
        LabelError: columns of another length, too few rows or groups, or no column that can be probed.
        FeatureFileError: features that are all constant, or with metrics or statistics not finite.
    """
    reporter = reporter or SilentReporter()
    rows = np.arange(len(values)) if rows is None else rows
    _check_lengths(columns, len(rows))
    if mask is not None and mask.dims > values.shape[1]:
        raise ConfigError(
            f"A mask of {mask.dims} dims does not fit features of {values.shape[1]}.",
            remedy=f"Use at most {values.shape[1]}.",
        )
    layout = layout_of(meta)
    if atlas:
        _check_atlas(layout, values.shape[1])
    drawn = split is None
    split = split or split_rows(len(rows), groups=groups, fractions=fractions, seed=seed)
    targets, skipped = _targets(columns, split)
    space = FeatureSpace.fit(values, rows[split.train])
    table = ProbeRows(
        split=split,
        space=space,
        parts={part: space.project(values, rows[index]) for part, index in vars(split).items()},
    )
    reporter.start("Probing", len(targets) * len(REGULARISATIONS), unit="fits")
    choices: dict[str, Choice] = {}
    for together in batches(targets):
        choices |= fit_targets(together, split, space, table.parts, reporter)
    reporter.finish()
    few: dict[str, MaskedFit] = {}
    if mask is not None:
        few = fit_masked(targets, choices, table, mask, seed=seed, device=device, reporter=reporter)
    directions = fitted_directions(targets, choices, few, space, meta or FeatureMeta(files=()), layout)
    draws = Bootstrap.of(len(split.test), None if groups is None else [groups[row] for row in split.test], seed=seed)
    outputs = {target.name: choices[target.name].outputs(table.parts["test"]) for target in targets}
    resampled = resample_scores(targets, split.test, outputs, draws, reporter)
    attributes = tuple(
        attribute_report(t, choices[t.name], outputs[t.name], resampled.get(t.name, {}), split, few.get(t.name), layout)
        for t in targets
    )
    return ProbeReport(
        attributes=attributes,
        skipped=skipped,
        means=mean_scores(attributes),
        mean_intervals=mean_intervals(attributes, resampled),
        split=split.sizes,
        groups=None if groups is None else len(set(groups)),
        seed=seed if drawn else None,
        latent_dim=values.shape[1],
        mask=None if mask is None else asdict(mask),
        statistics=measure_statistics(values, layout) if statistics else None,
        atlas=probe_chunks(targets, table, layout, draws, reporter) if atlas and layout else None,
        disentanglement=measure_disentanglement(
            values[rows], columns, split, layout=layout, seed=seed, reporter=reporter
        )
        if metrics
        else None,
        directions=directions,
    )


def layout_of(meta: FeatureMeta | None) -> ChunkLayout | None:
    """Chunks of a feature file's dimensions, None when it does not name them.

    Raises:
        ChunkError: when its ends are no layout.
    """
    return None if meta is None else meta.layout


def _check_atlas(layout: ChunkLayout | None, width: int) -> None:
    if layout is None:
        raise ChunkError(
            "The chunks of these features are unknown, so there is no atlas of them.",
            remedy="Make the features with `diti encode`; keep the .json beside them.",
        )
    if layout.latent_dim != width:
        raise ChunkError(
            f"The chunks cover {layout.latent_dim} dims, the features have {width}.",
            remedy="Encode again: the .json beside the features belongs to others.",
        )


def _check_lengths(columns: Mapping[str, TargetColumn], count: int) -> None:
    for name, column in columns.items():
        if len(column.values) != count:
            raise LabelError(
                f"The attribute {name!r} has {len(column.values)} values for {count} rows.",
                remedy="Join labels and features by file name first.",
            )


def _targets(columns: Mapping[str, TargetColumn], split: Split) -> tuple[list[Target], tuple[SkippedAttribute, ...]]:
    targets, skipped = [], []
    for name, column in columns.items():
        try:
            targets.append(make_target(name, column, split))
        except UnfitError as reason:
            skipped.append(SkippedAttribute(name=name, kind=column.kind, reason=str(reason)))
    if not targets:
        some = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
        raise LabelError(
            f"None of the {len(columns)} attributes can be probed ({some}).",
            remedy="Give more labelled images, or attributes that vary.",
        )
    return targets, tuple(skipped)
