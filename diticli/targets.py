"""Label columns made ready to be learned, or the reason why one cannot be.

Probes, disentanglement metrics and the attribute classifiers of `diti evaluate` all take their attributes from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from diticli.data.label_columns import Kind, LabelColumn
from diticli.errors import LabelError
from diticli.reading import quoted
from diticli.types import DoubleArray, Rows


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What a column must offer; the defaults are those of a linear probe.

    Attributes:
        train_rows: known training rows of each class, or of a number. Rarer classes of a category are left out.
        classes: of a category, at most.
        scored_classes: different ones of a category in each other part.
    """

    train_rows: int = 5
    classes: int = 1000
    scored_classes: int = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """One attribute, checked.

    Attributes:
        name: of the attribute.
        kind: decides the loss and the metric.
        values: [N] float64, NaN where unknown: 0/1, numbers in the label's unit, or codes of `classes`; empty where
            only the scale is known.
        classes: of a category, in the order of their codes.
        mean: of the training rows, of a binary attribute or a number.
        std: their standard deviation.
        extras: what a report should add, e.g. how many rare classes were left out.
    """

    name: str
    kind: Kind
    values: DoubleArray = field(default_factory=lambda: np.empty(0), repr=False)
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    extras: dict[str, float] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """Outputs of a linear model: one, or one per class."""
        return max(1, len(self.classes))

    @property
    def offset(self) -> float:
        """What a model's output is short of the label: the mean of a number."""
        return self.mean if self.kind == "number" else 0.0

    @property
    def scale(self) -> float:
        """What a model's output is divided by: the standard deviation of a number."""
        return self.std if self.kind == "number" else 1.0

    @cached_property
    def standard(self) -> DoubleArray:
        """[N] what models are fitted to: `values` with numbers standardised."""
        return (self.values - self.offset) / self.scale if self.kind == "number" else self.values

    def known(self, rows: Rows) -> Rows:
        """Those of `rows` whose value is known."""
        return rows[~np.isnan(self.values[rows])]


@dataclass(frozen=True, kw_only=True)
class SkippedTarget:
    """A column that is left out, and why."""

    name: str
    kind: Kind
    reason: str


class UnfitError(Exception):
    """Why a column cannot be learned; caught where it becomes a line of a report, or an error with a remedy."""


def make_targets(
    columns: Mapping[str, LabelColumn], parts: Mapping[str, Rows], needs: Requirements | None = None
) -> tuple[list[Target], tuple[SkippedTarget, ...]]:
    """The columns that can be learned, and those that cannot.

    Args:
        columns: N values each.
        parts: rows of "train", and of the parts that are scored.
        needs: what a column must offer.

    Raises:
        LabelError: when none can be learned.
    """
    targets, skipped = [], []
    for name, column in columns.items():
        try:
            targets.append(make_target(name, column, parts, needs))
        except UnfitError as reason:
            skipped.append(SkippedTarget(name=name, kind=column.kind, reason=str(reason)))
    if not targets:
        some = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:3])
        raise LabelError(
            f"None of the {len(columns)} attributes can be probed ({some}).",
            remedy="Give more labelled images, or attributes that vary.",
        )
    return targets, tuple(skipped)


def make_target(name: str, column: LabelColumn, parts: Mapping[str, Rows], needs: Requirements | None = None) -> Target:
    """Check one column.

    Raises:
        UnfitError: when it cannot be trained or scored, with the reason.
    """
    needs = needs or Requirements()
    if column.kind == "category":
        return _category(name, np.asarray(column.values, dtype=np.str_), parts, needs)
    values = np.asarray(column.values, dtype=np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    known = {part: values[rows][~np.isnan(values[rows])] for part, rows in parts.items()}
    check = _check_binary if column.kind == "binary" else _check_number
    check(known, needs)
    return Target(
        name=name, kind=column.kind, values=values, mean=float(known["train"].mean()), std=float(known["train"].std())
    )


def check_lengths(columns: Mapping[str, LabelColumn], count: int) -> None:
    """Raise LabelError unless every column has `count` values."""
    for name, column in columns.items():
        if len(column.values) != count:
            raise LabelError(
                f"The attribute {quoted(name)} has {len(column.values)} values for {count} rows.",
                remedy="Join labels and features by file name first.",
            )


def _check_binary(known: Mapping[str, DoubleArray], needs: Requirements) -> None:
    for value, name in enumerate(("negatives", "positives")):
        counts = {part: int((values == value).sum()) for part, values in known.items()}
        if counts["train"] < needs.train_rows:
            raise UnfitError(f"{counts['train']} {name} in train, {needs.train_rows} are needed")
        for part, count in counts.items():
            if not count:
                raise UnfitError(f"no {name} in {part}")


def _check_number(known: Mapping[str, DoubleArray], needs: Requirements) -> None:
    train = known["train"]
    if len(train) < needs.train_rows:
        raise UnfitError(f"{len(train)} known values in train, {needs.train_rows} are needed")
    if train.std() <= 1e-9 * abs(train.mean()):
        raise UnfitError("constant in train")
    for part, values in known.items():
        if len(values) < 2 or np.ptp(values) == 0:
            raise UnfitError(f"constant or unknown in {part}")


def _category(name: str, texts: npt.NDArray[np.str_], parts: Mapping[str, Rows], needs: Requirements) -> Target:
    """Classes with too few training rows are left out, rows and all."""
    found, counts = np.unique(texts[parts["train"]], return_counts=True)
    classes = found[(counts >= needs.train_rows) & (found != "")]
    if len(classes) < 2:
        raise UnfitError(f"fewer than two classes have {needs.train_rows} rows in train")
    if len(classes) > needs.classes:
        raise UnfitError(f"{len(classes)} classes, at most {needs.classes} can be probed")
    codes = np.searchsorted(classes, texts).clip(max=len(classes) - 1)
    known = classes[codes] == texts
    for part, rows in parts.items():
        different = len(np.unique(codes[rows][known[rows]]))
        if different < needs.scored_classes:
            raise UnfitError(f"a single class in {part}" if different else f"no known value in {part}")
    rare = (texts != "") & ~known
    extras = {"classes": float(len(classes)), "rare_classes_left_out": float(len(np.unique(texts[rare])))}
    return Target(
        name=name,
        kind="category",
        values=np.where(known, codes, np.nan),
        classes=tuple(classes.tolist()),
        extras=extras | {"rows_left_out": float(rare.sum())},
    )
