"""InfoMEC: modularity, explicitness and compactness of a code, each by information theory.

Hsu, Dorrell, Whittington, Wu and Finn, "Disentanglement via Latent Quantization", NeurIPS 2023 (arXiv 2305.18378),
section 4, checked against the authors' code (github.com/kylehkhsu/latent_quantization). With NMI [units, factors], the
mutual information of each unit and factor in shares of the factor's entropy, over the active units:

    InfoM = (mean over units   of max over factors / sum over factors - 1 / F) / (1 - 1 / F)
    InfoC = (mean over factors of max over units   / sum over units   - 1 / U) / (1 - 1 / U)
    InfoE = mean over factors of (H(f) - H(f | code)) / H(f), entropies under the best multinomial logistic regression

As the authors do for continuous codes, information is estimated from 10 nearest neighbours (Ross, PLOS ONE 2014), and a
dim is active when its range is over a twentieth of the largest. Two things are ours: a factor that is a number is cut
into at most ten classes of equal size, and the regression is fitted on training rows (with a small L2 penalty) and
measured on test rows, where the authors use one set of rows for both. On a code of many dims theirs is then near 1
whatever the code holds.

A copy of the factors gets 1 for InfoM and InfoC less the noise of the estimate; a code without information gets an
InfoE of 0, but, as with all ratios of noise, neither 0 for InfoM nor for InfoC.

Legend of shape suffixes: N rows, D dims, U units, F factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diticli.disentanglement.importance import balanced_rows, fit_converged
from diticli.types import DoubleArray

if TYPE_CHECKING:
    from diticli.disentanglement.codes import FactorRows

CLASSES = 10
"""Classes that a number is cut into."""
NEIGHBOURS = 10
ACTIVE = 1 / 20
"""Least range of an active dim, in shares of the largest range."""
ROWS = 2_000
_PENALTY = 1e-2  # times 1/2 of the squared weights, beside the sum of the rows' losses
_ITERATIONS = 300
_ROUNDING = 8 * np.finfo(np.float64).eps


def active_dims(ranges_D: DoubleArray) -> npt.NDArray[np.bool_]:
    """[D] which dims count, by the ranges of their values (not standardised)."""
    return ranges_D > ranges_D.max() * ACTIVE


def info_modularity(shares_UF: DoubleArray) -> float | None:
    """InfoM in [0, 1]: does each unit share information with one factor only? None for fewer than two factors.

    Args:
        shares_UF: [units, factors] mutual information in shares of the factor's entropy, of active units. A unit that
            shares none with any factor is left out.
    """
    return _concentration(shares_UF)


def info_compactness(shares_UF: DoubleArray) -> float | None:
    """InfoC in [0, 1]: is each factor's information in one unit only? None for fewer than two units.

    Args:
        shares_UF: as in `info_modularity`. A factor of which no unit holds anything is left out.
    """
    return _concentration(shares_UF.T)


def _concentration(shares: DoubleArray) -> float | None:
    """Mean over rows of the largest value's share of the row, from 0 (all values the same) to 1 (one value only)."""
    columns, total = shares.shape[1], shares.sum(axis=1)
    if columns < 2 or not (total > 0).any():
        return None
    found = shares[total > 0]
    return float((np.mean(found.max(axis=1) / found.sum(axis=1)) - 1 / columns) / (1 - 1 / columns))


def neighbour_information(values_ND: DoubleArray, labels: npt.NDArray[np.int64], seed: int) -> DoubleArray:
    """[D] mutual information in nats of each column with the classes `labels` [N], from nearest neighbours.

    Ross, "Mutual Information between Discrete and Continuous Data Sets", PLOS ONE 2014, equation 1. The same as
    scikit-learn's `mutual_info_classif` with 10 neighbours, for all columns at once.

    Args:
        values_ND: standardised.
        labels: from 0 on.
        seed: of noise of 1e-10, which tells equal values apart.
    """
    from scipy.special import digamma

    noise = np.random.default_rng(seed).standard_normal(values_ND.shape)
    counts = np.bincount(labels)
    kept = counts[labels] > 1  # a class of one row has no neighbour
    x, y = (values_ND + 1e-10 * noise)[kept], labels[kept]
    if not len(y):
        return np.zeros(values_ND.shape[1])
    everything = np.sort(x, axis=0)
    within = np.zeros(x.shape[1])
    for label in np.unique(y):
        own = np.sort(x[y == label], axis=0)
        # Less than the distance by more than a rounding of the sums below, so that the neighbour itself is outside.
        radius = _neighbour_distance(own, min(NEIGHBOURS, len(own) - 1)) - _ROUNDING * np.maximum(1, np.abs(own))
        for column in range(x.shape[1]):
            line, centre, reach = everything[:, column], own[:, column], radius[:, column]
            near = np.searchsorted(line, centre + reach, "right") - np.searchsorted(line, centre - reach, "left")
            within[column] += digamma(np.maximum(near, 1)).sum()
    rows = len(y)
    sizes = counts[y]
    constant = digamma(rows) + np.mean(digamma(np.minimum(NEIGHBOURS, sizes - 1))) - np.mean(digamma(sizes))
    return np.maximum(constant - within / rows, 0)


def _neighbour_distance(ordered_ND: DoubleArray, k: int) -> DoubleArray:
    """[N, D] distance of each value to its k-th nearest neighbour in its column, the columns being in order."""
    rows = len(ordered_ND)
    found = np.full_like(ordered_ND, np.inf)
    for below in range(k + 1):  # of the k neighbours, so many lie below
        first, last = below, rows - (k - below)
        centre = ordered_ND[first:last]
        far = np.maximum(centre - ordered_ND[: last - first], ordered_ND[k : k + last - first] - centre)
        found[first:last] = np.minimum(found[first:last], far)
    return found


def info_explicitness(rows: FactorRows, seed: int) -> tuple[float, bool]:
    """One factor's part of InfoE in [0, 1], and whether the fit converged.

    Args:
        rows: whose values are classes; see `diticli.disentanglement.codes.discrete`.
        seed: of the draw of rows where there are more than 2,000.
    """
    from sklearn.linear_model import LogisticRegression

    chosen = balanced_rows(rows, ROWS, np.random.default_rng(seed))
    model = LogisticRegression(C=1 / _PENALTY, class_weight="balanced", max_iter=_ITERATIONS, tol=1e-4)
    converged = fit_converged(model, rows.x_train[chosen], rows.y_train[chosen])
    classes = {label: column for column, label in enumerate(model.classes_.tolist())}
    known = np.array([label in classes for label in rows.y_test.tolist()], dtype=bool)
    if not known.any():
        return 0.0, converged
    column = np.array([classes[label] for label in rows.y_test[known].tolist()])
    chances = model.predict_proba(rows.x_test[known])[np.arange(len(column)), column]
    conditional = -np.mean(np.log(np.maximum(chances, np.finfo(float).tiny)))
    # Balanced weights and no input give every class the same chance.
    return float(np.clip(1 - conditional / np.log(len(classes)), 0, 1)), converged
