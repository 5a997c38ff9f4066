"""How well a factor is predicted: by one dim (SAP), one chunk (its readout), the whole code (explicitness).

SAP: Kumar, Sattigeri and Balakrishnan, "Variational Inference of Disentangled Latent Concepts from Unlabeled
Observations", ICLR 2018 (arXiv 1711.00848), section 3: S_uf is, for a number, R2 of the linear regression of f on u;
for classes the balanced accuracy of one or more thresholds on u, fitted on training rows. SAP = mean over factors of
the gap between the two largest S_uf.

A copy of the factors gets 1 for numbers and 0.5 for balanced binary factors: S of a useless unit is 0 or 0.5.

Readout of a chunk, as one number (ours): the best linear readout from its dims. Single dims are compared by one column
each; so are chunks, by their readouts. Fitted on training rows and measured on test rows, a readout's information is a
lower bound of the chunk's own (data processing inequality), and turning or scaling the dims inside a chunk changes
nothing but the shrinkage.

Explicitness: Ridgeway and Mozer, NeurIPS 2018 (arXiv 1802.05312), section 3: AUROC of a logistic regression, one class
against the rest, averaged over classes and factors. 0.5 is chance, 1 perfect; a rotation changes nothing. A number is
cut at its quartiles (ours: the paper has discrete factors only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.tree import DecisionTreeClassifier

from diticli.disentanglement.auroc import mean_auroc
from diticli.disentanglement.codes import FactorRows
from diticli.disentanglement.importance import balanced_rows, fit_converged
from diticli.types import DoubleArray, Rows


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


ALPHAS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
"""Ridge penalties; leave-one-out error on the training rows chooses."""


def chunk_readouts(rows: FactorRows, groups: Sequence[Rows]) -> FactorRows:
    """The same rows with one column per group of dims in place of the dims.

    The column is the prediction of a ridge regression for a number or a binary factor, and the class that a linear
    discriminant with equal priors predicts for a category.
    """
    columns = [_category_readout(rows, group) if rows.kind == "category" else _ridge(rows, group) for group in groups]
    train, test = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    return replace(rows, x_train=train, x_test=test)


def _ridge(rows: FactorRows, group: Rows) -> list[npt.NDArray[np.float64]]:
    model = RidgeCV(alphas=ALPHAS).fit(rows.x_train[:, group], rows.y_train)
    return [model.predict(part[:, group]) for part in (rows.x_train, rows.x_test)]


def _category_readout(rows: FactorRows, group: Rows) -> list[npt.NDArray[np.float64]]:
    classes = len(np.unique(rows.y_train))
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes))
    model.fit(rows.x_train[:, group], rows.y_train)
    return [model.predict(part[:, group]) for part in (rows.x_train, rows.x_test)]


PARTS = 4
"""Classes that a number is cut into."""
_ROWS = 5_000
_ITERATIONS = 300


def explicitness(rows: FactorRows, seed: int) -> tuple[float, bool]:
    """Mean AUROC over the classes of one factor, on the test rows, and whether the fit converged.

    Args:
        rows: whose values are classes; see `Factor.classes`.
        seed: of the draw of rows where there are more than 5,000.
    """
    chosen = balanced_rows(rows, _ROWS, np.random.default_rng(seed))
    model = LogisticRegression(max_iter=_ITERATIONS, tol=1e-3)
    converged = fit_converged(model, rows.x_train[chosen], rows.y_train[chosen])
    return mean_auroc(rows.y_test, model.predict_proba(rows.x_test), model.classes_), converged
