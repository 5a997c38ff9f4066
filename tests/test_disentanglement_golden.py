"""The metrics against numbers of public code for the same codes: tests/data/disentanglement_golden.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diticli.data.labels import LabelColumn
from diticli.data.splits import Split
from diticli.disentanglement import measure_disentanglement
from diticli.disentanglement.auroc import captured_attributes, column_aurocs, entropy_reductions, total_auroc_difference
from diticli.disentanglement.codes import FactorRows
from diticli.disentanglement.importance import tree_importance
from diticli.disentanglement.information import (
    bin_columns,
    bin_count,
    entropy,
    mean_or_none,
    modularity,
    mutual_information,
    mutual_information_gap,
    top_gap,
)
from diticli.disentanglement.predictability import explicitness, predictability, squared_correlations
from diticli.statistics import completeness, disentanglement

FILE = json.loads((Path(__file__).parent / "data" / "disentanglement_golden.json").read_text())
GOLDEN = FILE["codes"]
KINDS = tuple(GOLDEN)
SIZES = (4, 2, 6, 3, 10)
TRAIN, TEST = slice(0, 2000), slice(2000, 3000)


def draw(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """[3000, 10] codes and [3000, 5] factors; `RandomState`'s streams are frozen for good."""
    stream = np.random.RandomState(3)
    factors = np.stack([stream.randint(size, size=3000) for size in SIZES], axis=1)
    centred = (factors - (np.array(SIZES) - 1) / 2) / np.array(SIZES)
    noise = stream.standard_normal((3000, 10))
    if kind == "copies":
        return np.concatenate([centred, np.zeros_like(centred)], axis=1) + 0.1 * noise, factors
    mix = np.random.RandomState(7).standard_normal((5, 10))
    return (centred @ mix + 0.1 * noise if kind == "mixed" else noise), factors


def rows_of(kind: str, factor: int, as_kind: str) -> FactorRows:
    codes, factors = draw(kind)
    codes = (codes - codes[TRAIN].mean(axis=0)) / codes[TRAIN].std(axis=0)
    values = factors[:, factor].astype(np.float64)
    return FactorRows(
        kind=as_kind, x_train=codes[TRAIN], y_train=values[TRAIN], x_test=codes[TEST], y_test=values[TEST]
    )


def information(kind: str) -> np.ndarray:
    codes, factors = draw(kind)
    binned = bin_columns(codes[TRAIN], bin_count(2000))
    return np.stack([mutual_information(binned, column) for column in factors[TRAIN].T], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_information_mig_and_modularity_are_equal(kind: str) -> None:
    matrix, golden = information(kind), GOLDEN[kind]
    entropies = [entropy(column) for column in draw(kind)[1][TRAIN].T]
    assert matrix == pytest.approx(np.array(golden["mutual_information"]), abs=1e-7)
    assert mutual_information_gap(matrix / entropies) == pytest.approx(golden["mig"], abs=1e-7)
    assert modularity(matrix) == pytest.approx(golden["modularity"], abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_dci_of_the_same_importances_is_equal(kind: str) -> None:
    golden = GOLDEN[kind]
    importance = np.array(golden["importance"])
    assert disentanglement(importance) == pytest.approx(golden["disentanglement"], abs=1e-6)
    assert completeness(importance) == pytest.approx(golden["completeness"], abs=1e-6)


@pytest.mark.parametrize("kind", ["copies", "mixed"])
def test_fewer_rounds_on_fewer_rows_find_alike_importances(kind: str) -> None:
    found = [tree_importance(rows_of(kind, factor, "category"), 0)[0] for factor in range(len(SIZES))]
    importance, golden = np.stack(found, axis=1), GOLDEN[kind]
    assert np.abs(importance - np.array(golden["importance"])).max() < 0.12
    assert disentanglement(importance) == pytest.approx(golden["disentanglement"], abs=0.05)
    assert completeness(importance) == pytest.approx(golden["completeness"], abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_sap_agrees(kind: str) -> None:
    codes, factors = draw(kind)
    gaps = [top_gap(squared_correlations(codes[TRAIN], column)) for column in factors[TRAIN].T]
    assert mean_or_none(gaps) == pytest.approx(GOLDEN[kind]["sap_continuous"], abs=1e-7)
    ours = predictability(rows_of(kind, 1, "binary"))
    theirs = np.array(GOLDEN[kind]["sap_discrete_binary"])  # of a linear support vector machine, not the best threshold
    assert np.abs(ours - theirs).max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_explicitness_agrees(kind: str) -> None:
    ours = [explicitness(rows_of(kind, factor, "category"), 0)[0] for factor in range(len(SIZES))]
    assert np.mean(ours) == pytest.approx(GOLDEN[kind]["explicitness_test"], abs=0.002)


def test_the_report_as_a_whole_agrees() -> None:
    kind = "mixed"
    codes, factors = draw(kind)
    split = Split(train=np.arange(2000), val=np.arange(0), test=np.arange(2000, 3000))
    columns: dict[str, Any] = {
        str(index): LabelColumn("category", column.astype("U2")) for index, column in enumerate(factors.T)
    }
    report, golden = measure_disentanglement(codes.astype(np.float32), columns, split), GOLDEN[kind]
    assert report.dims.mig == pytest.approx(golden["mig"], abs=0.005)
    assert report.dims.modularity == pytest.approx(golden["modularity"], abs=0.01)
    assert report.explicitness == pytest.approx(golden["explicitness_test"], abs=0.002)
    assert report.dims.factor_vae == pytest.approx(golden["factor_vae_eval"], abs=0.06)
    assert report.dims.disentanglement == pytest.approx(golden["disentanglement"], abs=0.05)


def test_tad_and_captured_attributes_are_equal() -> None:
    stream, golden = np.random.RandomState(11), FILE["tad"]
    attributes = stream.random_sample((1500, 6)) < np.array([0.5, 0.3, 0.1, 0.5, 0.5, 0.2])
    attributes[:, 4] = attributes[:, 3] ^ (stream.random_sample(1500) < 0.1)
    codes, told = stream.standard_normal((1500, 8)), attributes.astype(float)
    for dim, weight in enumerate((3, 1.5, -2, 2)):
        codes[:, dim] += weight * told[:, dim]
    codes[:, 4] += told[:, 0] + 0.5 * told[:, 1]
    codes[:, 5] += 0.3 * told[:, 5]
    aurocs = np.stack([column_aurocs(codes, positive) for positive in attributes.T], axis=1)
    captured = captured_attributes(aurocs, entropy_reductions(told))
    assert aurocs.max(axis=0) == pytest.approx(np.array(golden["best_aurocs"]), abs=1e-5)
    assert captured.sum() == golden["captured"]
    assert total_auroc_difference(aurocs, captured) == pytest.approx(golden["tad"], abs=1e-4)
