"""Do chunks act in the order in which the diffusion process loses the attributes?

Legend of shape suffixes: A attributes, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diticli.evaluation.attribute_survival import SurvivalCurves
from diticli.evaluation.scores import to_json
from diticli.evaluation.swap_effects import SwapEffects
from diticli.statistics import Estimate, spearman

MIN_ATTRIBUTES = 3
PERMUTATIONS = 10_000


@dataclass(frozen=True, kw_only=True)
class OrderAgreement:
    """Rank correlation between where the chunks move attributes and when the noise hides them.

    Attributes:
        spearman: 1 same order, 0 none, -1 reverse. The interval tells how well both orders are measured for these
            attributes: pairs and held-out images are resampled, attributes are not.
        p_value: how often attributes in random order would agree as well or better.
        attributes: those that any chunk moves, that the classifier reads, and that have a time at which they are lost.
        atlas: their centres of mass, timesteps.
        lost: the timesteps at which one half of each is lost.
    """

    spearman: Estimate
    p_value: float
    attributes: tuple[str, ...]
    atlas: tuple[float, ...]
    lost: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        json: dict[str, Any] = to_json(self)
        return json


def compare_order(atlas: SwapEffects, lost: SurvivalCurves, *, seed: int = 0) -> OrderAgreement | None:
    """Spearman's correlation of `SwapEffects.centres` and `SurvivalCurves.half`; None for fewer than three attributes,
    or where all have the same centre (as with a single chunk).

    Args:
        atlas: what chunks do.
        lost: when attributes are lost, under the same names.
        seed: of the permutations.
    """
    lost_names = list(lost.half)
    found = {
        name: (centre.value, half.value)
        for name, centre in atlas.centres.items()
        if centre is not None and name not in atlas.unreadable and (half := lost.half.get(name)) is not None
    }
    if len(found) < MIN_ATTRIBUTES:
        return None
    names = tuple(found)
    centres_A, halves_A = np.array(list(found.values())).T
    count = min(len(atlas.centre_draws), len(lost.half_draws))
    centre_draws_RA = atlas.centre_draws[:count, [atlas.attributes.index(name) for name in names]]
    half_draws_RA = lost.half_draws[:count, [lost_names.index(name) for name in names]]
    rho = float(spearman(centres_A, halves_A))
    if np.isnan(rho):
        return None
    order_RA = np.argsort(np.random.default_rng(seed).random((PERMUTATIONS, len(names))), axis=1)
    chance_R = spearman(centres_A[order_RA], halves_A)
    return OrderAgreement(
        spearman=Estimate.from_resamples(rho, spearman(centre_draws_RA, half_draws_RA)),
        p_value=float((1 + np.sum(chance_R >= rho - 1e-12)) / (1 + PERMUTATIONS)),
        attributes=names,
        atlas=tuple(centres_A.tolist()),
        lost=tuple(halves_A.tolist()),
    )
