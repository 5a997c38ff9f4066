"""Results of a linear probe, attribute by attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.data.label_columns import Kind
from diticli.data.splits import Split
from diticli.disentanglement import DisentanglementReport, FeatureStatistics
from diticli.probing.chunk_probe import ChunkProbe
from diticli.probing.directions import Directions
from diticli.probing.fit import Choice
from diticli.probing.linear_probe import LinearProbe
from diticli.probing.masked_fit import MaskedFit
from diticli.probing.metrics import score
from diticli.probing.read_scores import SHORT, AgainstGuessing, against_guessing
from diticli.probing.resampling import Resampled, intervals_of, mean_intervals_of
from diticli.statistics import Interval
from diticli.targets import SkippedTarget, Target
from diticli.types import DoubleArray

FEW_ROWS = 50
"""Test rows below which scores are hardly more than chance."""


@dataclass(frozen=True, kw_only=True)
class MaskedScore:
    """How well an attribute can be read off a few dimensions, on the same test rows.

    Attributes:
        dims: the dimensions that the mask chose, ascending.
        value: the attribute's metric, of a classifier fitted on these dimensions alone.
        extras: other metrics, as for the full classifier.
        by_weight: the metric of a classifier on as many dimensions, those of the largest full weights.
        by_weight_extras: its other metrics.
        converged: whether both fits reached their minimum.
        per_chunk: how many of `dims` each chunk owns; empty when the chunks are unknown.
    """

    dims: tuple[int, ...]
    value: float
    extras: dict[str, float]
    by_weight: float
    by_weight_extras: dict[str, float]
    converged: bool
    per_chunk: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AttributeReport:
    """How well one attribute can be read off, on the test rows.

    Attributes:
        name: of the attribute.
        kind: "binary", "number" or "category".
        metric: average_precision, pearson_r or accuracy.
        value: of the metric.
        base_rate: value of a model that knows nothing.
        extras: other metrics: roc_auc; r2, mse (standardised target) and mse_raw; counts of left-out classes.
        low: lower end of the bootstrap 95 % interval of `value` over test rows (or their groups); None where these
            are a single group.
        high: its upper end.
        intervals: (low, high) of every metric, by name.
        n_train: rows of known value.
        n_val: likewise.
        n_test: likewise.
        regularisation: chosen on the validation rows: loss + regularisation / 2 * ||w||^2.
        converged: whether the fit reached its minimum; where not, other scores are possible with more iterations.
        masked: scores with few dimensions, where a mask was learned.
    """

    name: str
    kind: Kind
    metric: str
    value: float
    base_rate: float
    extras: dict[str, float]
    n_train: int
    n_val: int
    n_test: int
    regularisation: float
    converged: bool = True
    low: float | None = None
    high: float | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    masked: MaskedScore | None = None

    @property
    def than_guessing(self) -> AgainstGuessing:
        """Whether it is read better than by guessing, no better, or worse."""
        return against_guessing(self.value, self.low, self.high, self.base_rate)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"than_guessing": self.than_guessing}


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Scores of all attributes on the test rows, which chose nothing.

    Attributes:
        attributes: in the order of the labels.
        skipped: attributes that could not be probed.
        means: by kind, the mean of the metric, the base rate and every extra metric, and the count; with masks also
            of masked_* and by_weight_* metrics.
        mean_intervals: by kind, the bootstrap 95 % interval of the mean of every metric; all attributes see the same
            resamples.
        split: rows of train, val and test.
        groups: number of groups kept together, or None.
        seed: of the split; None for a given one.
        latent_dim: d.
        mask: settings of the learned masks, or None.
        statistics: of the features, without labels; None unless asked for.
        disentanglement: scores with the attributes as factors; None unless asked for.
        atlas: what each chunk knows; None unless asked for.
        directions: the models, trained on the training rows only, to move features with.
    """

    attributes: tuple[AttributeReport, ...]
    skipped: tuple[SkippedTarget, ...]
    means: dict[str, dict[str, float]]
    mean_intervals: dict[str, dict[str, Interval]]
    split: dict[str, int]
    groups: int | None
    seed: int | None
    latent_dim: int
    mask: dict[str, float] | None
    statistics: FeatureStatistics | None = None
    disentanglement: DisentanglementReport | None = None
    atlas: ChunkProbe | None = None
    directions: Directions = field(repr=False)

    @property
    def probe(self) -> LinearProbe:
        """The models on all dimensions, to predict with."""
        return self.directions.full

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the weights."""
        facts = {key: value for key, value in vars(self).items() if key != "directions"}
        facts["attributes"] = [item.to_dict() for item in self.attributes]
        facts["skipped"] = [asdict(item) for item in self.skipped]
        for key in ("statistics", "disentanglement", "atlas"):
            facts[key] = None if facts[key] is None else facts[key].to_dict()
        return facts

    def doubts(self) -> list[str]:
        """Which attributes are read no better than by guessing, or worse, in words."""
        return guessing_doubts([item.to_dict() for item in self.attributes])

    def describe_split(self) -> str:
        """One line for the user."""
        sizes = " / ".join(f"{size:,}" for size in self.split.values())
        kept = f", {self.groups:,} groups kept together" if self.groups is not None else ""
        origin = "as given" if self.seed is None else f"seed {self.seed}"
        doubt = few_rows(self.split["test"])
        return f"Split train / val / test: {sizes} rows, {origin}{kept}.{doubt}"


_NAMED, _NAME_LENGTH = 6, 30
_MEANING = {
    "worse": "what the training images taught does not hold for the test images",
    "no better": "their intervals hold the score of guessing",
}


def guessing_doubts(attributes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences of `ProbeReport.doubts`, from its JSON."""
    found = []
    for verdict, meaning in _MEANING.items():
        alike = [item for item in attributes if item.get("than_guessing") == verdict]
        named = [
            f"{_brief(item['name'])} ({SHORT[item['metric']]} {item['value']:.3f}, guessing {item['base_rate']:.3f})"
            for item in alike[:_NAMED]
        ]
        others = f", and {len(alike) - _NAMED} more of {len(attributes)} attributes" if len(alike) > _NAMED else ""
        found += [f"{verdict.capitalize()} than guessing: {', '.join(named)}{others}; {meaning}."] if alike else []
    return found


