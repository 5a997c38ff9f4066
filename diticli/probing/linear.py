"""Regularised linear models for many targets at once, along a path of regularisations.

All targets share the features, so one eigendecomposition of the training features serves them all. Numbers get ridge
regression in closed form. For classes a diagonal scaling of these coordinates makes every objective nearly round, and
one L-BFGS fits all targets together with matrix products. The minimum is that of
`sklearn.linear_model.LogisticRegression(C=1 / (reg * n))` and `Ridge(alpha=reg * n)`, target by target.

Shape suffixes: N rows, D features, R coordinates (rank), C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from diticli.errors import FeatureFileError
from diticli.features.rows import FeatureRows
from diticli.types import DoubleArray, FloatArray, Rows

_BLOCK_VALUES = 2**22
_BLOCK_ROWS = 2**15
RANK_TOLERANCE = 1e-10
_CONSTANT = 1e-6
MAX_ITERATIONS = 300
_MAX_EVALUATIONS = MAX_ITERATIONS * 5 // 4
_GRADIENT = 1e-6
_GRADIENT_AT_LIMIT = 1e-5
"""Of the scaled weights, per target: rounding of the float32 products is below it."""
_CURVATURE_FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """Standardisation and principal axes of the training rows.

    Attributes:
        mean: [D] mean of each feature.
        std: [D] standard deviation; 1 where a feature is constant.
        basis: [D, R] orthonormal axes in standardised space. Directions that no training row has are
            left out: an L2-regularised model has no weight there. Constant features have none at all.
        variances: [R] variance of the training rows along each axis.
    """

    mean: DoubleArray
    std: DoubleArray
    basis: DoubleArray
    variances: DoubleArray

    @classmethod
    def fit(cls, values: FeatureRows, train: Rows) -> FeatureSpace:
        """Space of the rows `train` of `values` [N, D], read block by block in float64.

        Raises:
            FeatureFileError: when no feature varies.
        """
        count, width = len(train), values.shape[1]
        mean = sum((rows.sum(axis=0) for rows in _blocks(values, train)), np.zeros(width)) / count
        squares = (np.square(rows - mean).sum(axis=0) for rows in _blocks(values, train))
        std = np.sqrt(sum(squares, np.zeros(width)) / count)
        constant = std <= _CONSTANT * np.abs(mean)
        if constant.all():
            raise FeatureFileError(
                f"All {width} features are constant over the {count} training rows.",
                remedy="Check the model that made them.",
            )
        std = np.where(constant, 1.0, std)
        axes = _axes if count >= width else _axes_of_few
        basis, variances = axes(values, train, mean, std)
        basis[constant] = 0.0  # not the rounding of its mean, which a restricted direction would blow up
        return cls(mean=mean, std=std, basis=basis, variances=variances)

    def standardise(self, coordinates_NR: FloatArray) -> FloatArray:
        """Standardised rows [N, D] again, from their coordinates."""
        return coordinates_NR @ self.basis.T.astype(np.float32)

    def restrict(self, dims: Sequence[int]) -> FeatureSpace:
        """The space of features that are 0 outside `dims`; its axes have entries there only."""
        own = self.basis[list(dims)]
        variances, axes = np.linalg.eigh((own * self.variances) @ own.T)
        kept = variances > RANK_TOLERANCE * variances[-1]
        basis = np.zeros((len(self.mean), int(kept.sum())))
        basis[list(dims)] = axes[:, kept]
        return replace(self, basis=basis, variances=variances[kept])

    def project(self, values: FeatureRows, rows: Rows) -> FloatArray:
        """Coordinates [len(rows), R] of standardised rows."""
        out = np.empty((len(rows), self.basis.shape[1]), dtype=np.float32)
        start = 0
        for block in _blocks(values, rows):
            out[start : start + len(block)] = ((block - self.mean) / self.std) @ self.basis
            start += len(block)
        return out


class BinaryLoss:
    """Logistic loss of C independent binary targets; `targets_NC` 0 or 1, NaN left out."""

    def __init__(self, targets_NC: DoubleArray) -> None:
        self.targets, self.weights = _targets(targets_NC)
        rate = (self.targets * self.weights).sum(dim=0)
        self.curvature = (rate * (1 - rate)).clamp_min(_CURVATURE_FLOOR)

    def __call__(self, logits_NC: torch.Tensor) -> torch.Tensor:
        """Sum over targets of the mean over rows."""
        return F.binary_cross_entropy_with_logits(logits_NC, self.targets, self.weights, reduction="sum")


class CategoryLoss:
    """Multinomial logistic loss of one target with C classes; `codes` [N] in 0..C-1, below 0 left out."""

    def __init__(self, codes: npt.NDArray[np.int64], classes: int) -> None:
        self.rows = torch.from_numpy(np.flatnonzero(codes >= 0))
        self.codes = torch.from_numpy(codes[codes >= 0])
        rate = torch.bincount(self.codes, minlength=classes).double() / len(self.codes)
        self.curvature = (rate * (1 - rate)).clamp_min(_CURVATURE_FLOOR)

    def __call__(self, logits_NC: torch.Tensor) -> torch.Tensor:
        """Mean over rows."""
        return F.cross_entropy(logits_NC[self.rows], self.codes)


Loss = BinaryLoss | CategoryLoss


@dataclass(frozen=True, kw_only=True)
class LinearFit:
    """Models of one regularisation: outputs are `z @ weights + bias`.

    Attributes:
        reg: the objective is loss + reg / 2 * ||w||^2 (the bias is free).
        weights: [R, C] float64.
        bias: [C] float64.
        converged: [C] whether the minimum was reached: False where L-BFGS stopped at `MAX_ITERATIONS` on a slope.
    """

    reg: float
    weights: DoubleArray
    bias: DoubleArray
    converged: npt.NDArray[np.bool_]

    def predict(self, z_NR: FloatArray) -> DoubleArray:
        """Outputs [N, C]."""
        return z_NR @ self.weights.astype(np.float32) + self.bias


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of rows and their known outcomes: all that a ridge regression on any axes needs.

    Attributes:
        mean: [R] of the coordinates.
        covariance: [R, R] of them.
        cross: [R, C] their covariance with the outcomes.
        rates: [C] mean of the outcomes.
    """

    mean: DoubleArray
    covariance: DoubleArray
    cross: DoubleArray
    rates: DoubleArray

    @classmethod
    def from_rows(cls, z_NR: FloatArray, rows: Rows, outcomes_NC: DoubleArray) -> Moments:
        """Of the rows `rows` of `z_NR`, whose outcomes are given."""
        width = z_NR.shape[1]
        total, gram, cross = np.zeros(width), np.zeros((width, width)), np.zeros((width, outcomes_NC.shape[1]))
        rates = outcomes_NC.mean(axis=0)
        centred = outcomes_NC - rates
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = z_NR[rows[start : start + _BLOCK_ROWS]].astype(np.float64)
            total += block.sum(axis=0)
            gram += block.T @ block
            cross += block.T @ centred[start : start + len(block)]
        mean = total / len(rows)
        covariance = gram / len(rows) - np.outer(mean, mean)
        return cls(mean=mean, covariance=covariance, cross=cross / len(rows), rates=rates)

    def axes(self, own_SR: DoubleArray | None = None) -> tuple[DoubleArray, DoubleArray]:
        """Uncorrelated axes of all coordinates, or of the span of `own_SR`: [R, S] and their variances [S]."""
        own = np.eye(len(self.mean)) if own_SR is None else own_SR
        variances, axes = np.linalg.eigh(own @ self.covariance @ own.T) if len(own) else (np.empty(0), np.empty((0, 0)))
        kept = variances > RANK_TOLERANCE * variances.max(initial=0.0)
        return own.T @ axes[:, kept], variances[kept]


