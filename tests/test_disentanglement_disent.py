"""The metrics beside those of `disent` 0.8 on the same codes: numbers that its own code gave, recorded once.

`python -m benchmarks.experiments.disent_scores --out tests/data/disent_scores.json` records them. Where definitions
differ, the test says how, and docs/metrics.md too.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments.disent_scores import FACTORS, TEST, TRAIN, VALUES, codes, scaled
from diticli.data.label_columns import Kind
from diticli.data.labels import LabelColumn
from diticli.data.splits import Split
from diticli.disentanglement import DisentanglementReport, measure_disentanglement

RECORDED = json.loads((Path(__file__).parent / "data" / "disent_scores.json").read_text())
THEIRS = RECORDED["codes"]
KINDS = tuple(codes())


@cache
def ours(name: str, kind: Kind = "category") -> DisentanglementReport:
    """Scores of as many rows as disent draws; factors as classes, as it takes them, or as numbers."""
    rng = np.random.default_rng(7)
    values = rng.integers(0, VALUES, size=(TRAIN + TEST, FACTORS))
    code = codes()[name](scaled(values), rng)
    texts = values if kind == "number" else np.char.add("v", values.astype(str))
    columns = {f"f{i}": LabelColumn(kind, texts[:, i]) for i in range(FACTORS)}
    rows = np.arange(TRAIN + TEST)
    split = Split(train=rows[:TRAIN], val=rows[:0], test=rows[TRAIN:])
    return measure_disentanglement(code.astype(np.float32), columns, split)


def test_the_recorded_numbers_are_of_these_codes() -> None:
    settings = RECORDED["settings"]
    assert (settings["train"], settings["test"]) == (TRAIN, TEST)
    assert (settings["factors"], settings["values"]) == (FACTORS, VALUES)
    assert tuple(THEIRS) == KINDS
    assert RECORDED["versions"]["disent"] == "0.8.0"


@pytest.mark.parametrize("name", KINDS)
def test_mig_is_equal_up_to_the_draw(name: str) -> None:
    assert ours(name).dims.mig == pytest.approx(THEIRS[name]["mig.discrete_score"], abs=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_sap_of_numbers_is_equal_up_to_the_draw(name: str) -> None:
    assert ours(name, "number").dims.sap == pytest.approx(THEIRS[name]["sap.score_continuous"], abs=0.03)
