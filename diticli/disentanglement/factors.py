"""Label columns made ready as factors, or the reason why one cannot serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diticli.disentanglement.report import Kind, SkippedFactor
from diticli.types import DoubleArray, Rows

MIN_TRAIN = 10
"""Known training rows of each class, or of a number."""
MIN_TEST = 2
MAX_CLASSES = 50


class LabelledColumn(Protocol):
    """What `diticli.data.labels.LabelColumn` offers."""

    @property
    def kind(self) -> Kind:
        """What the values are."""

    @property
    def values(self) -> npt.NDArray[Any]:
        """[N]: 0/1 or numbers with NaN for unknown, or text with "" for unknown."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """One factor.

    Attributes:
        name: of the column.
        kind: of the column, but a category of two classes is binary.
        values: [N] 0/1, numbers, or class codes 0..C-1; NaN where unknown.
    """

    name: str
    kind: Kind
    values: DoubleArray

    def classes(self, parts: int, train: Rows) -> DoubleArray:
        """[N] class of each row, NaN where unknown; a number is cut at the `parts` quantiles of the rows `train`."""
        if self.kind != "number":
            return self.values
        known = self.values[train][~np.isnan(self.values[train])]
        edges = np.unique(np.quantile(known, np.arange(1, parts) / parts))
        edges = edges[edges > known.min()]  # an edge at the minimum would leave an empty class below it
        if not len(edges):
            edges = known[known > known.min()].min(keepdims=True)
        cut = np.searchsorted(edges, self.values, side="right").astype(np.float64)
        return np.where(np.isnan(self.values), np.nan, cut)


def make_factors(
    columns: Mapping[str, LabelledColumn], train: Rows, test: Rows
) -> tuple[tuple[Factor, ...], tuple[SkippedFactor, ...]]:
    """Factors that vary enough among `train` and `test`, and the columns left out."""
    factors: list[Factor] = []
    skipped: list[SkippedFactor] = []
    for name, column in columns.items():
        values = _values(column, train)
        reason = _unfit(values, column.kind, train, test)
        if reason:
            skipped.append(SkippedFactor(name=name, kind=column.kind, reason=reason))
        else:
            factors.append(Factor(name=name, kind=_kind(column.kind, values), values=values))
    return tuple(factors), tuple(skipped)


def _values(column: LabelledColumn, train: Rows) -> DoubleArray:
    if column.kind != "category":
        values = np.asarray(column.values, dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)
    texts = np.asarray(column.values, dtype=np.str_)
    found, counts = np.unique(texts[train], return_counts=True)
    classes = found[(counts >= MIN_TRAIN) & (found != "")]
    if not len(classes):
        return np.full(len(texts), np.nan)
    codes = np.searchsorted(classes, texts).clip(max=len(classes) - 1)
    return np.where(classes[codes] == texts, codes, np.nan)


def _kind(kind: Kind, values: DoubleArray) -> Kind:
    return "binary" if kind == "category" and np.nanmax(values) == 1 else kind


def _unfit(values: DoubleArray, kind: Kind, train: Rows, test: Rows) -> str:
    """Why a column cannot serve, or nothing."""
    known = {part: values[rows][~np.isnan(values[rows])] for part, rows in (("train", train), ("test", test))}
    for part, least in (("train", MIN_TRAIN), ("test", MIN_TEST)):
        if len(known[part]) < least:
            return f"{len(known[part])} known values in {part}, {least} are needed"
        if np.ptp(known[part]) == 0:
            return f"constant in {part}"
    counts = np.unique(known["train"], return_counts=True)[1]
    if kind != "number" and (len(counts) > MAX_CLASSES or counts.min() < MIN_TRAIN):
        return f"{len(counts)} classes, the rarest with {counts.min()} rows in train"
    return ""
