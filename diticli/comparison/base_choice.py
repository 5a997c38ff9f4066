"""The timestep and the block whose features of the base are compared: those that the validation images choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diticli.data.labels import LabelColumn
from diticli.data.splits import Split
from diticli.features.rows import FeatureRows
from diticli.probing.fit import Choice, batches, fit_targets
from diticli.probing.linear import FeatureSpace
from diticli.progress import Reporter, SilentReporter
from diticli.targets import make_targets
from diticli.types import FloatArray, Rows

_BLOCK = 4096


class Place(NamedTuple):
    """One of the places of a base whose features lie side by side: a timestep, a block, and the block's width."""

    timestep: int
    block: str
    width: int


def choose_place(
    values: FeatureRows,
    columns: Mapping[str, LabelColumn],
    rows: Rows,
    split: Split,
    places: Sequence[Place],
    reporter: Reporter | None = None,
) -> tuple[FloatArray, dict[Place, float]]:
    """Features [M, d] of the best of several places, and the mean score of each on the validation rows.

    The score of a number is 1 - MSE in units of the training variance, otherwise it is the probe's own metric; test
    rows take no part.

    Args:
        values: float32 [N, sum of widths], the places side by side.
        columns: M labels each.
        rows: [M] rows of `values`.
        split: of 0..M-1.
        places: of the columns, in their order.
        reporter: receiver of progress.
    """
    targets, _ = make_targets(columns, vars(split))
    reporter = reporter or SilentReporter()
    reporter.start("Choosing features of the base", len(places), unit="places")
    merits: dict[Place, float] = {}
    best, start = np.empty((0, 0), np.float32), 0
    for place in places:
        own = _columns(values, rows, slice(start, start := start + place.width))
        space = FeatureSpace.fit(own, split.train)
        parts = {"train": space.project(own, split.train), "val": space.project(own, split.val)}
        choices: dict[str, Choice] = {}
        for together in batches(targets, split.train):
            choices |= fit_targets(together, split, space, parts, SilentReporter())
        gains = [choices[target.name].merit + (target.kind == "number") for target in targets]
        merits[place] = float(np.mean(gains))
        if merits[place] == max(merits.values()):
            best = own
        reporter.advance()
    reporter.finish()
    return best, merits


def choice_note(name: str, merits: Mapping[Place, float]) -> str:
    """Which timestep and block the validation images chose, and how good each block is at its best timestep."""
    best = max(merits, key=lambda place: merits[place])
    blocks = {
        place.block: max((p for p in merits if p.block == place.block), key=merits.__getitem__) for place in merits
    }
    tried = ", ".join(f"{block} {merits[place]:.3f} at t = {place.timestep}" for block, place in blocks.items())
    return (
        f"{name}: t = {best.timestep}, block {best.block}, chosen by the mean score on validation images "
        f"(each block at its best timestep: {tried})."
    )


def _columns(values: FeatureRows, rows: Rows, own: slice) -> FloatArray:
    """[M, width] of one place, read in parts: all places of all rows need not fit in memory."""
    parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([np.asarray(values[part], dtype=np.float32)[:, own] for part in parts])
