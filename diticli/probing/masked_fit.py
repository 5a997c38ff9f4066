"""The probe with a few dimensions for each attribute: learned, refitted, and compared with the largest weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from diticli.data.splits import Split
from diticli.probing.fit import REGULARISATIONS, Choice, fit_targets
from diticli.probing.linear import FeatureSpace
from diticli.probing.metrics import Score
from diticli.probing.promask import MaskSettings, learn_masks
from diticli.progress import Reporter
from diticli.targets import Target
from diticli.types import FloatArray

Dims = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MaskedFit:
    """A target's classifier on its own few dimensions.

    Attributes:
        dims: the dimensions, ascending.
        space: axes within them.
        choice: the classifier in these axes.
        score: on the test rows.
        by_weight: score of another classifier, on as many dimensions that have the largest weights in the full one.
        converged: whether both reached their minimum.
    """

    dims: Dims
    space: FeatureSpace
    choice: Choice
    score: Score
    by_weight: Score
    converged: bool


@dataclass(frozen=True, kw_only=True)
class ProbeRows:
    """Features of the rows of each part of a split, in the axes of `space`."""

    split: Split
    space: FeatureSpace
    parts: Mapping[str, FloatArray]


def fit_masked(
    targets: Sequence[Target],
    full: Mapping[str, Choice],
    rows: ProbeRows,
    settings: MaskSettings,
    *,
    seed: int,
    device: torch.device | str,
    reporter: Reporter,
) -> dict[str, MaskedFit]:
    """Learn every target's dimensions on the training rows, then fit its classifier on them alone.

    The classifier that was trained with the mask is replaced: the noise of the masks shrank its weights. The
    validation rows choose the regularisation, as for the full classifier.

    Args:
        targets: A attributes.
        full: their classifiers on all dimensions, by name.
        rows: features and split.
        settings: of the masks.
        seed: of the masks.
        device: where the masks are learned.
        reporter: receiver of progress.

    Raises:
        ConfigError: when fewer than `settings.dims` features vary.
    """
    of_train = [replace(target, values=target.values[rows.split.train]) for target in targets]
    standard = rows.space.standardise(rows.parts["train"])
    masks = learn_masks(standard, of_train, settings, seed=seed, device=device, reporter=reporter)
    del standard
    reporter.start("Probing chosen dims", 2 * len(targets) * len(REGULARISATIONS), unit="fits")
    fits = {}
    for target, chosen in zip(targets, masks.chosen, strict=True):
        dims = tuple(chosen.tolist())
        space, choice, score = _refit(target, dims, rows, reporter)
        largest = _largest(rows.space.basis @ full[target.name].weights, settings.dims)
        _, other, by_weight = (space, choice, score) if largest == dims else _refit(target, largest, rows, reporter)
        fits[target.name] = MaskedFit(
            dims=dims,
            space=space,
            choice=choice,
            score=score,
            by_weight=by_weight,
            converged=choice.converged and other.converged,
        )
    reporter.finish()
    return fits


def _refit(target: Target, dims: Dims, rows: ProbeRows, reporter: Reporter) -> tuple[FeatureSpace, Choice, Score]:
    space = rows.space.restrict(dims)
    turn = (rows.space.basis.T @ space.basis).astype(np.float32)
    parts = {part: coordinates @ turn for part, coordinates in rows.parts.items()}
    choice = fit_targets([target], rows.split, space, parts, reporter)[target.name]
    return space, choice, choice.score(target, rows.split.test, parts["test"])


def _largest(weights_DC: npt.NDArray[np.float64], count: int) -> Dims:
    order = np.argsort(-np.linalg.norm(weights_DC, axis=1), kind="stable")
    return tuple(np.sort(order[:count]).tolist())
