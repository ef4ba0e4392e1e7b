"""Logistic regression on one-hot fields: what the ids say one by one, without any two together.

Shape legend: N rows, F fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def logistic_scores(
    id_NF: IntArray,
    label_N: npt.ArrayLike,
    sizes: Sequence[int],
    asked_NF: IntArray,
    *,
    inverse_l2: float = 1.0,
) -> FloatArray:
    """Fit on some rows and return the log-odds of others.

    Args:
        id_NF: rows to learn from, each id from 0 to below its field's size.
        label_N: 0 or 1.
        sizes: ids of each field.
        asked_NF: rows to score.
        inverse_l2: `C` of scikit-learn's `LogisticRegression`.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_l2, max_iter=1000)
    model.fit(_one_hot(id_NF, sizes), np.asarray(label_N))
    return np.asarray(model.decision_function(_one_hot(asked_NF, sizes)))


def _one_hot(id_NF: IntArray, sizes: Sequence[int]) -> object:
    from scipy.sparse import csr_matrix

    columns_NF = id_NF + np.cumsum([0, *sizes[:-1]])
    num_rows, num_fields = columns_NF.shape
    starts = np.arange(num_rows + 1) * num_fields
    return csr_matrix((np.ones(columns_NF.size), columns_NF.ravel(), starts), (num_rows, sum(sizes)))
