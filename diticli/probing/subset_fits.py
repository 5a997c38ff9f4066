"""Linear models on many subsets of the dimensions, in closed form from blocks of one Gram matrix.

Numbers get ridge regression. Binary attributes get the same on 0 and 1, which orders rows as Fisher's linear
discriminant with the same regularisation does; categories get that discriminant (Hastie, Buja and Tibshirani, Annals of
Statistics 1995). Thousands of logistic regressions would take hours; the discriminant reads the same linear
information, and where the table of the probe has both they differ little.

Shape suffixes: N rows, R coordinates of the full space, S coordinates of a subset, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from diticli.probing.fit import REGULARISATIONS
from diticli.probing.linear import Moments
from diticli.probing.masked_fit import ProbeRows
from diticli.targets import Target
from diticli.types import DoubleArray, FloatArray


class SubsetFits:
    """Fits of targets that are known in the same training rows; the validation rows choose each regularisation.

    The objective is that of `diticli.probing.linear.ridge_path`.
    """

    def __init__(self, targets: Sequence[Target], rows: ProbeRows) -> None:
        """The moments of the training rows; `targets` as `same_rows` puts them together."""
        self.linear = [target for target in targets if target.kind != "category"]
        self.categories = [target for target in targets if target.kind == "category"]
        self._rows = rows
        train = np.flatnonzero(~np.isnan(targets[0].standard[rows.split.train]))
        codes = [_one_hot(target, rows.split.train[train]) for target in self.categories]
        columns = [target.standard[rows.split.train[train]] for target in self.linear]
        outcomes_NC = np.concatenate(
            [np.stack(columns, axis=1) if columns else np.empty((len(train), 0)), *codes], axis=1
        )
        self._moments = Moments.from_rows(rows.parts["train"], train, outcomes_NC)
        ends = np.cumsum([len(self.linear), *(target.width for target in self.categories)])
        self._cross, *self._class_cross = np.split(self._moments.cross, ends[:-1], axis=1)
        self._linear_rates, *self._class_rates = np.split(self._moments.rates, ends[:-1])

    def test_outputs(self, dims: Sequence[int]) -> dict[str, FloatArray]:
        """Name of each target -> outputs [N, width] on the test rows of its model on `dims` alone."""
        turn_RS, variances = self._moments.axes(self._rows.space.basis[list(dims)])
        val, test = (
            self._rows.parts[part] @ turn_RS.astype(np.float32) - (self._moments.mean @ turn_RS).astype(np.float32)
            for part in ("val", "test")
        )
        outputs = self._linear_outputs(turn_RS, variances, val, test) if self.linear else {}
        for target, cross, rates in zip(self.categories, self._class_cross, self._class_rates, strict=True):
            outputs[target.name] = self._class_outputs(target, turn_RS.T @ cross, rates, variances, val, test)
        return outputs

    def _linear_outputs(
        self, turn_RS: DoubleArray, variances: DoubleArray, val: FloatArray, test: FloatArray
    ) -> dict[str, FloatArray]:
        truth = np.stack([target.standard[self._rows.split.val] for target in self.linear], axis=1)
        cross_SC = turn_RS.T @ self._cross
        best = np.full(len(self.linear), np.inf)
        chosen = np.zeros_like(cross_SC)
        for reg in REGULARISATIONS:
            weights = cross_SC / (variances + reg)[:, None]
            errors = np.nanmean(np.square(val @ weights + self._linear_rates - truth), axis=0)
            better = errors < best
            chosen[:, better], best[better] = weights[:, better], errors[better]
        outputs = (test @ chosen + self._linear_rates).astype(np.float32)
        return {target.name: outputs[:, i : i + 1] for i, target in enumerate(self.linear)}

    def _class_outputs(
        self,
        target: Target,
        cross_SC: DoubleArray,
        rates: DoubleArray,
        variances: DoubleArray,
        val: FloatArray,
        test: FloatArray,
    ) -> FloatArray:
        truth = target.standard[self._rows.split.val]
        known = ~np.isnan(truth)
        best, outputs = -1.0, np.empty(0, dtype=np.float32)
        for reg in REGULARISATIONS:
            weights, bias = discriminant(cross_SC, rates, variances + reg)
            accuracy = float(np.mean((val[known] @ weights + bias).argmax(axis=1) == truth[known]))
            if accuracy > best:
                best, outputs = accuracy, (test @ weights + bias).astype(np.float32)
        return outputs


def discriminant(cross_SC: DoubleArray, rates: DoubleArray, total: DoubleArray) -> tuple[DoubleArray, DoubleArray]:
    """Fisher's linear discriminant with a regularised within-class covariance: weights [S, C] and bias [C].

    Args:
        cross_SC: covariance of the coordinates with the indicator of each class: rate times centred class mean.
        rates: [C] share of each class, above 0 and summing to 1.
        total: [S] regularised total variance of the coordinates, which are uncorrelated.
    """
    means_SC = cross_SC / rates
    scaled = means_SC / total[:, None]
    # Within = total - sum_c rate_c mean_c mean_c^T, inverted by the identity of Woodbury.
    system = np.eye(len(rates)) - (means_SC.T @ scaled) * rates
    weights = np.linalg.solve(system, scaled.T).T.astype(np.float64)
    return weights, np.log(rates) - 0.5 * np.einsum("sc,sc->c", means_SC, weights)


def _one_hot(target: Target, rows: npt.NDArray[np.int64]) -> DoubleArray:
    return np.eye(target.width)[target.standard[rows].astype(np.int64)]
