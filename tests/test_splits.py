"""Splits: partitions that keep groups together and hold their fractions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diticli.data.splits import given_split, split_rows
from diticli.errors import LabelError


@given(
    count=st.integers(3, 300),
    groups=st.one_of(st.none(), st.integers(3, 40)),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_splits_are_partitions_and_keep_groups(count: int, groups: int | None, seed: int) -> None:
    ids = None
    if groups is not None:
        count = max(count, groups)
        ids = [f"g{i % groups if i < groups else (i * i + seed) % groups}" for i in range(count)]
    split = split_rows(count, groups=ids, seed=seed)
    parts = [split.train, split.val, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(len(part) for part in parts)
    again = split_rows(count, groups=ids, seed=seed)
    assert all((a == b).all() for a, b in zip(parts, (again.train, again.val, again.test), strict=True))
    if ids is not None:
        of = [{ids[row] for row in part} for part in parts]
        assert not of[0] & of[1]
        assert not (of[0] | of[1]) & of[2]


def test_splits_hold_their_fractions() -> None:
    assert split_rows(1000, seed=1).sizes == {"train": 700, "val": 150, "test": 150}
    rng = np.random.default_rng(0)
    ids = [str(i) for i in rng.zipf(1.5, size=4000) % 500]
    sizes = split_rows(4000, groups=ids, seed=1, fractions=(0.5, 0.25, 0.25)).sizes
    biggest = max(ids.count(i) for i in set(ids))
    assert all(abs(sizes[part] - f * 4000) <= biggest for part, f in zip(sizes, (0.5, 0.25, 0.25), strict=True))
    assert (split_rows(100, seed=1).test != split_rows(100, seed=2).test).any()
    with pytest.raises(LabelError, match="2 groups cannot"):
        split_rows(10, groups=["a"] * 5 + ["b"] * 5)
    with pytest.raises(LabelError, match="3 groups for 10 rows"):
        split_rows(10, groups=["a", "b", "c"])


def test_given_splits_are_taken_as_they_are() -> None:
    parts = ["train", "test", "train", "val", "test"]
    split = given_split(parts, groups=["a", "b", "a", "c", "b"])
    assert [part.tolist() for part in (split.train, split.val, split.test)] == [[0, 2], [3], [1, 4]]
    with pytest.raises(LabelError, match=r"group 'a' in both train and test"):
        given_split(parts, groups=["a", "a", "x", "y", "z"])
    with pytest.raises(LabelError, match=r"a part without images: train 2, val 0, test 1"):
        given_split(["train", "train", "test"])
    with pytest.raises(LabelError, match="Parts other than"):
        given_split([*parts, "extra"])
