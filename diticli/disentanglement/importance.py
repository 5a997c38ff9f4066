"""How much each dim matters for predicting a factor: by boosted trees and by the lasso.

Both regressors appear in the literature on DCI and they read different things. Trees
(`sklearn.ensemble.GradientBoosting*`, as in Locatello et al., ICML 2019) take the purest dims first and see
curved relations; a code that mixes all factors in all dims still gets a high D from them. The lasso (Eastwood and
Williams, ICLR 2018) needs every dim that takes part in the best linear readout, so it is the stricter.

Cost is bounded whatever N is: trees are grown on at most 1,200 rows, with the classes as even as they can be, in 30
rounds of rate 0.3 where scikit-learn's default is 100 of rate 0.1. Every split sees all dims: drawing a few for each
split, the usual shortcut, spreads importance over dims that do not matter.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV
from sklearn.metrics import r2_score

from diticli.disentanglement.auroc import mean_auroc
from diticli.disentanglement.codes import FactorRows
from diticli.types import DoubleArray, Rows

FactorValues = npt.NDArray[np.float64] | npt.NDArray[np.bool_]

TREE_ROWS = 1_200
LASSO_ROWS = 5_000
_ROUNDS = 30
_RATE = 0.3
_LASSO_GRID = {"alphas": 20, "eps": 1e-2, "cv": 3, "tol": 1e-3, "max_iter": 2000}
_LEAST_R2 = 0.01


def tree_importance(rows: FactorRows, seed: int) -> tuple[DoubleArray, float]:
    """[D] importances that sum to 1 (or are all 0), and informativeness on the test rows.

    Informativeness (the I of DCI, as a score in place of an error): R2 of a number, 2 AUROC - 1 of classes, at least 0.
    """
    chosen = balanced_rows(rows, TREE_ROWS, np.random.default_rng(seed))
    kind = GradientBoostingRegressor if rows.kind == "number" else GradientBoostingClassifier
    model = kind(n_estimators=_ROUNDS, learning_rate=_RATE, random_state=seed)
    model.fit(rows.x_train[chosen], rows.y_train[chosen])
    if rows.kind == "number":
        score = float(r2_score(rows.y_test, model.predict(rows.x_test)))
    else:
        score = 2 * mean_auroc(rows.y_test, model.predict_proba(rows.x_test), model.classes_) - 1
    return model.feature_importances_, max(0.0, score)


def lasso_importance(rows: FactorRows, seed: int) -> tuple[DoubleArray, bool]:
    """[D] absolute lasso weights on standardised dims for the standardised factor, and whether all fits converged.

    Penalty by three-fold cross-validation. Classes are indicators, one for a binary factor, one each for a
    category, whose weights are summed. Weights that explain nothing on the test rows (R2 up to 0.01) are left out: of
    pure noise the lasso keeps one tiny weight, and one weight alone would look perfectly disentangled.
    """
    chosen = balanced_rows(rows, LASSO_ROWS, np.random.default_rng(seed))
    fitted, held_out = rows.y_train[chosen], rows.y_test
    if rows.kind != "category":
        return _lasso_weights(rows, chosen, fitted, held_out)
    found = [_lasso_weights(rows, chosen, fitted == label, held_out == label) for label in np.unique(fitted)]
    return np.sum([weights for weights, _ in found], axis=0), all(converged for _, converged in found)


def _lasso_weights(
    rows: FactorRows,
    chosen: Rows,
    fitted: FactorValues,
    held_out: FactorValues,
) -> tuple[DoubleArray, bool]:
    mean, std = fitted.mean(), fitted.std()
    model = LassoCV(**_LASSO_GRID)
    converged = fit_converged(model, rows.x_train[chosen], (fitted - mean) / std)
    explained = r2_score((held_out - mean) / std, model.predict(rows.x_test))
    return np.abs(model.coef_) * (explained > _LEAST_R2), converged


def fit_converged(model: Any, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> bool:
    """Fit a scikit-learn model; whether it did so without a ConvergenceWarning, which a report can then say."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def balanced_rows(rows: FactorRows, most: int, rng: np.random.Generator) -> Rows:
    """At most `most` training rows, ascending: drawn evenly of a number, of classes so that rare ones are kept."""
    order = rng.permutation(len(rows.y_train))
    if len(order) <= most:
        return np.sort(order)
    if rows.kind != "number":
        turn = np.zeros(len(order), dtype=np.int64)
        for label in np.unique(rows.y_train):
            own = np.flatnonzero(rows.y_train[order] == label)
            turn[own] = np.arange(len(own))
        order = order[np.argsort(turn, kind="stable")]  # the first of every class, the second of every class, ...
    return np.sort(order[:most])
