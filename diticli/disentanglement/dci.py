"""Disentanglement and completeness of an importance matrix (the D and C of DCI).

Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled Representations", ICLR 2018
(OpenReview By-7dz-AZ), section 2: R_uf is the importance of unit u for predicting factor f.
D_u = 1 - H_F(R_u. / sum_f R_uf), D = sum_u rho_u D_u with rho_u the share of u in all importance;
C_f = 1 - H_U(R_.f / sum_u R_uf), C = mean over factors. H_B is the entropy to base B.

A chunk's importance is the sum over its dims (ours): a factor spread over the dims of one chunk is complete there.
A copy of the factors gets 1 and 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diticli.types import DoubleArray


def disentanglement(importance_UF: DoubleArray) -> float | None:
    """D in [0, 1] of importances [units, factors] >= 0; None for one factor, or when nothing is important."""
    weights = importance_UF.sum(axis=1)
    if importance_UF.shape[1] < 2 or weights.sum() == 0:
        return None
    return float(np.average(_concentration(importance_UF), weights=weights))


def completeness(importance_UF: DoubleArray) -> float | None:
    """C in [0, 1] of importances [units, factors] >= 0; None for one unit, or when nothing is important.

    Factors that no unit matters for do not count.
    """
    found = importance_UF[:, importance_UF.sum(axis=0) > 0]
    if len(found) < 2 or not found.size:
        return None
    return float(_concentration(found.T).mean())


def sum_groups(importance_DF: DoubleArray, groups: tuple[npt.NDArray[np.int64], ...]) -> DoubleArray:
    """[K, F] importance of each group of dims."""
    return np.stack([importance_DF[group].sum(axis=0) for group in groups])


def _concentration(rows: DoubleArray) -> DoubleArray:
    """1 - entropy of each row's shares, to the base of their number; 0 for a row of zeros."""
    totals = rows.sum(axis=1, keepdims=True)
    shares = np.divide(rows, totals, out=np.full_like(rows, 1 / rows.shape[1]), where=totals > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return 1 + (shares * logs).sum(axis=1) / np.log(rows.shape[1])
