"""How modular is a matrix of effects, groups of chunks by attributes?

The definitions are those of DCI (Eastwood & Williams, ICLR 2018, section 3), which takes the importance of a code in
a regressor as the effect; here it is what exchanging chunks does to an image, which makes the scores ours.

Legend of shape suffixes: G groups of chunks, A attributes, R resamples.
"""

from __future__ import annotations

import numpy as np

from diticli.types import DoubleArray


def concentration(effects: DoubleArray) -> DoubleArray:
    """1 - entropy of each distribution over the last axis, over that of the uniform one: 1 one-hot, 0 uniform.

    Args:
        effects: [..., M], at least 0.

    Returns:
        [...]; NaN where all effects are 0, or there is but one.
    """
    count = effects.shape[-1]
    total = effects.sum(axis=-1, keepdims=True)
    if count < 2:
        return np.full(effects.shape[:-1], np.nan)
    p = np.divide(effects, total, out=np.zeros_like(effects), where=total > 0)
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1) / np.log(count)
    return np.where(total[..., 0] > 0, 1 - entropy, np.nan)


def completeness(effects_GA: DoubleArray) -> DoubleArray:
    """Is an attribute moved by one group only? Mean of `concentration` over attributes that any group moves.

    Args:
        effects_GA: [..., G, A], at least 0.
    """
    return _weighted_mean(np.swapaxes(effects_GA, -1, -2), weighted=False)


def disentanglement(effects_GA: DoubleArray) -> DoubleArray:
    """Does a group move one attribute only? `concentration` of the groups, weighted by how much each moves.

    Args:
        effects_GA: [..., G, A], at least 0.
    """
    return _weighted_mean(effects_GA, weighted=True)


def centre_of_mass(effects_GA: DoubleArray, times_G: DoubleArray) -> DoubleArray:
    """Mean time of the groups, weighted by what they do to each attribute: [..., A]; NaN where none does anything."""
    total = effects_GA.sum(axis=-2)
    mass = (effects_GA * times_G[:, None]).sum(axis=-2)
    return np.divide(mass, total, out=np.full_like(total, np.nan), where=total > 0)


def _weighted_mean(effects: DoubleArray, *, weighted: bool) -> DoubleArray:
    scores, total = concentration(effects), effects.sum(axis=-1)
    weights = np.where(np.isnan(scores), 0.0, total if weighted else 1.0)
    whole = weights.sum(axis=-1)
    mean = (np.nan_to_num(scores) * weights).sum(axis=-1)
    return np.divide(mean, whole, out=np.full_like(whole, np.nan), where=whole > 0)
