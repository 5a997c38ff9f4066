"""The metrics beside those of `disent` 0.8 on the same codes: numbers that its own code gave, recorded once.

`python -m benchmarks.experiments.disent_scores --out tests/data/disent_scores.json` records them. Where definitions
differ, the test says how, and docs/metrics.md too. Both draw their own rows, so nothing is equal to the last digit.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments.disent_scores import FACTORS, TEST, TRAIN, VALUES, codes, scaled
from diticli.data.labels import LabelColumn
from diticli.disentanglement.codes import Codes, make_codes
from diticli.disentanglement.factor_vae import cast_votes
from diticli.disentanglement.importance import tree_importance
from diticli.disentanglement.information import (
    bin_columns,
    bin_count,
    entropy,
    mutual_information,
    mutual_information_gap,
    top_gap,
)
from diticli.disentanglement.predictability import predictability
from diticli.statistics import completeness, disentanglement
from diticli.targets import Target, make_targets

RECORDED = json.loads((Path(__file__).parent / "data" / "disent_scores.json").read_text())
THEIRS = RECORDED["codes"]
KINDS = tuple(codes())
DRAW = 0.03
"""What the draws of 2,000 rows change."""


@cache
def drawn(name: str) -> tuple[Codes, tuple[Target, ...]]:
    """A code and its factors, as numbers, on as many rows as disent draws."""
    rng = np.random.default_rng(7)
    values = rng.integers(0, VALUES, size=(TRAIN + TEST, FACTORS))
    code = codes()[name](scaled(values), rng)
    rows = np.arange(TRAIN + TEST)
    train, test = rows[:TRAIN], rows[TRAIN:]
    columns = {f"f{i}": LabelColumn("number", values[:, i].astype(np.float32)) for i in range(FACTORS)}
    targets, _ = make_targets(columns, {"train": train, "test": test})
    return make_codes(code.astype(np.float32), train, test, None), tuple(targets)


def test_the_recorded_numbers_are_of_these_codes() -> None:
    settings = RECORDED["settings"]
    assert (settings["train"], settings["test"]) == (TRAIN, TEST)
    assert (settings["factors"], settings["values"]) == (FACTORS, VALUES)
    assert tuple(THEIRS) == KINDS
    assert RECORDED["versions"]["disent"] == "0.8.0"


@pytest.mark.parametrize("name", KINDS)
def test_mig_is_equal(name: str) -> None:
    found, factors = drawn(name)
    shares = []
    for factor in factors:
        labels = factor.values[:TRAIN].astype(np.int64)
        binned = bin_columns(found.known_rows(factor).x_train, bin_count(TRAIN))
        shares.append(mutual_information(binned, labels) / entropy(labels))
    gap = mutual_information_gap(np.stack(shares, axis=1))
    assert gap == pytest.approx(THEIRS[name]["mig.discrete_score"], abs=DRAW)


@pytest.mark.parametrize("name", KINDS)
def test_sap_of_numbers_is_equal(name: str) -> None:
    found, factors = drawn(name)
    gaps = [top_gap(predictability(found.known_rows(factor))) for factor in factors]
    assert np.mean(gaps) == pytest.approx(THEIRS[name]["sap.score_continuous"], abs=DRAW)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
def test_factor_vae_is_equal_but_for_constant_dims(name: str) -> None:
    """disent keeps a dim without variance, which then varies least whatever is held: the score falls to chance."""
    found, factors = drawn(name)
    accuracy = cast_votes(factors, found, 0).dims.accuracy
    theirs = THEIRS[name]["factor_vae.eval_accuracy"]
    if name == "with a constant dim":
        assert accuracy == pytest.approx(1, abs=0.01)
        assert theirs == pytest.approx(1 / FACTORS, abs=0.1)
    else:
        assert accuracy == pytest.approx(theirs, abs=0.06)


@pytest.mark.parametrize("name", KINDS)
def test_dci_agrees_where_codes_are_pure(name: str) -> None:
    """disent always classifies, in 100 rounds; a factor that is a number is regressed here, in 30 quicker ones."""
    found, factors = drawn(name)
    importance = np.stack([tree_importance(found.known_rows(factor), 0)[0] for factor in factors], axis=1)
    d, c = float(disentanglement(importance)), float(completeness(importance))
    theirs = [THEIRS[name][f"dci.{key}"] for key in ("disentanglement", "completeness")]
    if name == "doubled":  # which of two equal dims a split takes is a draw of lots
        assert d == pytest.approx(theirs[0], abs=0.02)
        assert 0.5 < c <= 1
    elif name == "rotated":
        assert d >= theirs[0] - 0.02
        assert c >= theirs[1] - 0.02
    else:
        assert [d, c] == pytest.approx(theirs, abs=0.04)
