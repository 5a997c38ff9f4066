"""InfoMEC on known codes, and its estimate of information against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from diticli.disentanglement.codes import FactorRows
from diticli.disentanglement.infomec import (
    active_dims,
    info_compactness,
    info_explicitness,
    info_modularity,
    neighbour_information,
)

RNG = np.random.default_rng(0)
FACTORS = RNG.integers(0, 6, size=(900, 3))


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def shares(codes: np.ndarray) -> np.ndarray:
    columns = [neighbour_information(standardised(codes), factor, 0) / np.log(6) for factor in FACTORS.T]
    return np.stack(columns, axis=1)


def rows_of(codes: np.ndarray, factor: np.ndarray) -> FactorRows:
    x, y = standardised(codes), factor.astype(float)
    return FactorRows(kind="category", x_train=x[:600], y_train=y[:600], x_test=x[600:], y_test=y[600:])


@pytest.mark.parametrize("kind", ["discrete", "noisy", "noise", "a rare class"])
def test_information_is_that_of_scikit_learn(kind: str) -> None:
    labels = FACTORS[:, 0].copy()
    codes = FACTORS.astype(float)
    if kind != "discrete":
        codes = codes + RNG.standard_normal(codes.shape) * (30 if kind == "noise" else 0.5)
    if kind == "a rare class":
        labels[0], labels[1:4] = 7, 8
    theirs = mutual_info_classif(standardised(codes), labels, discrete_features=False, n_neighbors=10, random_state=0)
    # Equal values are told apart by noise, which is another one there.
    tolerance = 0.03 if kind == "discrete" else 0.003
    assert neighbour_information(standardised(codes), labels, 0) == pytest.approx(theirs, abs=tolerance)


def test_perfect_permuted_and_scaled_codes_are_modular_and_compact() -> None:
    for codes in (FACTORS, FACTORS[:, [2, 0, 1]], FACTORS * np.array([1.0, -100.0, 0.01])):
        found = shares(codes)
        assert info_modularity(found) > 0.95
        assert info_compactness(found) > 0.95


def test_a_doubled_code_is_modular_and_half_as_compact() -> None:
    found = shares(np.concatenate([FACTORS, FACTORS], axis=1))
    assert info_modularity(found) > 0.95
    assert info_compactness(found) == pytest.approx((1 / 2 - 1 / 6) / (1 - 1 / 6), abs=0.03)


def test_a_rotated_code_is_neither() -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    found = shares(standardised(FACTORS.astype(float)) @ rotation)
    assert info_modularity(found) < 0.75
    assert info_compactness(found) < 0.75


def test_the_formula_in_numbers() -> None:
    table = np.array([[0.6, 0.2], [0.1, 0.1], [0.0, 0.0]])  # the last unit holds nothing: it is left out of InfoM
    assert info_modularity(table) == pytest.approx(((0.75 + 0.5) / 2 - 1 / 2) / (1 / 2))
    assert info_compactness(table) == pytest.approx(((0.6 / 0.7 + 0.2 / 0.3) / 2 - 1 / 3) / (2 / 3))
    assert info_modularity(table[:, :1]) is None
    assert info_compactness(table[:1]) is None
    assert info_modularity(np.zeros((2, 2))) is None


def test_dims_of_a_small_range_do_not_count() -> None:
    assert active_dims(np.array([2.0, 0.09, 0.11])).tolist() == [True, False, True]


def test_explicitness_is_the_entropy_that_a_logistic_regression_explains() -> None:
    codes = FACTORS + 0.5 * RNG.standard_normal(FACTORS.shape)
    rows = rows_of(codes, FACTORS[:, 0])
    model = LogisticRegression(C=1e6, class_weight="balanced", max_iter=3000).fit(rows.x_train, rows.y_train)
    expected = 1 - log_loss(rows.y_test, model.predict_proba(rows.x_test)) / np.log(6)
    value, converged = info_explicitness(rows, 0)
    assert converged
    assert value == pytest.approx(expected, abs=0.02)


def test_explicitness_of_copies_is_high_of_noise_zero_and_a_rotation_changes_nothing() -> None:
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    copies = info_explicitness(rows_of(FACTORS.astype(float), FACTORS[:, 0]), 0)[0]
    rotated = info_explicitness(rows_of(standardised(FACTORS.astype(float)) @ rotation, FACTORS[:, 0]), 0)[0]
    noise = info_explicitness(rows_of(RNG.standard_normal((900, 40)), FACTORS[:, 0]), 0)[0]
    assert copies > 0.9
    assert rotated == pytest.approx(copies, abs=0.05)
    assert noise == 0
