"""Today's code beside an earlier checkout's: the sides take turns, each is what it says, and slower is seen."""

from __future__ import annotations

import json
import sys
from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.experiments import earlier_side
from benchmarks.experiments.earlier_code import HERE, NEW, OLD, WORKS, Checkout, compared, paired
from benchmarks.timing import TWIN


def test_the_ratio_is_of_the_seconds_that_the_sides_report() -> None:
    takes = {OLD: cycle([1.0, 2.0]), OLD + TWIN: cycle([1.0, 2.0]), NEW: cycle([1.1, 2.2])}
    found = paired({name: values.__next__ for name, values in takes.items()}, rounds=8, seconds=100)
    assert found.rounds == 8
    assert found.ratio(NEW, OLD).median == pytest.approx(1.1)
    assert found.trustworthy


def test_a_side_works_with_the_code_of_its_checkout(tmp_path: Path) -> None:
    """A pair request is followed from the command line to its pixels; other code than asked for is refused."""
    here = Checkout(HERE, tmp_path / "copy")
    here.call("save", str(tmp_path / "model"), folder=tmp_path)
    words = ["walk", "edit", "faces:3", "faces:8", "--steps", "1", "--model", str(tmp_path / "model")]
    walked = here.check(json.loads(here.call(*words, "-o", "x.png", folder=tmp_path)))
    assert (tmp_path / "x.png").exists()
    assert 10 < walked["deepest"] < walked["files"] < walked["functions"]
    with pytest.raises(SystemExit, match="Other code"):
        here.check({"of": str(HERE / "diticli")})


def test_a_step_of_training_and_a_batch_are_timed(tmp_path: Path) -> None:
    kinds = {work.split()[0] for work in WORKS}
    works = earlier_side.Works(str(tmp_path), str(tmp_path))
    assert kinds == {"train", "encode", "files"}
    assert works.run("train faces32 2 features") > 0
    once, again = works.operators("train faces32 2 features"), works.operators("train faces32 2 features")
    assert sum(once.values()) > 1000
    assert compared(once, again) == {"old": sum(once.values()), "new": sum(once.values()), "only_old": 0, "only_new": 0}
    assert compared({"add": 2, "mul": 1}, {"add": 3}) == {"old": 3, "new": 3, "only_old": 1, "only_new": 1}
    assert "diticli" in sys.modules
