"""Separated attribute predictability: is one unit much better at predicting a factor than all others?

Kumar, Sattigeri and Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled Observations",
ICLR 2018 (arXiv 1711.00848), section 3: S_uf is, for a number, R2 of the linear regression of f on u; for classes the
balanced accuracy of one or more thresholds on u, fitted on training rows. SAP = mean over factors of the gap between
the two largest S_uf.

A copy of the factors gets 1 for numbers and 0.5 for balanced binary factors: S of a useless unit is 0 or 0.5.
"""

from __future__ import annotations

import numpy as np
from sklearn.tree import DecisionTreeClassifier

from diticli.disentanglement.codes import FactorRows
from diticli.types import DoubleArray


def predictability(rows: FactorRows) -> DoubleArray:
    """[D] S of each single dim, on the test rows."""
    if rows.kind == "number":
        return squared_correlations(rows.x_test, rows.y_test)
    if rows.kind == "binary":
        return threshold_accuracies(rows)
    return np.array([_tree_accuracy(rows, dim) for dim in range(rows.x_train.shape[1])])


def squared_correlations(values_ND: DoubleArray, truth: DoubleArray) -> DoubleArray:
    """[D] R2 of the regression of `truth` [N] on each column alone, which is their squared correlation."""
    centred, target = values_ND - values_ND.mean(axis=0), truth - truth.mean()
    products = np.square(centred).sum(axis=0) * np.square(target).sum()
    covariances = np.square(target @ centred)
    return np.divide(covariances, products, out=np.zeros_like(products), where=products > 0)


def threshold_accuracies(rows: FactorRows) -> DoubleArray:
    """[D] balanced accuracy on test rows of the threshold (and direction) that is best on the training rows."""
    order = np.argsort(rows.x_train, axis=0)
    ordered, positive = np.take_along_axis(rows.x_train, order, axis=0), rows.y_train[order] == 1
    below = positive.cumsum(axis=0) / positive.sum(axis=0) - (~positive).cumsum(axis=0) / (~positive).sum(axis=0)
    advantage = np.where(ordered[1:] > ordered[:-1], below[:-1], 0)
    cut = np.abs(advantage).argmax(axis=0)
    columns = np.arange(len(cut))
    thresholds = (ordered[cut, columns] + ordered[cut + 1, columns]) / 2
    is_below = rows.x_test <= thresholds
    difference = is_below[rows.y_test == 1].mean(axis=0) - is_below[rows.y_test == 0].mean(axis=0)
    return 0.5 + 0.5 * difference * np.sign(advantage[cut, columns])


def _tree_accuracy(rows: FactorRows, dim: int) -> float:
    """A tree of one leaf per class on one dim is a set of thresholds."""
    classes = len(np.unique(rows.y_train))
    tree = DecisionTreeClassifier(max_leaf_nodes=classes, class_weight="balanced", random_state=0)
    tree.fit(rows.x_train[:, dim : dim + 1], rows.y_train)
    return recall_of_classes(rows.y_test, tree.predict(rows.x_test[:, dim : dim + 1]))


def recall_of_classes(truth: DoubleArray, predicted: DoubleArray) -> float:
    """Balanced accuracy: recall averaged over the classes that `truth` [N] has; `predicted` [N] may name others."""
    return float(np.mean([np.mean(predicted[truth == label] == label) for label in np.unique(truth)]))
