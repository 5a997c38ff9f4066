"""Modularity: does each unit share information with one factor only?

Ridgeway and Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss", NeurIPS 2018 (arXiv
1802.05312), section 3: a unit u with its largest information at factor f deviates from the ideal (that value for f, 0
elsewhere) by delta_u = sum over g != f of I(u; g)^2 / (I(u; f)^2 (F - 1)); modularity = mean over units of 1 - delta_u.

A copy of the factors gets 1 less the counting noise; a unit that shares as much with every factor gets 0, and so does
one that shares nothing.
"""

from __future__ import annotations

import numpy as np

from diticli.types import DoubleArray


def modularity(information_UF: DoubleArray) -> float | None:
    """Modularity in [0, 1] of mutual information [units, factors] in nats; None for fewer than two factors."""
    if information_UF.shape[1] < 2:
        return None
    squares = np.square(information_UF)
    largest = squares.max(axis=1)
    others = (squares.sum(axis=1) - largest) / (squares.shape[1] - 1)
    deviations = np.divide(others, largest, out=np.ones_like(largest), where=largest > 0)
    return float(np.mean(1 - deviations))
