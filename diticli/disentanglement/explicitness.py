"""Explicitness: can each class of each factor be read off the whole code by a linear classifier?

Ridgeway and Mozer, NeurIPS 2018 (arXiv 1802.05312), section 3: AUROC of a logistic regression, one class against the
rest, averaged over classes and factors. 0.5 is chance, 1 perfect; a rotation changes nothing. A number is cut at its
quartiles (ours: the paper has discrete factors only).
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from diticli.disentanglement.codes import FactorRows
from diticli.disentanglement.importance import balanced_rows, fit_converged
from diticli.disentanglement.scores import mean_auroc

PARTS = 4
"""Classes that a number is cut into."""
_ROWS = 5_000
_ITERATIONS = 300


def explicitness(rows: FactorRows, seed: int) -> tuple[float, bool]:
    """Mean AUROC over the classes of one factor, on the test rows, and whether the fit converged.

    Args:
        rows: whose values are classes; see `Factor.classes`.
        seed: of the draw of rows where there are more than 5,000.
    """
    chosen = balanced_rows(rows, _ROWS, np.random.default_rng(seed))
    model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-3)
    converged = fit_converged(model, rows.x_train[chosen], rows.y_train[chosen])
    return mean_auroc(rows.y_test, model.predict_proba(rows.x_test), model.classes_), converged
