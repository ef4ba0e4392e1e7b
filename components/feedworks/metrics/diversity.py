"""How much of the catalogue a recommender shows, and how evenly.

Shapes: N users, K list length, I items. Lists hold dense item indices 0..I-1; -1 pads a short list.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def exposure(ranked_NK: npt.ArrayLike, num_items: int) -> npt.NDArray[np.int64]:
    """Return how often each item is recommended, (I,).

    Raises:
        ValueError: an index lies outside -1..I-1.
    """
    shown = np.asarray(ranked_NK, dtype=np.int64).ravel()
    if shown.size and not -1 <= shown.min() <= shown.max() < num_items:
        raise ValueError(
            f"items run from {shown.min()} to {shown.max()}; expected -1 (pad) to {num_items - 1}"
        )
    return np.bincount(shown[shown >= 0], minlength=num_items).astype(np.int64)


def coverage(ranked_NK: npt.ArrayLike, num_items: int) -> float:
    """Return the share of items, 0 to 1, that at least one user is shown; 0 for an empty catalogue."""
    return float((exposure(ranked_NK, num_items) > 0).sum() / max(1, num_items))


def gini(ranked_NK: npt.ArrayLike, num_items: int) -> float:
    """Return the Gini index of exposure: 0 = every item equally often, towards 1 = one item takes all.

    With items sorted by exposure x_1 <= ... <= x_I it is sum_i (2i - I - 1) x_i / (I sum_i x_i); 0 if
    nothing is shown.
    """
    exposure_I = np.sort(exposure(ranked_NK, num_items)).astype(np.float64)
    total = exposure_I.sum()
    if total == 0:
        return 0.0
    weight_I = 2.0 * np.arange(1, num_items + 1) - num_items - 1
    return float(weight_I @ exposure_I / (num_items * total))


def novelty(ranked_NK: npt.ArrayLike, train_count_I: npt.ArrayLike) -> float:
    """Return the mean of -log2 p(item) over all shown items, in bits; p = train events of item / all events.

    An item without a train event counts as one event, so that it stays finite (self-information, Zhou et
    al., PNAS 2010); 0 if nothing is shown.
    """
    count_I = np.maximum(1, np.asarray(train_count_I, dtype=np.float64))
    exposure_I = exposure(ranked_NK, len(count_I))
    if exposure_I.sum() == 0:
        return 0.0
    bits_I = np.log2(count_I.sum() / count_I)
    return float(exposure_I @ bits_I / exposure_I.sum())
