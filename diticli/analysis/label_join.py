"""Bring features, labels and groups together by file name."""

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
    """The M feature rows that have labels (and a group, when groups were given), in row order.

    Attributes:
        rows: [M] int64, rows of the features.
        columns: attributes of these rows.
        groups: [M] group of each, or None.
        features: N, rows of the features.
        labels: files in the label table.
        without_group: labelled rows left out because no group is known for them.
    """

    rows: npt.NDArray[np.int64]
    columns: dict[str, LabelColumn]
    groups: tuple[str, ...] | None
    features: int
    labels: int
    without_group: int

    def to_dict(self) -> dict[str, int]:
        """The counts."""
        return {
            "rows": len(self.rows),
            "features": self.features,
            "labels": self.labels,
            "without_group": self.without_group,
        }

    def describe(self) -> str:
        """One line for the user."""
        text = f"{len(self.rows):,} of {self.features:,} images matched {self.labels:,} labels"
        return text + (f"; {self.without_group:,} without a group left out." if self.without_group else ".")


def join_labels(files: Sequence[str], table: LabelTable, groups: Mapping[str, str] | None = None) -> JoinedLabels:
    """Match feature rows with labels and groups as `LabelTable.match` does.

    Args:
        files: [N] names of the feature rows.
        table: the labels.
        groups: file name -> group.

    Raises:
        LabelError: when no row has a label, or none of those a group; shows names of both sides.
    """
    rows, table_rows = table.match(files)
    if not len(rows):
        raise _nothing_matches("labels", files, table.files)
    ids: tuple[str, ...] | None = None
    labelled = len(rows)
    if groups is not None:
        known = tuple(groups)
        group_rows, group_index = LabelTable(known, {}).match(files)
        kept, at, in_groups = np.intersect1d(rows, group_rows, assume_unique=True, return_indices=True)
        if not len(kept):
            raise _nothing_matches("groups", [files[row] for row in rows[:_EXAMPLES]], known)
        rows, table_rows = kept, table_rows[at]
        ids = tuple(groups[known[index]] for index in group_index[in_groups])
    columns = {name: LabelColumn(c.kind, c.values[table_rows]) for name, c in table.columns.items()}
    return JoinedLabels(
        rows=rows,
        columns=columns,
        groups=ids,
        features=len(files),
        labels=len(table.files),
        without_group=labelled - len(rows),
    )


def _nothing_matches(what: str, files: Sequence[str], names: Sequence[str]) -> LabelError:
    here, there = (", ".join(repr(name) for name in side[:_EXAMPLES]) for side in (files, names))
    return LabelError(
        f"None of the {what} belong to these images: the features have {here}; the {what} have {there}.",
        remedy="Use the file names that were encoded; folder and suffix may differ where names stay unique.",
    )
