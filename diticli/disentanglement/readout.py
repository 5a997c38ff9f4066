"""What a chunk says of a factor, as one number: the best linear readout from the chunk's dims (ours).

Single dims are compared by one column each; so are chunks, by their readouts. Fitted on training rows and measured on
test rows, a readout's information is a lower bound of the chunk's own (data processing inequality), and turning or
scaling the dims inside a chunk changes nothing but the shrinkage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeCV

from diticli.disentanglement.codes import FactorRows
from diticli.types import Rows

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
