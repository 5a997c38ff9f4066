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
from diticli.data.labels import LabelColumn
from diticli.data.splits import FRACTIONS, Split, split_rows
from diticli.disentanglement import measure_disentanglement, measure_statistics
from diticli.errors import ChunkError, ConfigError
from diticli.features.read import FeatureMeta, FeatureRows
from diticli.probing.chunk_probe import probe_chunks
from diticli.probing.directions import Directions
from diticli.probing.fit import REGULARISATIONS, Choice, batches, fit_targets
from diticli.probing.linear import FeatureSpace
from diticli.probing.linear_probe import LinearProbe
from diticli.probing.masked_fit import MaskedFit, ProbeRows, fit_masked
from diticli.probing.promask import MaskSettings
from diticli.probing.report import ProbeReport, attribute_report, mean_intervals, mean_scores
from diticli.probing.resampling import resample_scores
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Bootstrap
from diticli.targets import SkippedTarget, Target, check_lengths, make_targets
from diticli.types import FloatArray, Rows


def probe_features(
    values: FeatureRows,
    columns: Mapping[str, LabelColumn],
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
        statistics: also say how the features vary, over all N rows, see `diticli.disentanglement.feature_statistics`.
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
    check_lengths(columns, len(rows))
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
    columns, skipped = _without_groups(columns, groups)
    targets, unfit = make_targets(columns, vars(split))
    space = FeatureSpace.fit(values, rows[split.train])
    table = ProbeRows(
        split=split,
        space=space,
        parts={part: space.project(values, rows[index]) for part, index in vars(split).items()},
    )
    reporter.start("Probing", len(targets) * len(REGULARISATIONS), unit="fits")
    choices: dict[str, Choice] = {}
    for together in batches(targets, split.train):
        choices |= fit_targets(together, split, space, table.parts, reporter)
    reporter.finish()
    few: dict[str, MaskedFit] = {}
    if mask is not None:
        few = fit_masked(targets, choices, table, mask, seed=seed, device=device, reporter=reporter)
    directions = _fitted_directions(targets, choices, few, space, meta or FeatureMeta(files=()), layout)
    draws = Bootstrap.over_rows(
        len(split.test), None if groups is None else [groups[row] for row in split.test], seed=seed
    )
    outputs = {target.name: choices[target.name].outputs(table.parts["test"]) for target in targets}
    resampled = resample_scores(targets, split.test, outputs, draws, reporter)
    attributes = tuple(
        attribute_report(t, choices[t.name], outputs[t.name], resampled.get(t.name, {}), split, few.get(t.name), layout)
        for t in targets
    )
    return ProbeReport(
        attributes=attributes,
        skipped=skipped + unfit,
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


def _without_groups(
    columns: Mapping[str, LabelColumn], groups: Sequence[str] | None
) -> tuple[Mapping[str, LabelColumn], tuple[SkippedTarget, ...]]:
    """The columns, but those that say the group again: no split has one group in train and in test."""
    if groups is None or len(set(groups)) == len(groups):
        return columns, ()
    same = [name for name, column in columns.items() if _says_again(column.values.tolist(), groups)]
    if len(same) == len(columns):
        return columns, ()
    reason = "it is the group, which the split keeps together"
    return (
        {name: column for name, column in columns.items() if name not in same},
        tuple(SkippedTarget(name=name, kind=columns[name].kind, reason=reason) for name in same),
    )


def _says_again(values: Sequence[object], groups: Sequence[str]) -> bool:
    pairs = set(zip(map(str, values), groups, strict=True))
    return len(pairs) == len({value for value, _ in pairs}) == len({group for _, group in pairs})


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


def _fitted_directions(
    targets: Sequence[Target],
    choices: Mapping[str, Choice],
    few: Mapping[str, MaskedFit],
    space: FeatureSpace,
    meta: FeatureMeta,
    layout: ChunkLayout | None,
) -> Directions:
    """Directions to edit along.

    Args:
        targets: A attributes.
        choices: their classifiers on all dimensions, by name.
        few: their classifiers on few dimensions; empty without masks.
        space: axes of `choices`.
        meta: model of the features.
        layout: their chunks, or None when unknown.
    """
    masked = None
    if few:
        spaces = {name: fit.space for name, fit in few.items()}
        masked = _linear_probe(targets, {name: fit.choice for name, fit in few.items()}, spaces, meta.model_hash)
    return Directions(
        full=_linear_probe(targets, choices, dict.fromkeys(choices, space), meta.model_hash),
        masked=masked,
        chosen={name: fit.dims for name, fit in few.items()},
        patterns=_patterns(targets, choices, space),
        layout=layout,
        model=meta.model,
    )


def _patterns(targets: Sequence[Target], choices: Mapping[str, Choice], space: FeatureSpace) -> FloatArray:
    """Covariance [A, d] of standardised features and each model's output over the training rows."""
    patterns = [((space.basis * space.variances) @ choices[t.name].weights).T * t.scale for t in targets]
    return np.concatenate(patterns).astype(np.float32)


def _linear_probe(
    targets: Sequence[Target],
    choices: Mapping[str, Choice],
    spaces: Mapping[str, FeatureSpace],
    model_hash: str,
) -> LinearProbe:
    """All models in standardised feature space; a number's row predicts the number itself."""
    space = spaces[targets[0].name]
    weights = [(spaces[t.name].basis @ choices[t.name].weights).T * t.scale for t in targets]
    bias = [choices[t.name].bias * t.scale + t.offset for t in targets]
    return LinearProbe(
        weights=np.concatenate(weights).astype(np.float32),
        bias=np.concatenate(bias).astype(np.float32),
        mean=space.mean.astype(np.float32),
        std=space.std.astype(np.float32),
        names=tuple(t.name for t in targets for _ in range(t.width)),
        kinds=tuple(t.kind for t in targets for _ in range(t.width)),
        classes=tuple(name for t in targets for name in (t.classes or ("",))),
        model_hash=model_hash,
    )
