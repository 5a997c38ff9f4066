"""The small steps the metrics are made of, against scikit-learn or by hand."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score, roc_auc_score

from diticli.data.labels import LabelColumn
from diticli.disentanglement import importance
from diticli.disentanglement.auroc import (
    captured_attributes,
    column_aurocs,
    entropy_reductions,
    mean_auroc,
    total_auroc_difference,
)
from diticli.disentanglement.codes import FactorRows, discrete
from diticli.disentanglement.factor_vae import part_count, vote_accuracy
from diticli.disentanglement.importance import balanced_rows, fit_converged, lasso_importance
from diticli.disentanglement.information import (
    bin_columns,
    bin_count,
    entropy,
    mean_or_none,
    modularity,
    mutual_information,
    top_gap,
)
from diticli.disentanglement.measure import NEEDS, _as_factor, _sum_groups
from diticli.disentanglement.predictability import chunk_readouts, explicitness, predictability, recall_of_classes
from diticli.statistics import completeness, disentanglement
from diticli.targets import Target, make_targets


def rows_with(x: np.ndarray, y: np.ndarray, kind: str) -> FactorRows:
    half = len(x) // 2
    return FactorRows(kind=kind, x_train=x[:half], y_train=y[:half], x_test=x[half:], y_test=y[half:])


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_fits_of_scikit_learn_that_do_not_converge_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    good = rows_with(x, (x[:, 0] + rng.normal(size=200) > 0).astype(float), "binary")
    assert (explicitness(good, 0)[1], lasso_importance(good, 0)[1]) == (True, True)
    monkeypatch.setitem(importance._LASSO_GRID, "max_iter", 1)
    monkeypatch.setattr("diticli.disentanglement.predictability._ITERATIONS", 1)
    assert (explicitness(good, 0)[1], lasso_importance(good, 0)[1]) == (False, False)

    class Noisy:
        def fit(self, x: np.ndarray, y: np.ndarray) -> None:
            warnings.warn("another matter", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="another matter"):
        assert fit_converged(Noisy(), x, x)


def test_mutual_information_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    binned, labels = rng.integers(7, size=(300, 5)), rng.integers(4, size=300)
    binned[:, 0] = labels
    expected = [mutual_info_score(column, labels) for column in binned.T]
    assert mutual_information(binned, labels) == pytest.approx(np.array(expected), abs=1e-12)
    assert entropy(labels) == pytest.approx(mutual_info_score(labels, labels))


def test_bins_are_equally_wide_and_hold_both_ends() -> None:
    values = np.array([[0.0], [0.24], [0.25], [0.5], [1.0]])
    assert bin_columns(values, 4)[:, 0].tolist() == [0, 0, 1, 2, 3]
    assert bin_columns(np.ones((3, 1)), 4)[:, 0].tolist() == [2, 2, 2]


@pytest.mark.parametrize(("rows", "bins"), [(4, 2), (500, 10), (2000, 20), (10**6, 20)])
def test_few_rows_get_few_bins(rows: int, bins: int) -> None:
    assert bin_count(rows) == bins


def test_aurocs_are_sklearns_in_the_better_direction() -> None:
    rng = np.random.default_rng(1)
    values, positive = rng.integers(4, size=(200, 6)).astype(float), rng.random(200) < 0.3
    areas = [roc_auc_score(positive, column) for column in values.T]
    assert column_aurocs(values, positive) == pytest.approx(np.array([max(a, 1 - a) for a in areas]))


def test_auroc_of_classes_counts_only_those_in_the_test_rows() -> None:
    truth = np.array([0.0, 0.0, 2.0, 2.0])
    scores = np.array([[0.9, 0.5, 0.1], [0.8, 0.5, 0.3], [0.1, 0.5, 0.2], [0.2, 0.5, 0.9]])
    assert mean_auroc(truth, scores, np.array([0.0, 1.0, 2.0])) == pytest.approx((1 + 0.75) / 2)
    assert mean_auroc(np.zeros(3), scores[:3], np.array([0.0, 1.0, 2.0])) == 0.5


def test_dci_by_hand() -> None:
    assert disentanglement(np.eye(3)) == pytest.approx(1)
    assert completeness(np.eye(3)) == pytest.approx(1)
    even = np.ones((4, 2))
    assert disentanglement(even) == pytest.approx(0, abs=1e-12)
    assert completeness(even) == pytest.approx(0, abs=1e-12)
    # A dim with three quarters of all importance, spread evenly, and one that is pure.
    assert disentanglement(np.array([[1.5, 1.5], [1.0, 0.0]])) == pytest.approx(0.25)
    assert np.isnan(disentanglement(np.zeros((3, 2))))
    assert np.isnan(completeness(np.zeros((3, 2))))
    assert completeness(np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(1)
    assert np.isnan(disentanglement(np.ones((3, 1))))
    assert np.isnan(completeness(np.ones((1, 3))))


def test_importance_of_a_chunk_is_the_sum_over_its_dims() -> None:
    importance = np.array([[0.25, 0.0], [0.75, 0.0], [0.0, 1.0]])
    summed = _sum_groups(importance, (np.array([0, 1]), np.array([2])))
    assert (summed == np.eye(2)).all()
    assert completeness(summed) == pytest.approx(1)
    assert completeness(importance) < 0.8


def test_modularity_by_hand() -> None:
    assert modularity(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])) == 1
    assert modularity(np.array([[1.0, 1.0], [0.0, 0.0]])) == 0
    assert modularity(np.array([[2.0, 1.0, 0.0]])) == pytest.approx(1 - 1 / (4 * 2))
    assert modularity(np.ones((3, 1))) is None


def test_gaps_of_few() -> None:
    assert top_gap(np.array([0.1, 0.9, 0.4])) == pytest.approx(0.5)
    assert top_gap(np.array([0.9])) is None
    assert mean_or_none([None, 1.0, 2.0]) == 1.5
    assert mean_or_none([None]) is None


def test_thresholds_hold_in_both_directions_and_with_ties() -> None:
    y = np.tile([0.0, 1.0], 20)
    x = np.stack([y, -3 * y, np.zeros(40), np.tile([0.0, 0.0, 1.0, 1.0], 10)], axis=1)
    assert predictability(rows_with(x, y, "binary")).tolist() == [1.0, 1.0, 0.5, 0.5]


def test_thresholds_cut_the_middle_class_out_of_a_category() -> None:
    y = np.tile([0.0, 1.0, 2.0], 20)
    assert predictability(rows_with(np.stack([y, 0 * y], axis=1), y, "category")) == pytest.approx([1.0, 1 / 3])
    assert recall_of_classes(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, 0.0, 5.0, 1.0])) == pytest.approx(5 / 6)


def test_captured_attributes_need_a_unit_and_their_own_entropy() -> None:
    aurocs = np.array([[0.9, 0.6, 0.95], [0.7, 0.74, 0.55]])
    captured = captured_attributes(aurocs, [0.0, 0.0, 0.5])
    assert captured.tolist() == [True, False, False]
    assert total_auroc_difference(aurocs, captured) == pytest.approx(0.2)
    assert total_auroc_difference(aurocs[:1], captured) is None


def test_an_attribute_told_by_another_has_its_entropy_reduced() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(2, size=(2, 400)).astype(float)
    copy = np.where(np.arange(400) < 100, np.nan, 1 - a)
    reductions = entropy_reductions(np.stack([a, b, copy], axis=1))
    assert reductions[0] == pytest.approx(1, abs=1e-9) == reductions[2]
    assert reductions[1] < 0.02
    assert entropy_reductions(a[:, None]) == [0.0]


def test_votes_by_hand() -> None:
    # Factor 0 always votes for unit 0, factor 1 for unit 1 except once in four.
    first = np.tile([0.0, 1.0], (4, 1))
    second = np.tile([1.0, 0.0], (4, 1))
    test = second.copy()
    test[0] = [0.0, 1.0]
    assert vote_accuracy(np.stack([first, second]), np.stack([first, test])) == pytest.approx(7 / 8)
    assert vote_accuracy(first[None], first[None]) is None
    assert part_count(20) == 2
    assert part_count(10**5) == 10


def test_numbers_are_cut_into_classes_none_of_which_is_empty() -> None:
    train = np.arange(8)
    factor = Target(name="f", kind="number", values=np.array([0, 0, 0, 0, 0, 0, 1, 2, 5, np.nan]))
    classes = discrete(factor, 4, train).values
    assert np.isnan(classes[9])
    assert np.unique(classes[train]).tolist() == [0.0, 1.0]
    assert discrete(factor, 2, train).values[[0, 6, 8]].tolist() == [0.0, 1.0, 1.0]
    even = Target(name="f", kind="number", values=np.arange(8.0))
    assert np.bincount(discrete(even, 4, train).values.astype(int)).tolist() == [2, 2, 2, 2]


def test_rare_classes_of_a_category_are_unknown() -> None:
    texts = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 3 + [""] * 3)
    rows = np.arange(len(texts))
    factors, skipped = make_targets({"f": LabelColumn("category", texts)}, {"train": rows, "test": rows}, NEEDS)
    assert not skipped
    assert _as_factor(factors[0]).kind == "binary"
    assert np.isnan(factors[0].values[40:]).all()
    assert set(factors[0].values[:40]) == {0.0, 1.0}


def test_rows_are_drawn_so_that_rare_classes_stay() -> None:
    y = np.concatenate([np.zeros(990), np.ones(10)])
    rows = FactorRows(kind="binary", x_train=np.zeros((1000, 1)), y_train=y, x_test=np.zeros((0, 1)), y_test=y[:0])
    chosen = balanced_rows(rows, 100, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 100
    assert y[chosen].sum() == 10
    assert len(balanced_rows(rows, 5000, np.random.default_rng(0))) == 1000


@pytest.mark.parametrize("kind", ["number", "binary", "category"])
def test_a_readout_finds_what_dims_say_together(kind: str) -> None:
    rng = np.random.default_rng(6)
    hidden = rng.standard_normal((400, 2))
    y = hidden.sum(axis=1) if kind == "number" else (hidden.sum(axis=1) > 0).astype(float)
    x = np.concatenate([hidden @ np.array([[1, 1], [1, -1]]) / 2**0.5, rng.standard_normal((400, 3))], axis=1)
    readouts = chunk_readouts(rows_with(x, y, kind), (np.array([0, 1]), np.array([2, 3, 4])))
    assert readouts.x_test.shape == (200, 2)
    scores = (
        [recall_of_classes(readouts.y_test, column) for column in readouts.x_test.T]
        if kind == "category"
        else predictability(readouts).tolist()
    )
    assert scores[0] > 0.93 > 0.65 > scores[1]
