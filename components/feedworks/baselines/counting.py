"""Baselines that only count: popularity, the latest items again, and item-to-item nearest neighbours.

Shape legend: N items, U users, K places of a ranked list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def popularity(count_N: IntArray, num_users: int, k: int) -> IntArray:
    """The most frequent items of the training split for everybody; ties go to the lower item number."""
    best = np.argsort(-count_N, kind="stable")[:k]
    return np.tile(best, (num_users, 1))


def repeat_recent(histories: Sequence[IntArray], k: int) -> IntArray:
    """The user's own distinct items, the latest first."""
    ranked = np.full((len(histories), k), -1, dtype=np.int64)
    for row, history in enumerate(histories):
        distinct = list(dict.fromkeys(history[::-1].tolist()))[:k]
        ranked[row, : len(distinct)] = distinct
    return ranked


def without_seen(ranked_UK: IntArray, histories: Sequence[IntArray]) -> IntArray:
    """Take the items of each user's history out of the user's ranked list and close the gaps."""
    kept = np.full_like(ranked_UK, -1)
    for row, (ranked, history) in enumerate(zip(ranked_UK, histories, strict=True)):
        left = ranked[~np.isin(ranked, history)]
        kept[row, : len(left)] = left
    return kept


class ItemKNN:
    """Cosine over co-occurrence in users' training histories; a user's score is the sum over the history.

    Args:
        histories: training histories.
        num_items: N.
        num_neighbours: neighbours kept per item.
    """

    def __init__(self, histories: Sequence[IntArray], num_items: int, num_neighbours: int = 100) -> None:
        from scipy.sparse import csr_matrix

        rows = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        items = np.concatenate(histories) if len(histories) else np.zeros(0, dtype=np.int64)
        table = csr_matrix((np.ones(len(items)), (rows, items)), shape=(len(histories), num_items))
        table.data[:] = 1  # csr_matrix adds up repeats; a user counts once per item
        length = np.sqrt(np.asarray(table.sum(axis=0)).ravel())
        table = table.multiply(1 / np.maximum(length, 1)).tocsr()
        similarity = (table.T @ table).tocsr()
        similarity.setdiag(0)
        self._similarity = _strongest(similarity, num_neighbours)
        self._num_items = num_items

    def rank(self, histories: Sequence[IntArray], k: int, batch_size: int = 1024) -> IntArray:
        """Rank items for each history; items of score 0 are left out."""
        from scipy.sparse import csr_matrix

        ranked = np.full((len(histories), k), -1, dtype=np.int64)
        for start in range(0, len(histories), batch_size):
            part = histories[start : start + batch_size]
            rows = np.repeat(np.arange(len(part)), [len(h) for h in part])
            items = np.concatenate(part)
            seen = csr_matrix((np.ones(len(items)), (rows, items)), shape=(len(part), self._num_items))
            score = (seen @ self._similarity).toarray()
            best = np.argsort(-score, axis=1, kind="stable")[:, :k]
            found = np.take_along_axis(score, best, axis=1) > 0
            ranked[start : start + batch_size, : best.shape[1]] = np.where(found, best, -1)
        return ranked


def _strongest(similarity: Any, count: int) -> Any:
    """Keep the `count` largest entries of each row of a CSR matrix."""
    kept = similarity.copy()
    for row in range(similarity.shape[0]):
        low, high = similarity.indptr[row], similarity.indptr[row + 1]
        if high - low > count:
            order = np.argsort(-similarity.data[low:high], kind="stable")[count:]
            kept.data[low + order] = 0
    kept.eliminate_zeros()
    return kept
