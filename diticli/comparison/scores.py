"""Scores of all contenders with intervals, and their differences to the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.comparison.differences import Difference, difference, with_verdicts
from diticli.comparison.probes import Probed
from diticli.comparison.protocol import Protocol
from diticli.probing.bootstrap import TestDraws, interval, mean_of
from diticli.probing.resampled import Resampled, resample_scores
from diticli.probing.targets import Kind, Target, UnfitError, make_target
from diticli.types import DoubleArray

METRICS: dict[Kind, tuple[str, ...]] = {
    "binary": ("average_precision", "roc_auc"),
    "number": ("pearson_r", "r2", "mse"),
    "category": ("accuracy",),
}
"""The main metric first; mse in units of the training rows' variance."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score on the test images with its 95 % interval, None where resamples give none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class EntryScores:
    """All scores of one contender.

    Attributes:
        attributes: attribute -> metric -> score.
        means: kind -> metric -> mean over the attributes of that kind, images resampled jointly.
        differences: kind -> metric -> difference of means to the first contender; empty for that one.
        by_attribute: attribute -> difference of its main metric; empty for the first contender.
    """

    attributes: dict[str, dict[str, Score]]
    means: dict[Kind, dict[str, Score]]
    differences: dict[Kind, dict[str, Difference | None]]
    by_attribute: dict[str, Difference | None]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One contender's scores on the test images and on all resamples."""

    values: dict[str, dict[str, float]]
    draws: dict[str, Resampled]

    def mean(self, names: Sequence[str], metric: str) -> float:
        return float(np.mean([self.values[name][metric] for name in names]))

    def mean_draws(self, names: Sequence[str], metric: str) -> DoubleArray:
        if not self.draws:
            return np.empty(0)
        return mean_of([self.draws[name][metric] for name in names])


def score_all(probed: Mapping[str, Probed], protocol: Protocol, *, seed: int = 0) -> dict[str, EntryScores]:
    """Scores by contender; the first one is what the others are compared with.

    Args:
        probed: in the order of the table.
        protocol: whose test rows were predicted.
        seed: of the resamples, which are the same for all.
    """
    targets = probed_targets(protocol)
    measured = {name: _measure(found, targets, protocol, seed) for name, found in probed.items()}
    kinds = _kinds(targets)
    first = next(iter(measured.values()))
    scores = {name: _scores(own, kinds) for name, own in measured.items()}
    others = [name for name in measured if measured[name] is not first]
    for kind, names in kinds.items():
        for metric in METRICS[kind]:
            found = [_mean_difference(measured[other], first, names, metric) for other in others]
            for other, item in zip(others, with_verdicts(found, metric), strict=True):
                scores[other].differences.setdefault(kind, {})[metric] = item
        for name in names:
            found = [_own_difference(measured[other], first, name, METRICS[kind][0]) for other in others]
            for other, item in zip(others, with_verdicts(found, METRICS[kind][0]), strict=True):
                scores[other].by_attribute[name] = item
    return scores


def probed_targets(protocol: Protocol) -> list[Target]:
    """Attributes that can be probed; which these are depends on labels and split alone."""
    found = []
    for name, column in protocol.columns.items():
        try:
            found.append(make_target(name, column, protocol.split))
        except UnfitError:
            continue
    return found


def _kinds(targets: Sequence[Target]) -> dict[Kind, list[str]]:
    kinds: dict[Kind, list[str]] = {}
    for target in targets:
        kinds.setdefault(target.kind, []).append(target.name)
    return kinds


def _measure(probed: Probed, targets: Sequence[Target], protocol: Protocol, seed: int) -> _Measured:
    test = protocol.split.test
    groups = None if protocol.groups is None else [protocol.groups[row] for row in test]
    outputs = {target.name: _standardised(target, probed.outputs[target.name]) for target in targets}
    values = {}
    for target in targets:
        score = target.score(test, outputs[target.name])
        values[target.name] = {score.metric: score.value} | score.extras
    draws = TestDraws.of(len(test), groups, seed=seed)
    return _Measured(values=values, draws=resample_scores(targets, test, outputs, draws))


def _standardised(target: Target, outputs: npt.NDArray[np.float32]) -> DoubleArray:
    """A probe predicts numbers in the label's unit, a target scores standardised ones."""
    doubles = outputs.astype(np.float64)
    return (doubles - target.offset) / target.scale if target.kind == "number" else doubles


def _scores(own: _Measured, kinds: Mapping[Kind, Sequence[str]]) -> EntryScores:
    attributes: dict[str, dict[str, Score]] = {}
    means: dict[Kind, dict[str, Score]] = {}
    for kind, names in kinds.items():
        for name in names:
            drawn = own.draws.get(name, {})
            attributes[name] = {m: _score(own.values[name][m], drawn.get(m)) for m in METRICS[kind]}
        means[kind] = {m: _score(own.mean(names, m), own.mean_draws(names, m)) for m in METRICS[kind]}
    return EntryScores(attributes=attributes, means=means, differences={}, by_attribute={})


def _score(value: float, drawn: DoubleArray | None) -> Score:
    low, high = (None, None) if drawn is None else interval(drawn) or (None, None)
    return Score(value=value, low=low, high=high)


def _mean_difference(own: _Measured, first: _Measured, names: Sequence[str], metric: str) -> Difference | None:
    gap = own.mean(names, metric) - first.mean(names, metric)
    return difference(gap, own.mean_draws(names, metric), first.mean_draws(names, metric))


def _own_difference(own: _Measured, first: _Measured, name: str, metric: str) -> Difference | None:
    if not own.draws:
        return None
    gap = own.values[name][metric] - first.values[name][metric]
    return difference(gap, own.draws[name][metric], first.draws[name][metric])
