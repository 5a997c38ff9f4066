"""An entry's features under one split: PCA is fitted on its training rows, features of the base are chosen on its
validation rows, all others are as they were encoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diticli.comparison.base_choice import choice_note, choose_place
from diticli.comparison.encoding import FeatureStore
from diticli.comparison.entries import Entry
from diticli.comparison.pca import pca_features
from diticli.comparison.protocol import Protocol
from diticli.features.manifest import FeatureMeta
from diticli.features.rows import FeatureRows
from diticli.progress import Reporter
from diticli.types import Rows


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of the labelled images.

    Attributes:
        values: float32 [N, d].
        rows: [M] row of each labelled image.
        meta: where the features have some.
        note: how the features were chosen, where they were.
    """

    values: FeatureRows
    rows: Rows
    meta: FeatureMeta | None = None
    note: str = ""


def features_under(
    protocol: Protocol, store: FeatureStore, entry: Entry, *, seed: int, reporter: Reporter
) -> SplitFeatures:
    """The features of one entry.

    Args:
        protocol: whose split fits and chooses.
        store: of the encoded features.
        entry: whose features.
        seed: of the rows that PCA is fitted on, where there are more than it takes.
        reporter: receiver of progress.

    Raises:
        FeatureFileError: when they are missing or damaged.
        LabelError: when no attribute can choose.
    """
    found, rows = store.read(entry), protocol.rows[entry.name]
    if len(entry.places) > 1:
        best, merits = choose_place(found.values, protocol.columns, rows, protocol.split, entry.places, reporter)
        return SplitFeatures(values=best, rows=np.arange(len(best)), note=choice_note(entry.name, merits))
    if entry.spec.kind == "pca":
        values = pca_features(found.values, rows, protocol.split.train, entry.dims, seed=seed)
        return SplitFeatures(values=values, rows=np.arange(len(values)))
    return SplitFeatures(values=found.values, rows=rows, meta=found.meta)
