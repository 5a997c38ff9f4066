"""The timestep whose features of the base are compared: the one that the validation images choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def choose_timestep(
    values: FeatureRows,
    columns: Mapping[str, LabelColumn],
    rows: Rows,
    split: Split,
    timesteps: Sequence[int],
    reporter: Reporter | None = None,
) -> tuple[FloatArray, dict[int, float]]:
    """Features [M, d] of the best of several timesteps, and the mean score of each on the validation rows.

    The score of a number is 1 - MSE in units of the training variance, otherwise it is the probe's own metric; test
    rows take no part.

    Args:
        values: float32 [N, d * len(timesteps)], the timesteps side by side.
        columns: M labels each.
        rows: [M] rows of `values`.
        split: of 0..M-1.
        timesteps: of the columns.
        reporter: receiver of progress.
    """
    targets, _ = make_targets(columns, vars(split))
    merits: dict[int, float] = {}
    best = np.empty((0, 0), np.float32)
    for number, timestep in enumerate(timesteps):
        own = _columns(values, rows, number, values.shape[1] // len(timesteps))
        space = FeatureSpace.fit(own, split.train)
        parts = {"train": space.project(own, split.train), "val": space.project(own, split.val)}
        choices: dict[str, Choice] = {}
        for together in batches(targets, split.train):
            choices |= fit_targets(together, split, space, parts, reporter or SilentReporter())
        gains = [choices[target.name].merit + (target.kind == "number") for target in targets]
        merits[timestep] = float(np.mean(gains))
        if merits[timestep] == max(merits.values()):
            best = own
    return best, merits


def _columns(values: FeatureRows, rows: Rows, number: int, width: int) -> FloatArray:
    """[M, width] of one timestep, read in parts: all timesteps of all rows need not fit in memory."""
    own = slice(number * width, (number + 1) * width)
    parts = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([np.asarray(values[part], dtype=np.float32)[:, own] for part in parts])
