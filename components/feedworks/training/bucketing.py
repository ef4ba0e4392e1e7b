"""Batches of sequences of like length: on histories whose lengths differ this leaves almost no padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Batches are sorted by length inside pools of this many; larger pools pad less and mix less.
POOL_BATCHES = 20

IntArray = npt.NDArray[np.int64]


def length_batches(
    length_N: npt.ArrayLike, batch_size: int, rng: np.random.Generator | None = None
) -> list[IntArray]:
    """Cut rows into batches of like length.

    Args:
        length_N: length of each row.
        batch_size: rows of a batch; the last of a pool may be smaller.
        rng: shuffles rows and batches; None keeps a fixed order, longest rows last.

    Returns:
        row numbers of each batch; every row comes exactly once.
    """
    lengths = np.asarray(length_N)
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    pool = len(order) if rng is None else batch_size * POOL_BATCHES
    batches: list[IntArray] = []
    for start in range(0, len(order), max(pool, 1)):
        rows = order[start : start + pool]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    if rng is None:
        return batches
    return [batches[i] for i in rng.permutation(len(batches))]


def pad_right(rows: Sequence[npt.ArrayLike], fill: int = -1) -> IntArray:
    """Stack sequences into `(rows, longest)`, filled on the right; the width is at least 1."""
    lengths = np.fromiter((np.size(row) for row in rows), dtype=np.int64, count=len(rows))
    table = np.full((len(rows), max(1, int(lengths.max(initial=0)))), fill, dtype=np.int64)
    table[np.arange(table.shape[1]) < lengths[:, None]] = (
        np.concatenate([np.asarray(row, dtype=np.int64) for row in rows]) if len(rows) else []
    )
    return table
