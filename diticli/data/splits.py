"""Train / validation / test splits: drawn by a seed, keeping groups (identities) together, or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diticli.errors import ConfigError, LabelError
from diticli.reading import quoted
from diticli.types import Rows

FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Disjoint, sorted row indices that together are all rows."""

    train: Rows
    val: Rows
    test: Rows

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each part."""
        return {"train": len(self.train), "val": len(self.val), "test": len(self.test)}


def split_rows(
    count: int, *, groups: Sequence[str] | None = None, fractions: Sequence[float] = FRACTIONS, seed: int = 0
) -> Split:
    """Split `count` rows at random. The same arguments give the same split.

    Args:
        count: N.
        groups: [N] group of each row; all rows of a group fall into one part. Groups are drawn in random
            order, each into the part that lacks most rows, so `fractions` hold up to the size of a group.
        fractions: shares of train, validation and test.
        seed: seed of the draw, at least 0.

    Raises:
        ConfigError: fractions that are not three positive shares of 1, or a negative seed.
        LabelError: fewer than three rows or groups.
    """
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"The split {list(fractions)} is not three positive shares of 1.",
            remedy="Use e.g. 0.7 0.15 0.15.",
        )
    if seed < 0:
        raise ConfigError(f"The seed {seed} is negative.", remedy="Use 0 or more.")
    if groups is not None and len(groups) != count:
        raise LabelError(f"{len(groups)} groups for {count} rows.", remedy="Give one group per row.")
    rng = np.random.default_rng(seed)
    if groups is None:
        group_of_row = np.arange(count)
    else:
        group_of_row = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)[1]
    sizes = np.bincount(group_of_row, minlength=0)
    if len(sizes) < 3:
        raise LabelError(
            f"{len(sizes)} {'rows' if groups is None else 'groups'} cannot be split into three parts.",
            remedy="Give more labelled images." if groups is None else "Give more groups, or none.",
        )
    order = rng.permutation(len(sizes))
    part_of_group = np.empty(len(sizes), dtype=np.int64)
    part_of_group[order] = _cut(sizes[order], fractions) if groups is not None else _slices(count, fractions)
    parts = [np.flatnonzero(part_of_group[group_of_row] == part) for part in range(3)]
    return Split(train=parts[0], val=parts[1], test=parts[2])


def given_split(parts: Sequence[str], *, groups: Sequence[str] | None = None) -> Split:
    """The split that says of each row which part it belongs to.

    Args:
        parts: [N] "train", "val" or "test".
        groups: [N] group of each row, to be sure that none is in two parts.

    Raises:
        LabelError: when a part has no row, a row has another part, or a group is in two parts.
    """
    names = np.asarray(parts, dtype=np.str_)
    rows = {part: np.flatnonzero(names == part) for part in ("train", "val", "test")}
    sizes = ", ".join(f"{part} {len(index):,}" for part, index in rows.items())
    if sum(map(len, rows.values())) != len(names):
        raise LabelError(f"Parts other than train, val and test: {sorted(set(parts))}.", remedy="Use these three.")
    if not all(map(len, rows.values())):
        raise LabelError(
            f"The given split leaves a part without images: {sizes}.",
            remedy="Encode images of all three parts, or leave out --split for a random split.",
        )
    if groups is not None:
        _check_groups(parts, groups)
    return Split(**rows)


def _check_groups(parts: Sequence[str], groups: Sequence[str]) -> None:
    part_of: dict[str, str] = {}
    for part, group in zip(parts, groups, strict=True):
        if part_of.setdefault(group, part) != part:
            raise LabelError(
                f"The given split has images of the group {quoted(group)} in both {part_of[group]} and {part}.",
                remedy="Leave out --groups to use the split as it is, or --split to draw one by groups.",
            )


def _slices(count: int, fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    """Part of each of `count` equal items; none is empty."""
    val = max(1, round(count * fractions[1]))
    test = max(1, round(count * fractions[2]))
    return np.repeat([0, 1, 2], [count - val - test, val, test])


def _cut(sizes: npt.NDArray[np.int64], fractions: Sequence[float]) -> npt.NDArray[np.int64]:
    """Part of each group, in the given order: the one that lacks most rows, and none stays empty."""
    lacking = np.asarray(fractions, dtype=np.float64) * sizes.sum()
    parts = np.empty(len(sizes), dtype=np.int64)
    empty = {0, 1, 2}
    for index, size in enumerate(sizes):
        left = len(sizes) - index
        choices = sorted(empty) if left <= len(empty) else [0, 1, 2]
        part = max(choices, key=lambda p: lacking[p])
        parts[index] = part
        lacking[part] -= size
        empty.discard(part)
    return parts
