"""Mutual information gap: is each factor's information in one unit?

Chen et al., "Isolating Sources of Disentanglement in VAEs", NeurIPS 2018 (arXiv 1802.04942), equation 6:
MIG = mean over factors of (I(best unit; factor) - I(second best; factor)) / H(factor).

Histograms of 20 bins as in Locatello et al., "Challenging Common Assumptions", ICML 2019 (arXiv 1811.12359). A
copy of the factors gets 1 less the counting noise, a code without information 0.
"""

from __future__ import annotations

from diticli.disentanglement.gaps import mean_or_none, top_gap
from diticli.types import DoubleArray


def mutual_information_gaps(shares_UF: DoubleArray) -> list[float | None]:
    """[F] the gap of each factor.

    Args:
        shares_UF: [units, factors] mutual information in shares of the factor's entropy.
    """
    return [top_gap(column) for column in shares_UF.T]


def mutual_information_gap(shares_UF: DoubleArray) -> float | None:
    """MIG in [0, 1]; None for fewer than two units."""
    return mean_or_none(mutual_information_gaps(shares_UF))
