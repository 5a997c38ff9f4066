"""FactorVAE score: among rows that share a factor's value, which unit varies least?

Kim and Mnih, "Disentangling by Factorising", ICML 2018 (arXiv 1802.05983), section 4: draw rows with one value of one
factor in common, vote for the unit of the least variance (over its variance in all rows), learn from training votes
which factor each unit stands for (majority), and score the share of test votes that are right. 10,000 training and
5,000 test votes of 64 rows, as in Locatello et al. (ICML 2019, arXiv 1811.12359).

Ours, for data that cannot be drawn anew: rows are taken from those at hand, values evenly among those with ten rows or
more (64 a vote where there are as many), a number's values are its quantile classes; correlated factors vary less
together, which costs the code votes that are no fault of its own. Only dims without any variance are pruned: variances
are relative, so a scale decides nothing. A chunk's variance is the mean over its dims of their relative variances.

A copy of the factors gets 1, a code without information one over the number of factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diticli.disentanglement.codes import Codes, discrete
from diticli.targets import Target
from diticli.types import DoubleArray, Rows

TRAIN_VOTES = 10_000
TEST_VOTES = 5_000
GROUP_ROWS = 64
MIN_GROUP_ROWS = 10
MAX_PARTS = 10
_ROWS_PER_PART = 32


def part_count(rows: int) -> int:
    """Quantile classes of a number that leave enough of `rows` in each."""
    return max(2, min(MAX_PARTS, rows // _ROWS_PER_PART))


def is_usable(classes: DoubleArray) -> bool:
    """Whether some value of `classes` [N] (NaN: unknown) has enough rows to draw from."""
    return bool(np.unique(classes[~np.isnan(classes)], return_counts=True)[1].max(initial=0) >= MIN_GROUP_ROWS)


def shared_value_variances(
    codes_ND: DoubleArray, classes: Sequence[DoubleArray], votes: int, rng: np.random.Generator
) -> DoubleArray:
    """[F, V, D] variance of each dim within V = votes / F groups of rows that share one value of factor f.

    Args:
        codes_ND: [N, D] dims of variance 1.
        classes: [F][N] usable factors.
        votes: of all factors together, rounded up to a multiple of F.
        rng: of the draws.
    """
    each = -(-votes // len(classes))
    return np.stack([_variances_of(codes_ND, values, each, rng) for values in classes])


def group_variances(variances_FVD: DoubleArray, groups: Sequence[Rows]) -> DoubleArray:
    """[F, V, K] mean over the dims of each group."""
    return np.stack([variances_FVD[..., group].mean(axis=-1) for group in groups], axis=-1)


def vote_accuracy(train_FVU: DoubleArray, test_FVU: DoubleArray) -> float | None:
    """Share of test votes that a majority over training votes gets right; None for one unit or factor."""
    factors, _, units = train_FVU.shape
    if factors < 2 or units < 2:
        return None
    counts = np.stack([np.bincount(votes, minlength=units) for votes in train_FVU.argmin(axis=2)])
    stands_for = counts.argmax(axis=0)
    return float(np.mean(stands_for[test_FVU.argmin(axis=2)] == np.arange(factors)[:, None]))


def _variances_of(codes: DoubleArray, values: DoubleArray, votes: int, rng: np.random.Generator) -> DoubleArray:
    labels, counts = np.unique(values[~np.isnan(values)], return_counts=True)
    pools = [np.flatnonzero(values == label) for label in labels[counts >= MIN_GROUP_ROWS]]
    variances = np.empty((votes, codes.shape[1]))
    for vote in range(votes):
        pool = pools[rng.integers(len(pools))]
        chosen = rng.choice(pool, size=min(GROUP_ROWS, len(pool)), replace=False)
        variances[vote] = codes[chosen].var(axis=0, ddof=1)
    return variances


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
    """FactorVAE scores of dims and of chunks."""

    dims: VoteScore = VoteScore()
    chunks: VoteScore = VoteScore()


def cast_votes(factors: Sequence[Target], codes: Codes, seed: int) -> Votes:
    """Draw, vote and score; factors without enough rows of any value do not take part."""
    rng = np.random.default_rng(seed)
    parts = part_count(min(len(codes.train_rows), len(codes.test_rows)))
    classes = [discrete(factor, parts, codes.train_rows).values for factor in factors]
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