def ridge_path(z_NR: FloatArray, targets_NC: DoubleArray, regs: Sequence[float]) -> Iterator[LinearFit]:
    """Minimise half the mean squared error + reg / 2 * ||w||^2 for each of `regs`, in closed form.

    Args:
        z_NR: training rows.
        targets_NC: numbers that are known in the same rows; NaN left out.
        regs: regularisations.

    Yields:
        One fit per regularisation.
    """
    known = np.flatnonzero(~np.isnan(targets_NC[:, 0]))
    moments = Moments.from_rows(z_NR, known, targets_NC[known])
    axes_RS, variances = moments.axes()
    cross_SC = axes_RS.T @ moments.cross
    for reg in regs:
        weights = axes_RS @ (cross_SC / (variances + reg)[:, None])
        bias = moments.rates - moments.mean @ weights
        yield LinearFit(reg=reg, weights=weights, bias=bias, converged=np.ones(len(bias), dtype=bool))


def fit_path(z_NR: FloatArray, variances: DoubleArray, loss: Loss, regs: Sequence[float]) -> Iterator[LinearFit]:
    """Minimise loss + reg / 2 * ||w||^2 for each of `regs`, each from the solution before.

    Args:
        z_NR: training rows in the axes of a `FeatureSpace`.
        variances: [R] of those axes.
        loss: what to minimise; holds the N targets.
        regs: regularisations; warm starts pay when they decrease.

    Yields:
        One fit per regularisation.
    """
    z = torch.from_numpy(z_NR)
    curvature_RC = torch.from_numpy(variances)[:, None] * loss.curvature
    weights = torch.zeros_like(curvature_RC)
    bias = torch.zeros(curvature_RC.shape[1], dtype=torch.float64)
    for reg in regs:
        weights, bias, converged_C = _minimise(z, loss, reg, weights, bias, scale=(curvature_RC + reg).rsqrt())
        yield LinearFit(reg=reg, weights=weights.numpy(), bias=bias.numpy(), converged=converged_C.numpy())


