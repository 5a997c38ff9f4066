"""Bring features, labels, groups and given splits together by file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.data.labels import LabelColumn, LabelTable
from diticli.errors import LabelError

_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class JoinedLabels:
    """The M feature rows that have labels (and a group and a part, when those were given), in row order.

    Attributes:
        rows: [M] int64, rows of the features.
        columns: attributes of these rows.
        groups: [M] group of each, or None.
        parts: [M] "train", "val" or "test" of each, or None.
        features: N, rows of the features.
        labels: files in the label table.
        without_group: labelled rows left out because no group is known for them.
        without_part: likewise, because the split does not name them.
    """

    rows: npt.NDArray[np.int64]
    columns: dict[str, LabelColumn]
    groups: tuple[str, ...] | None
    parts: tuple[str, ...] | None
    features: int
    labels: int
    without_group: int
    without_part: int

    def to_dict(self) -> dict[str, int]:
        """The counts."""
        return {
            "rows": len(self.rows),
            "features": self.features,
            "labels": self.labels,
            "without_group": self.without_group,
            "without_part": self.without_part,
        }

    def describe(self) -> str:
        """One line for the user."""
        text = f"{len(self.rows):,} of {self.features:,} images matched {self.labels:,} labels"
        lost = {"group": self.without_group, "part in the split": self.without_part}
        return text + "".join(f"; {count:,} without a {what} left out" for what, count in lost.items() if count) + "."


def join_labels(
    files: Sequence[str],
    table: LabelTable,
    groups: Mapping[str, str] | None = None,
    parts: Mapping[str, str] | None = None,
) -> JoinedLabels:
    """Match feature rows with labels, groups and parts as `LabelTable.match` does.

    Args:
        files: [N] names of the feature rows.
        table: the labels.
        groups: file name -> group.
        parts: file name -> "train", "val" or "test".

    Raises:
        LabelError: when no row has a label, or none of those a group or a part; shows names of both sides.
    """
    rows, table_rows = table.match(files)
    if not len(rows):
        raise _nothing_matches("labels", files, table.files)
    known: dict[str, npt.NDArray[np.str_]] = {}
    lost = {"groups": 0, "parts of the split": 0}
    for what, mapping in zip(lost, (groups, parts), strict=True):
        if mapping is None:
            continue
        kept, values = _look_up(what, files, rows, mapping)
        lost[what] = len(rows) - len(kept)
        rows, table_rows = rows[kept], table_rows[kept]
        known = {other: found[kept] for other, found in known.items()} | {what: values}
    group_of, part_of = (tuple(known[what].tolist()) if what in known else None for what in lost)
    return JoinedLabels(
        rows=rows,
        columns={name: LabelColumn(c.kind, c.values[table_rows]) for name, c in table.columns.items()},
        groups=group_of,
        parts=part_of,
        features=len(files),
        labels=len(table.files),
        without_group=lost["groups"],
        without_part=lost["parts of the split"],
    )


def _look_up(
    what: str, files: Sequence[str], rows: npt.NDArray[np.int64], mapping: Mapping[str, str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Which of the rows the mapping knows, as positions in `rows`, and its value for each of them."""
    names = tuple(mapping)
    matched, index = LabelTable(names, {}).match(files)
    _, kept, at = np.intersect1d(rows, matched, assume_unique=True, return_indices=True)
    if not len(kept):
        raise _nothing_matches(what, [files[row] for row in rows[:_EXAMPLES]], names)
    return kept, np.array([mapping[names[i]] for i in index[at]], dtype=np.str_)


def _nothing_matches(what: str, files: Sequence[str], names: Sequence[str]) -> LabelError:
    here, there = (", ".join(repr(name) for name in side[:_EXAMPLES]) for side in (files, names))
    return LabelError(
        f"None of the {what} belong to these images: the features have {here}; the {what} have {there}.",
        remedy="Use the file names that were encoded; folder and suffix may differ where names stay unique.",
    )