def _brief(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


def few_rows(test: int) -> str:
    """What is to be said of so many test rows, after a sentence; "" where they are enough."""
    return f" Fewer than {FEW_ROWS} test rows: scores, intervals and chunks say little." if test < FEW_ROWS else ""


def mean_scores(attributes: Sequence[AttributeReport]) -> dict[str, dict[str, float]]:
    """Means of `ProbeReport.means`."""
    means: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(item.kind for item in attributes):
        alike = [item for item in attributes if item.kind == kind]
        rows = [_all_scores(item) for item in alike]
        metrics = [key for key in rows[0] if not key.endswith(("_out", "classes"))]
        means[kind] = {key: float(np.mean([row[key] for row in rows])) for key in metrics}
        means[kind]["attributes"] = len(alike)
    return means


def _all_scores(item: AttributeReport) -> dict[str, float]:
    scores = {item.metric: item.value, "base_rate": item.base_rate} | item.extras
    if item.masked is None:
        return scores
    masked = {item.metric: item.masked.value} | item.masked.extras
    by_weight = {item.metric: item.masked.by_weight} | item.masked.by_weight_extras
    scores |= {f"masked_{key}": value for key, value in masked.items()}
    return scores | {f"by_weight_{key}": value for key, value in by_weight.items()}


def attribute_report(
    target: Target,
    choice: Choice,
    outputs: DoubleArray,
    resampled: Resampled,
    split: Split,
    few: MaskedFit | None,
    layout: ChunkLayout | None,
) -> AttributeReport:
    """Scores of one attribute.

    Args:
        target: the attribute.
        choice: its model.
        outputs: [N, width] of its model on the test rows.
        resampled: scores on resamples of them; empty for no intervals.
        split: parts of the rows.
        few: the model on few dimensions, or None.
        layout: chunks, to tell whose these dimensions are.
    """
    found = score(target, split.test, outputs)
    intervals = intervals_of(resampled)
    low, high = intervals.get(found.metric, (None, None))
    return AttributeReport(
        name=target.name,
        kind=target.kind,
        metric=found.metric,
        value=found.value,
        base_rate=found.base_rate,
        extras=found.extras | target.extras,
        n_train=len(target.known(split.train)),
        n_val=len(target.known(split.val)),
        n_test=len(target.known(split.test)),
        regularisation=choice.reg,
        converged=choice.converged,
        low=low,
        high=high,
        intervals=intervals,
        masked=None if few is None else _masked_score(few, layout),
    )


def mean_intervals(
    attributes: Sequence[AttributeReport], resampled: Mapping[str, Resampled]
) -> dict[str, dict[str, Interval]]:
    """Intervals of `ProbeReport.means`, from the scores of each attribute on the same resamples."""
    kinds = dict.fromkeys(item.kind for item in attributes)
    alike = {kind: [resampled[item.name] for item in attributes if item.kind == kind] for kind in kinds if resampled}
    return {kind: mean_intervals_of(many) for kind, many in alike.items()}


def _masked_score(few: MaskedFit, layout: ChunkLayout | None) -> MaskedScore:
    ends = layout.ends if layout else ()
    chunks = np.searchsorted(ends, few.dims, side="right")
    return MaskedScore(
        dims=few.dims,
        value=few.score.value,
        extras=few.score.extras,
        by_weight=few.by_weight.value,
        by_weight_extras=few.by_weight.extras,
        converged=few.converged,
        per_chunk=tuple(np.bincount(chunks, minlength=len(ends)).tolist()) if layout else (),
    )
