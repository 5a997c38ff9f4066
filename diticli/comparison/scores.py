"""Scores of all entries with intervals, and their differences to the first one: are they real?

Differences are of scores on the same resamples of the test images: the paired percentile bootstrap (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). It covers other test images of the same kind, not other
seeds of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from diticli.comparison.probes import Probed
from diticli.comparison.protocol import Protocol
from diticli.data.label_columns import Kind
from diticli.probing.metrics import score
from diticli.probing.report import FEW_ROWS
from diticli.probing.resampling import Resampled, resample_scores
from diticli.statistics import Bootstrap, Estimate, holm, mean_of
from diticli.targets import Target, make_targets
from diticli.types import DoubleArray

ALPHA = 0.05
LOWER_IS_BETTER = frozenset({"mse", "mse_raw"})
METRICS: dict[Kind, tuple[str, ...]] = {
    "binary": ("average_precision", "roc_auc"),
    "number": ("pearson_r", "r2", "mse"),
    "category": ("accuracy",),
}
"""The main metric first; mse in units of the training rows' variance."""
_HEADLINE: dict[Kind, tuple[str, str]] = {
    "binary": ("average_precision", "mean AP"),
    "number": ("r2", "mean R2"),
    "category": ("accuracy", "mean accuracy"),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An entry's score minus the first one's.

    Attributes:
        value: on the test images.
        low: of its 95 % interval.
        high: likewise.
        p: two-sided: how often resamples lie on the other side of 0, doubled.
        adjusted_p: for being one of several entries (Holm).
        verdict: "better", "worse", or "no clear difference" where `adjusted_p` is above `ALPHA`.
    """

    value: float
    low: float
    high: float
    p: float
    adjusted_p: float = 1.0
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class EntryScores:
    """All scores of one entry.

    Attributes:
        attributes: attribute -> metric -> score.
        means: kind -> metric -> mean over the attributes of that kind, images resampled jointly.
        differences: kind -> metric -> difference of means to the first entry; empty for that one.
        by_attribute: attribute -> difference of its main metric; empty for the first entry.
    """

    attributes: dict[str, dict[str, Estimate]]
    means: dict[Kind, dict[str, Estimate]]
    differences: dict[Kind, dict[str, Difference | None]]
    by_attribute: dict[str, Difference | None]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One entry's scores on the test images and on all resamples."""

    values: dict[str, dict[str, float]]
    draws: dict[str, Resampled]

    def mean(self, names: Sequence[str], metric: str) -> float:
        return float(np.mean([self.values[name][metric] for name in names]))

    def mean_draws(self, names: Sequence[str], metric: str) -> DoubleArray:
        if not self.draws:
            return np.empty(0)
        return mean_of([self.draws[name][metric] for name in names])


def score_all(probed: Mapping[str, Probed], protocol: Protocol, *, seed: int = 0) -> dict[str, EntryScores]:
    """Scores by entry; the first one is what the others are compared with.

    Args:
        probed: in the order of the table.
        protocol: whose test rows were predicted.
        seed: of the resamples, which are the same for all.
    """
    targets, _ = make_targets(protocol.columns, vars(protocol.split))
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


def verdicts(scores: Mapping[str, EntryScores], images: int) -> list[str]:
    """A sentence for each entry but the first: main means with intervals, and whether they differ from the first's.

    Args:
        scores: of all entries; the first is what they are compared with.
        images: how many were tested.
    """
    first, *others = scores
    found = []
    for name in others:
        parts = [
            f"{title} {own} instead of {theirs} ({item.verdict})"
            for title, own, theirs, item in _headlines(scores, name, first)
        ]
        if parts:
            few = ", too few to say much" if images < FEW_ROWS else ""
            found.append(f"{name} beside {first}, {images:,} test images{few}: {', '.join(parts)}.")
    return found


def baselines_ahead(scores: Mapping[str, EntryScores], baselines: Sequence[str], images: int) -> str:
    """One line that says which built-in entries are better than the first entry; "" where none is.

    Args:
        scores: of all entries; the first is what they are compared with.
        baselines: names of the built-in ones, none of which was trained as the first entry was.
        images: how many were tested.
    """
    first, *_ = scores
    found = []
    for name in baselines:
        gains = [
            f"{title} {own} instead of {theirs}"
            for title, own, theirs, item in _headlines(scores, name, first)
            if item.verdict == "better"
        ]
        if gains:
            found.append(f"{name} ({', '.join(gains)})")
    if not found:
        return ""
    return f"Better than {first}, without its training, on {images:,} test images: {'; '.join(found)}."


def _headlines(scores: Mapping[str, EntryScores], name: str, first: str) -> Iterator[tuple[str, str, str, Difference]]:
    """Title of each kind's main mean, its text for both entries, and the difference."""
    for kind, differences in scores[name].differences.items():
        metric, title = _HEADLINE[kind]
        if (item := differences[metric]) is not None:
            own, theirs = (scores[one].means[kind][metric].text() for one in (name, first))
            yield title, own, theirs, item


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
        found = score(target, test, outputs[target.name])
        values[target.name] = {found.metric: found.value} | found.extras
    draws = Bootstrap.over_rows(len(test), groups, seed=seed)
    return _Measured(values=values, draws=resample_scores(targets, test, outputs, draws))


def _standardised(target: Target, outputs: npt.NDArray[np.float32]) -> DoubleArray:
    """A probe predicts numbers in the label's unit, a target scores standardised ones."""
    doubles = outputs.astype(np.float64)
    return (doubles - target.offset) / target.scale if target.kind == "number" else doubles


def _scores(own: _Measured, kinds: Mapping[Kind, Sequence[str]]) -> EntryScores:
    attributes: dict[str, dict[str, Estimate]] = {}
    means: dict[Kind, dict[str, Estimate]] = {}
    for kind, names in kinds.items():
        for name in names:
            drawn = own.draws.get(name, {})
            attributes[name] = {m: Estimate.from_resamples(own.values[name][m], drawn.get(m)) for m in METRICS[kind]}
        means[kind] = {m: Estimate.from_resamples(own.mean(names, m), own.mean_draws(names, m)) for m in METRICS[kind]}
    return EntryScores(attributes=attributes, means=means, differences={}, by_attribute={})


def _mean_difference(own: _Measured, first: _Measured, names: Sequence[str], metric: str) -> Difference | None:
    gap = own.mean(names, metric) - first.mean(names, metric)
    return difference(gap, own.mean_draws(names, metric), first.mean_draws(names, metric))


def _own_difference(own: _Measured, first: _Measured, name: str, metric: str) -> Difference | None:
    if not own.draws:
        return None
    gap = own.values[name][metric] - first.values[name][metric]
    return difference(gap, own.draws[name][metric], first.draws[name][metric])


def difference(value: float, own_B: DoubleArray, first_B: DoubleArray) -> Difference | None:
    """Of scores [B] on the same resamples; None where no resample has both.

    Args:
        value: the difference on the test images themselves.
        own_B: of the entry.
        first_B: of the first one.
    """
    drawn = own_B - first_B
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.quantile(drawn, (0.025, 0.975))
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    return Difference(value=value, low=float(low), high=float(high), p=p)


def with_verdicts(found: Sequence[Difference | None], metric: str) -> list[Difference | None]:
    """The differences of several entries to the first with adjusted p and verdict.

    Args:
        found: one an entry, None for unknown.
        metric: which decides whether higher is better.
    """
    known = [item for item in found if item is not None]
    adjusted = iter(holm([item.p for item in known]))
    return [item if item is None else _with_verdict(item, next(adjusted), metric) for item in found]


def _with_verdict(found: Difference, adjusted: float, metric: str) -> Difference:
    gains = found.value < 0 if metric in LOWER_IS_BETTER else found.value > 0
    verdict = "no clear difference" if adjusted > ALPHA else "better" if gains else "worse"
    return replace(found, adjusted_p=adjusted, verdict=verdict)
