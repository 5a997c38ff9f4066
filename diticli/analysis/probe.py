"""Linear probes on cached features: how linearly do they tell each attribute?

report = probe_features(features.values, columns, groups)      # the evaluation of arXiv 2401.11430, section 5
report.means["binary"]["average_precision"]; save_probe(report.probe, Path("probe.safetensors"))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.analysis.linear import FeatureSpace, LinearFit, fit_path
from diticli.analysis.linear_probe import LinearProbe
from diticli.analysis.probe_report import AttributeReport, ProbeReport, SkippedAttribute, mean_scores
from diticli.analysis.probe_targets import Target, TargetColumn, UnfitError, loss_of, make_target
from diticli.analysis.splits import FRACTIONS, Split, split_rows
from diticli.errors import LabelError
from diticli.progress import Reporter, SilentReporter

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

REGULARISATIONS: tuple[float, ...] = tuple(float(10.0**power) for power in range(1, -6, -1))
"""Grid of `LinearFit.reg`, strongest first: fits start from the one before, ties go to the stronger."""
_PATIENCE = 2
_TOGETHER = 64


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The fit that the validation rows chose for one target."""

    merit: float
    reg: float
    weights: DoubleArray
    bias: DoubleArray


def probe_features(
    values: FloatArray,
    columns: Mapping[str, TargetColumn],
    groups: Sequence[str] | None = None,
    *,
    rows: Rows | None = None,
    split: Split | None = None,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    model_hash: str = "",
    reporter: Reporter | None = None,
) -> ProbeReport:
    """Train and score a linear probe for every column.

    Features are standardised by the training rows. Binary columns get logistic regression (average
    precision), numbers ridge regression (Pearson r, MSE, R2), categories multinomial logistic regression
    (accuracy). The validation rows choose the regularisation; nothing is refitted on them. Rows of unknown
    value are left out, attribute by attribute.

    Args:
        values: float32 [N, d], may be a memory map; one float32 copy of the used rows is made.
        columns: M labels each, for the used rows.
        groups: [M] group of each used row; no group crosses splits.
        rows: [M] which rows of `values` the labels belong to; None means all.
        split: of the used rows; None draws one from `groups`, `seed` and `fractions`.
        seed: of the drawn split.
        fractions: of train, validation and test.
        model_hash: goes into the probe.
        reporter: receiver of progress.

    Raises:
        ConfigError: impossible fractions or seed.
        LabelError: columns of another length, too few rows or groups, or no column that can be probed.
        FeatureFileError: features that are all constant.
    """
    reporter = reporter or SilentReporter()
    rows = np.arange(len(values)) if rows is None else rows
    _check_lengths(columns, len(rows))
    drawn = split is None
    split = split or split_rows(len(rows), groups=groups, fractions=fractions, seed=seed)
    targets, skipped = _targets(columns, split)
    space = FeatureSpace.fit(values, rows[split.train])
    parts = {part: space.project(values, rows[index]) for part, index in vars(split).items()}
    reporter.start("Probing", len(targets) * len(REGULARISATIONS), unit="fits")
    choices: dict[str, _Choice] = {}
    for together in _batches(targets):
        choices |= _fit(together, split, space, parts, reporter)
    reporter.finish()
    attributes = tuple(_report(target, choices[target.name], split, parts["test"]) for target in targets)
    return ProbeReport(
        attributes=attributes,
        skipped=skipped,
        means=mean_scores(attributes),
        split=split.sizes,
        groups=None if groups is None else len(set(groups)),
        seed=seed if drawn else None,
        latent_dim=values.shape[1],
        probe=_linear_probe(targets, choices, space, model_hash),
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


def _batches(targets: Sequence[Target]) -> Iterator[Sequence[Target]]:
    """Targets that are fitted together: of one kind, a bounded number; a category alone."""
    for kind, size in (("binary", _TOGETHER), ("number", _TOGETHER), ("category", 1)):
        alike = [target for target in targets if target.kind == kind]
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _fit(
    targets: Sequence[Target],
    split: Split,
    space: FeatureSpace,
    parts: Mapping[str, FloatArray],
    reporter: Reporter,
) -> dict[str, _Choice]:
    """Go down the path until no target has gained for two steps: the weakest regularisations cost most."""
    choices: dict[str, _Choice] = {}
    loss = loss_of(targets, split.train)
    done = idle = 0
    for fit in fit_path(parts["train"], space.variances, loss, REGULARISATIONS):
        idle = 0 if _choose(targets, fit, split.val, parts["val"], choices) else idle + 1
        done += 1
        reporter.advance(len(targets))
        if idle == _PATIENCE:
            break
    reporter.advance(len(targets) * (len(REGULARISATIONS) - done))
    return choices


def _choose(
    targets: Sequence[Target], fit: LinearFit, rows: Rows, val: FloatArray, choices: dict[str, _Choice]
) -> bool:
    """Put the targets for which `fit` is the best so far into `choices`; whether there was one."""
    outputs = fit.predict(val)
    start, gained = 0, False
    for target in targets:
        own = slice(start, start := start + target.width)
        merit = target.merit(rows, outputs[:, own])
        if target.name not in choices or merit > choices[target.name].merit:
            choices[target.name] = _choice(fit, own, merit)
            gained = True
    return gained


def _choice(fit: LinearFit, own: slice, merit: float) -> _Choice:
    return _Choice(merit=merit, reg=fit.reg, weights=fit.weights[:, own].copy(), bias=fit.bias[own].copy())


def _report(target: Target, choice: _Choice, split: Split, test: FloatArray) -> AttributeReport:
    score = target.score(split.test, test @ choice.weights.astype(np.float32) + choice.bias)
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
    )


def _linear_probe(
    targets: Sequence[Target], choices: Mapping[str, _Choice], space: FeatureSpace, model_hash: str
) -> LinearProbe:
    """All models in standardised feature space; a number's row predicts the number itself."""
    weights = [(space.basis @ choices[t.name].weights).T * t.scale for t in targets]
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
