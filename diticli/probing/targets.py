"""Label columns made ready for a linear probe, or the reason why one cannot be probed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from diticli.probing.linear import BinaryLoss, CategoryLoss, Loss, SquaredLoss
from diticli.probing.metrics import Score, binary_score, category_score, number_score
from diticli.probing.splits import Split
from diticli.types import DoubleArray, Rows

Kind = Literal["binary", "number", "category"]

MIN_TRAIN = 5
"""Rows of each class that training needs; a number needs as many rows."""
MAX_CLASSES = 1000


class TargetColumn(Protocol):
    """What `diticli.data.labels.LabelColumn` offers."""

    @property
    def kind(self) -> Kind:
        """What the values are."""

    @property
    def values(self) -> npt.NDArray[Any]:
        """[N]: 0/1 or numbers with NaN for unknown, or text with "" for unknown."""


class UnfitError(Exception):
    """Why a column cannot be probed; caught in the probe, where it becomes a line of the report."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One attribute, checked.

    Attributes:
        name: of the attribute.
        kind: decides the loss and the metric.
        values: [N] float64, NaN where unknown: 0/1, standardised numbers, or codes of `classes`.
        classes: of a category, in the order of their codes.
        offset: mean of a number's training rows.
        scale: their standard deviation.
        extras: what the report should add, e.g. how many rare classes were left out.
    """

    name: str
    kind: Kind
    values: DoubleArray
    classes: tuple[str, ...] = ()
    offset: float = 0.0
    scale: float = 1.0
    extras: dict[str, float]

    @property
    def width(self) -> int:
        """Outputs of its model: one, or one per class."""
        return max(1, len(self.classes))

    def known(self, rows: Rows) -> Rows:
        """Those of `rows` whose value is known."""
        return rows[~np.isnan(self.values[rows])]

    def score(self, rows: Rows, outputs: DoubleArray) -> Score:
        """Score of the model's `outputs` [len(rows), width]; rows of unknown value do not count."""
        known = ~np.isnan(self.values[rows])
        truth, outputs = self.values[rows][known], outputs[known]
        if self.kind == "binary":
            return binary_score(truth, outputs[:, 0])
        if self.kind == "category":
            return category_score(truth.astype(np.int64), outputs)
        raw = (values * self.scale + self.offset for values in (truth, outputs[:, 0]))
        return number_score(*raw, scale=self.scale)

    def merit(self, rows: Rows, outputs: DoubleArray) -> float:
        """What the validation rows choose by: the metric, but the error itself for numbers."""
        score = self.score(rows, outputs)
        return -score.extras["mse"] if self.kind == "number" else score.value


def make_target(name: str, column: TargetColumn, split: Split) -> Target:
    """Check one column.

    Raises:
        UnfitError: when it cannot be trained or scored, with the reason.
    """
    if column.kind == "category":
        return _category(name, np.asarray(column.values, dtype=np.str_), split)
    values = np.asarray(column.values, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    if column.kind == "binary":
        _check_classes(values, split, ("negatives", "positives"))
        return Target(name=name, kind="binary", values=values, extras={})
    return _number(name, values, split)


def loss_of(targets: Sequence[Target], rows: Rows) -> Loss:
    """Loss of targets of one kind over the training rows; a category comes alone."""
    values = np.stack([target.values[rows] for target in targets], axis=1)
    if targets[0].kind == "category":
        codes = np.where(np.isnan(values[:, 0]), -1, values[:, 0]).astype(np.int64)
        return CategoryLoss(codes, targets[0].width)
    return BinaryLoss(values) if targets[0].kind == "binary" else SquaredLoss(values)


def _number(name: str, values: DoubleArray, split: Split) -> Target:
    train = values[split.train]
    train = train[~np.isnan(train)]
    if len(train) < MIN_TRAIN:
        raise UnfitError(f"{len(train)} known values in train, {MIN_TRAIN} are needed")
    offset, scale = float(train.mean()), float(train.std())
    if scale <= 1e-9 * abs(offset):
        raise UnfitError("constant in train")
    for part, rows in (("val", split.val), ("test", split.test)):
        known = values[rows][~np.isnan(values[rows])]
        if len(known) < 2 or np.ptp(known) == 0:
            raise UnfitError(f"constant or unknown in {part}")
    standard = (values - offset) / scale
    return Target(name=name, kind="number", values=standard, offset=offset, scale=scale, extras={})


def _category(name: str, texts: npt.NDArray[np.str_], split: Split) -> Target:
    """Classes with too few training rows are left out, rows and all."""
    found, counts = np.unique(texts[split.train], return_counts=True)
    classes = found[(counts >= MIN_TRAIN) & (found != "")]
    if len(classes) < 2:
        raise UnfitError(f"fewer than two classes have {MIN_TRAIN} rows in train")
    if len(classes) > MAX_CLASSES:
        raise UnfitError(f"{len(classes)} classes, at most {MAX_CLASSES} can be probed")
    codes = np.searchsorted(classes, texts).clip(max=len(classes) - 1)
    known = classes[codes] == texts
    for part, rows in (("val", split.val), ("test", split.test)):
        if not known[rows].any():
            raise UnfitError(f"no known value in {part}")
    rare = (texts != "") & ~known
    extras = {"classes": float(len(classes)), "rare_classes_left_out": float(len(np.unique(texts[rare])))}
    return Target(
        name=name,
        kind="category",
        values=np.where(known, codes, np.nan),
        classes=tuple(classes.tolist()),
        extras=extras | {"rows_left_out": float(rare.sum())},
    )


def _check_classes(values: DoubleArray, split: Split, names: tuple[str, str]) -> None:
    for value, name in enumerate(names):
        counts = {part: int((values[rows] == value).sum()) for part, rows in vars(split).items()}
        if counts["train"] < MIN_TRAIN:
            raise UnfitError(f"{counts['train']} {name} in train, {MIN_TRAIN} are needed")
        for part in ("val", "test"):
            if not counts[part]:
                raise UnfitError(f"no {name} in {part}")
