"""The linear models: their minimum against scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from diticli.probing import linear
from diticli.probing.linear import BinaryLoss, CategoryLoss, FeatureSpace, fit_path, ridge_path

N, D = 600, 12


def data(count: int = N, width: int = D, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    """Correlated features with very unequal scales and offsets."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return (mixed * np.logspace(-2, 2, width) + 5).astype(np.float32), rng


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def standard_space(values: np.ndarray) -> tuple[FeatureSpace, np.ndarray, np.ndarray]:
    rows = np.arange(len(values))
    space = FeatureSpace.fit(values, rows)
    return space, space.project(values, rows), ((values - space.mean) / space.std).astype(np.float64)


@pytest.mark.parametrize("width", [D, 900])
def test_space_is_an_orthonormal_view_of_standardised_features(width: int) -> None:
    values, _ = data(200, width)
    values[:, 1] = 7.0
    space, projected, standard = standard_space(values)
    assert space.std[1] == 1
    assert (space.basis[1] == 0).all()
    np.testing.assert_allclose(space.mean, values.mean(0, dtype=np.float64), rtol=1e-9)
    rank = space.basis.shape[1]
    assert rank <= min(199, width)
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(projected @ space.basis.T, standard, atol=2e-3)
    np.testing.assert_allclose(projected.var(0, dtype=np.float64), space.variances, rtol=1e-3)


@pytest.mark.parametrize("width", [D, 700])
def test_binary_path_matches_scikit_learn(width: int) -> None:
    values, rng = data(400, width)
    space, projected, standard = standard_space(values)
    logits = standard @ rng.normal(size=(width, 3))
    truth = (logits / logits.std(0) * 2 + [0, 2, -2] + rng.normal(size=logits.shape) > 0).astype(np.float64)
    truth[:100, 1] = np.nan
    for fit in fit_path(projected, space.variances, BinaryLoss(truth), [1.0, 0.1, 0.01, 0.001]):
        for column in range(3):
            known = ~np.isnan(truth[:, column])
            exact = LogisticRegression(C=1 / (fit.reg * known.sum()), tol=1e-10, max_iter=10_000)
            exact.fit(standard[known], truth[known, column])
            ours = space.basis @ fit.weights[:, column]
            assert np.linalg.norm(ours - exact.coef_[0]) < 2e-3 * np.linalg.norm(exact.coef_)
            assert fit.bias[column] == pytest.approx(exact.intercept_[0], abs=3e-3)


def test_number_path_matches_scikit_learn() -> None:
    values, rng = data(300)
    space, projected, standard = standard_space(values)
    truth = standard @ rng.normal(size=(D, 2)) + rng.normal(size=(300, 2)) + 1
    truth[rng.random(300) < 0.3, 1] = np.nan
    for columns in ([0], [1]):
        known = ~np.isnan(truth[:, columns[0]])
        for fit in ridge_path(projected, truth[:, columns], [1.0, 0.01, 0.0001]):
            exact = Ridge(alpha=fit.reg * known.sum()).fit(standard[known], truth[known][:, columns])
            np.testing.assert_allclose((space.basis @ fit.weights).T, np.atleast_2d(exact.coef_), rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(fit.bias, exact.intercept_, atol=1e-4)
            assert fit.converged.all()


def test_ridge_of_fewer_known_rows_than_features_matches_scikit_learn() -> None:
    values, rng = data(60, 40)
    space, projected, standard = standard_space(values)
    truth = rng.normal(size=(60, 1))
    truth[20:] = np.nan
    (fit,) = ridge_path(projected, truth, [0.1])
    exact = Ridge(alpha=0.1 * 20).fit(standard[:20], truth[:20, 0])
    np.testing.assert_allclose(
        standard @ (space.basis @ fit.weights)[:, 0] + fit.bias, exact.predict(standard), atol=1e-3
    )


def test_category_path_matches_scikit_learn() -> None:
    values, rng = data(300)
    space, projected, standard = standard_space(values)
    codes = (standard @ rng.normal(size=(D, 4)) + 2 * rng.normal(size=(300, 4))).argmax(1)
    codes[:40] = -1
    for fit in fit_path(projected, space.variances, CategoryLoss(codes, 4), [1.0, 0.1, 0.01]):
        exact = LogisticRegression(C=1 / (fit.reg * 260), tol=1e-10, max_iter=10_000)
        exact.fit(standard[40:], codes[40:])
        np.testing.assert_allclose((space.basis @ fit.weights).T, exact.coef_, atol=2e-3)


def test_restricted_space_is_that_of_the_chosen_features_alone() -> None:
    values, rng = data(300)
    space, projected, standard = standard_space(values)
    np.testing.assert_allclose(space.standardise(projected), standard, atol=2e-3)
    dims = [1, 4, 7]
    own = space.restrict(dims)
    assert (np.delete(own.basis, dims, axis=0) == 0).all()
    few = (projected @ (space.basis.T @ own.basis)).astype(np.float32)
    np.testing.assert_allclose(few.var(axis=0, dtype=np.float64), own.variances, rtol=1e-3)
    truth = standard @ rng.normal(size=(D, 1))
    fit = next(iter(ridge_path(few, truth, [0.01])))
    exact = Ridge(alpha=0.01 * 300).fit(standard[:, dims], truth[:, 0])
    np.testing.assert_allclose((own.basis @ fit.weights)[dims, 0], exact.coef_, atol=2e-3)
    assert fit.bias[0] == pytest.approx(exact.intercept_, abs=1e-3)


def test_a_fit_that_stops_at_its_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Separable rows of very unequal size. The last fit takes about 300 iterations, by rounding a few more or less: a
    limit of 60 is beyond doubt."""
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 60)
    rng = np.random.default_rng(0)
    values = rng.standard_t(0.8, size=(1500, 300)).astype(np.float32)
    truth = (values[:, :3].sum(1, keepdims=True) > 0).astype(np.float64)
    space, projected, _ = standard_space(values)
    fits = list(fit_path(projected, space.variances, BinaryLoss(truth), [10, 1, 0.1, 0.01, 1e-3, 1e-4, 1e-5]))
    converged = [bool(fit.converged[0]) for fit in fits]
    assert converged[0]
    assert not converged[-1]


def test_of_targets_fitted_together_only_those_on_a_slope_have_not_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 4)
    values, rng = data(400)
    space, projected, standard = standard_space(values)
    separable = standard @ rng.normal(size=D) > 0
    truth = np.stack([np.where(np.arange(400) % 2, 1.0, 0.0), separable], axis=1)
    truth[:, 0] = rng.permutation(truth[:, 0])
    (fit,) = fit_path(projected, space.variances, BinaryLoss(truth), [1e-2])
    assert not fit.converged[1]
    codes = truth[:, 1].astype(np.int64)
    (fit,) = fit_path(projected, space.variances, CategoryLoss(codes, 2), [1e-4])
    assert fit.converged.tolist() == [False, False]
