"""Fits of a probe's targets along the path of regularisations; the validation rows choose one for each target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diticli.data.splits import Split
from diticli.probing.linear import BinaryLoss, CategoryLoss, FeatureSpace, LinearFit, Loss, fit_path, ridge_path
from diticli.probing.metrics import Score, merit, score
from diticli.progress import Reporter
from diticli.targets import Target
from diticli.types import DoubleArray, FloatArray, Rows

REGULARISATIONS: tuple[float, ...] = tuple(float(10.0**power) for power in range(1, -6, -1))
"""Grid of `LinearFit.reg`, strongest first: fits start from the one before, ties go to the stronger."""
_PATIENCE = 2
_TOGETHER = 64


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The fit that the validation rows chose for one target, in the axes of a `FeatureSpace`.

    Attributes:
        merit: of the validation rows.
        reg: regularisation.
        weights: [R, width].
        bias: [width].
        converged: whether the fit reached its minimum.
    """

    merit: float
    reg: float
    weights: DoubleArray
    bias: DoubleArray
    converged: bool

    def outputs(self, coordinates_NR: FloatArray) -> DoubleArray:
        """What this fit predicts: [N, width] logits or standardised numbers."""
        return coordinates_NR @ self.weights.astype(np.float32) + self.bias

    def score(self, target: Target, rows: Rows, coordinates_NR: FloatArray) -> Score:
        """Score of this fit on `rows`, whose coordinates are given."""
        return score(target, rows, self.outputs(coordinates_NR))


def batches(targets: Sequence[Target], train: Rows) -> Iterator[Sequence[Target]]:
    """Targets that are fitted together: some binary ones; numbers that are known in the same rows; a category alone."""
    binary = [target for target in targets if target.kind == "binary"]
    yield from (binary[start : start + _TOGETHER] for start in range(0, len(binary), _TOGETHER))
    yield from same_rows([target for target in targets if target.kind == "number"], train)
    yield from ([target] for target in targets if target.kind == "category")


def same_rows(targets: Sequence[Target], train: Rows) -> list[list[Target]]:
    """Targets whose value is known in the same training rows share their moments."""
    groups: dict[bytes, list[Target]] = {}
    for target in targets:
        unknown = np.isnan(target.values[train])
        groups.setdefault(np.packbits(unknown).tobytes(), []).append(target)
    return list(groups.values())


def fit_targets(
    targets: Sequence[Target],
    split: Split,
    space: FeatureSpace,
    parts: Mapping[str, FloatArray],
    reporter: Reporter,
) -> dict[str, Choice]:
    """Fit targets of one kind together.

    Goes down the path until no target has gained for two steps: the weakest regularisations cost most.

    Args:
        targets: as `batches` puts them together.
        split: rows that train and rows that choose.
        space: axes of the coordinates.
        parts: coordinates of the rows of each part of `split`.
        reporter: advanced by one for each target and regularisation.
    """
    choices: dict[str, Choice] = {}
    done = idle = 0
    for fit in _path(targets, split.train, space, parts["train"]):
        idle = 0 if _choose(targets, fit, split.val, parts["val"], choices) else idle + 1
        done += 1
        reporter.advance(len(targets))
        if idle == _PATIENCE:
            break
    reporter.advance(len(targets) * (len(REGULARISATIONS) - done))
    return choices


def _choose(targets: Sequence[Target], fit: LinearFit, rows: Rows, val: FloatArray, choices: dict[str, Choice]) -> bool:
    """Put the targets for which `fit` is the best so far into `choices`; whether there was one."""
    outputs = fit.predict(val)
    start, gained = 0, False
    for target in targets:
        own = slice(start, start := start + target.width)
        gain = merit(target, rows, outputs[:, own])
        if target.name not in choices or gain > choices[target.name].merit:
            choices[target.name] = _choice(fit, own, gain)
            gained = True
    return gained


def _choice(fit: LinearFit, own: slice, merit: float) -> Choice:
    weights, bias = fit.weights[:, own].copy(), fit.bias[own].copy()
    return Choice(merit=merit, reg=fit.reg, weights=weights, bias=bias, converged=bool(fit.converged[own].all()))


def _path(targets: Sequence[Target], rows: Rows, space: FeatureSpace, train_NR: FloatArray) -> Iterator[LinearFit]:
    values = np.stack([target.standard[rows] for target in targets], axis=1)
    if targets[0].kind == "number":
        return ridge_path(train_NR, values, REGULARISATIONS)
    return fit_path(train_NR, space.variances, _loss(targets, values), REGULARISATIONS)


def _loss(targets: Sequence[Target], values_NC: DoubleArray) -> Loss:
    if targets[0].kind == "binary":
        return BinaryLoss(values_NC)
    codes = np.where(np.isnan(values_NC[:, 0]), -1, values_NC[:, 0]).astype(np.int64)
    return CategoryLoss(codes, targets[0].width)