def _minimise(
    z: torch.Tensor, loss: Loss, reg: float, weights: torch.Tensor, bias: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One L-BFGS over scaled weights: products in float32, sums in float64 so that the search sees them.

    Returns weights, bias, and which outputs have converged.
    """
    bias_scale = loss.curvature.rsqrt()
    scaled = (weights / scale).requires_grad_()
    scaled_bias = (bias / bias_scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, scaled_bias],
        max_iter=MAX_ITERATIONS,
        max_eval=_MAX_EVALUATIONS,
        history_size=20,
        tolerance_grad=_GRADIENT,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        w = scaled * scale
        outputs = (z @ w.float()).double() + scaled_bias * bias_scale
        total = loss(outputs) + reg / 2 * w.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(objective)
        state = optimizer.state[scaled]
        converged_C = torch.ones(len(bias), dtype=torch.bool)
        if state["n_iter"] >= MAX_ITERATIONS or state["func_evals"] >= _MAX_EVALUATIONS:
            objective()  # leaves the gradient of the last point
            slope_C = torch.vstack([_gradient(scaled), _gradient(scaled_bias)[None]]).abs().amax(dim=0)
            converged_C = slope_C <= _GRADIENT_AT_LIMIT
    if isinstance(loss, CategoryLoss):  # one model, whose classes are fitted together
        converged_C = converged_C.all().expand(len(bias))
    return (scaled * scale).detach(), (scaled_bias * bias_scale).detach(), converged_C


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _targets(targets_NC: DoubleArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets with 0 for NaN, and weights that make sums over known rows means."""
    known = ~np.isnan(targets_NC)
    weights = known / np.maximum(known.sum(axis=0), 1)
    return torch.from_numpy(np.where(known, targets_NC, 0.0)), torch.from_numpy(weights)


def _blocks(values: FeatureRows, rows: Rows) -> Iterator[DoubleArray]:
    size = max(1, _BLOCK_VALUES // values.shape[1])
    for start in range(0, len(rows), size):
        yield values[rows[start : start + size]].astype(np.float64)


def _axes(values: FeatureRows, train: Rows, mean: DoubleArray, std: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    gram = np.zeros((values.shape[1], values.shape[1]))
    for block in _blocks(values, train):
        standard = (block - mean) / std
        gram += standard.T @ standard
    variances, basis = np.linalg.eigh(gram / len(train))
    kept = variances > RANK_TOLERANCE * variances[-1]
    return np.ascontiguousarray(basis[:, kept]), variances[kept]


def _axes_of_few(
    values: FeatureRows, train: Rows, mean: DoubleArray, std: DoubleArray
) -> tuple[DoubleArray, DoubleArray]:
    """With fewer rows than features, the smaller matrix of inner products gives the same axes."""
    standard = (values[train].astype(np.float64) - mean) / std
    variances, coefficients = np.linalg.eigh(standard @ standard.T / len(train))
    kept = variances > RANK_TOLERANCE * variances[-1]
    basis = standard.T @ (coefficients[:, kept] / np.sqrt(variances[kept] * len(train)))
    return basis, variances[kept]
