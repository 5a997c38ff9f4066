"""The models of a probe, put together into what predicts and what edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.features.read import FeatureMeta
from diticli.probing.directions import Directions
from diticli.probing.fit import Choice
from diticli.probing.linear import FeatureSpace
from diticli.probing.linear_probe import LinearProbe
from diticli.probing.mask import MaskedFit
from diticli.probing.targets import Target
from diticli.types import FloatArray


def fitted_directions(
    targets: Sequence[Target],
    choices: Mapping[str, Choice],
    few: Mapping[str, MaskedFit],
    space: FeatureSpace,
    meta: FeatureMeta,
    layout: ChunkLayout | None,
) -> Directions:
    """Directions to edit along.

    Args:
        targets: A attributes.
        choices: their classifiers on all dimensions, by name.
        few: their classifiers on few dimensions; empty without masks.
        space: axes of `choices`.
        meta: model of the features.
        layout: their chunks, or None when unknown.
    """
    masked = None
    if few:
        spaces = {name: fit.space for name, fit in few.items()}
        masked = _linear_probe(targets, {name: fit.choice for name, fit in few.items()}, spaces, meta.model_hash)
    return Directions(
        full=_linear_probe(targets, choices, dict.fromkeys(choices, space), meta.model_hash),
        masked=masked,
        chosen={name: fit.dims for name, fit in few.items()},
        patterns=_patterns(targets, choices, space),
        layout=layout,
        model=meta.model,
    )


def _patterns(targets: Sequence[Target], choices: Mapping[str, Choice], space: FeatureSpace) -> FloatArray:
    """Covariance [A, d] of standardised features and each model's output over the training rows."""
    patterns = [((space.basis * space.variances) @ choices[t.name].weights).T * t.scale for t in targets]
    return np.concatenate(patterns).astype(np.float32)


def _linear_probe(
    targets: Sequence[Target],
    choices: Mapping[str, Choice],
    spaces: Mapping[str, FeatureSpace],
    model_hash: str,
) -> LinearProbe:
    """All models in standardised feature space; a number's row predicts the number itself."""
    space = spaces[targets[0].name]
    weights = [(spaces[t.name].basis @ choices[t.name].weights).T * t.scale for t in targets]
    bias = [choices[t.name].bias * t.scale + t.offset for t in targets]
    return LinearProbe(
        weights=np.concatenate(weights).astype(np.float32),
        bias=np.concatenate(bias).astype(np.float32),
        mean=space.mean.astype(np.float32),
        std=space.std.astype(np.float32),
        names=tuple(t.name for t in targets for _ in range(t.width)),
        kinds=tuple(t.kind for t in targets for _ in range(t.width)),
        classes=tuple(name for t in targets for name in (t.classes or ("",))),
        model_hash=model_hash,
    )
