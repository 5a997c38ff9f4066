"""The FactorVAE score of one code, for dims and chunks from the same draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diticli.disentanglement.codes import Codes
from diticli.disentanglement.factor_vae import (
    TEST_VOTES,
    TRAIN_VOTES,
    group_variances,
    is_usable,
    part_count,
    shared_value_variances,
    vote_accuracy,
)
from diticli.disentanglement.factors import Factor


@dataclass(frozen=True, kw_only=True)
class VoteScore:
    """FactorVAE score of some units.

    Attributes:
        accuracy: share of right votes; None where undefined.
        chance: one over the number of factors voted on; None with it.
    """

    accuracy: float | None = None
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Of dims and of chunks."""

    dims: VoteScore = VoteScore()
    chunks: VoteScore = VoteScore()


def cast_votes(factors: Sequence[Factor], codes: Codes, seed: int) -> Votes:
    """Draw, vote and score; factors without enough rows of any value do not take part."""
    rng = np.random.default_rng(seed)
    parts = part_count(min(len(codes.train_rows), len(codes.test_rows)))
    classes = [factor.classes(parts, codes.train_rows) for factor in factors]
    usable = [c for c in classes if is_usable(c[codes.train_rows]) and is_usable(c[codes.test_rows])]
    if len(usable) < 2:
        return Votes()
    train = shared_value_variances(codes.train, [c[codes.train_rows] for c in usable], TRAIN_VOTES, rng)
    test = shared_value_variances(codes.test, [c[codes.test_rows] for c in usable], TEST_VOTES, rng)
    chance = 1 / len(usable)
    dims = VoteScore(accuracy=vote_accuracy(train, test), chance=chance)
    if not codes.groups:
        return Votes(dims=dims)
    grouped = [group_variances(variances, codes.groups) for variances in (train, test)]
    return Votes(dims=dims, chunks=VoteScore(accuracy=vote_accuracy(*grouped), chance=chance))
