"""How well scores tell positive rows from negative ones: AUC, log loss, AUC within groups.

Shapes: N rows, V distinct scores, S bootstrap samples, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feedworks.metrics.ranking import Interval

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


def auc(label_N: npt.ArrayLike, score_N: npt.ArrayLike) -> float:
    """Probability that a positive row has a higher score than a negative one; a tie counts half.

    Exact, by the sum of mid-ranks (Mann and Whitney, 1947).

    Args:
        label_N: 0 or 1.
        score_N: any finite numbers, such as logits.

    Raises:
        ValueError: the shapes differ, a label is not 0 or 1, a score is not finite, or all labels are equal.
    """
    label, score = _checked(label_N, score_N)
    _require_both(label)
    positive_V, negative_V = _counts(label, score)
    return float(_auc_of_counts(positive_V, negative_V))


def auc_interval(
    label_N: npt.ArrayLike,
    score_N: npt.ArrayLike,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """AUC with a percentile bootstrap interval over rows.

    Positive and negative rows are drawn apart, so that every sample has as many of each as the data.

    Raises:
        ValueError: as `auc`.
    """
    label, score = _checked(label_N, score_N)
    _require_both(label)
    _, value_N = np.unique(score, return_inverse=True)
    num_values = int(value_N.max()) + 1
    rng = np.random.default_rng(seed)
    positive, negative = value_N[label == 1], value_N[label == 0]
    samples_S = np.empty(num_samples)
    for sample in range(num_samples):
        drawn = (rows[rng.integers(len(rows), size=len(rows))] for rows in (positive, negative))
        samples_S[sample] = _auc_of_counts(*(np.bincount(rows, minlength=num_values) for rows in drawn))
    low, high = np.quantile(samples_S, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(auc(label, score), float(low), float(high))


def weighted_aucs(label_N: npt.ArrayLike, score_N: npt.ArrayLike, weight_SN: npt.ArrayLike) -> FloatArray:
    """AUC of rows that count as often as their weights say, for S sets of weights at once.

    Whole weights give what `auc` gives of rows repeated so often.

    Args:
        label_N: 0 or 1.
        score_N: any finite numbers.
        weight_SN: not negative.

    Returns:
        (S,) numbers; NaN where a set gives one of the labels no weight.

    Raises:
        ValueError: as `auc`, or the weights are not (S, N).
    """
    label, score = _checked(label_N, score_N)
    weight = np.asarray(weight_SN, dtype=np.float64)
    if weight.ndim != 2 or weight.shape[1] != len(label):
        raise ValueError(f"expected weights (S, {len(label)}), got {weight.shape}")
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
    sorted_SN = weight[:, order]
    positive_SV = np.add.reduceat(sorted_SN * label[order], starts, axis=1)
    negative_SV = np.add.reduceat(sorted_SN * (1 - label[order]), starts, axis=1)
    below_SV = np.cumsum(negative_SV, axis=1) - negative_SV
    right_S = (positive_SV * (below_SV + negative_SV / 2)).sum(axis=1)
    pairs_S = positive_SV.sum(axis=1) * negative_SV.sum(axis=1)
    found: FloatArray = np.divide(right_S, pairs_S, out=np.full(len(weight), np.nan), where=pairs_S > 0)
    return found


class Bin(NamedTuple):
    """Rows of similar prediction: their number, mean prediction and mean label."""

    num_rows: int
    predicted: float
    observed: float


def calibration(label_N: npt.ArrayLike, p_N: npt.ArrayLike, num_bins: int = 10) -> list[Bin]:
    """Rows in order of prediction, cut into bins of almost equal size.

    Args:
        label_N: from 0 to 1; shares are allowed.
        p_N: predictions from 0 to 1.
        num_bins: at most as many as rows.

    Raises:
        ValueError: the shapes differ, a number is not from 0 to 1, or there are no rows.
    """
    label, p = np.asarray(label_N, dtype=np.float64), np.asarray(p_N, dtype=np.float64)
    if label.ndim != 1 or label.shape != p.shape or not label.size:
        raise ValueError(f"expected labels and predictions (N,), N > 0, got {label.shape} and {p.shape}")
    if not all(((each >= 0) & (each <= 1)).all() for each in (label, p)):
        raise ValueError("labels and predictions must lie between 0 and 1")
    parts = np.array_split(np.argsort(p, kind="stable"), min(num_bins, len(p)))
    return [Bin(len(rows), float(p[rows].mean()), float(label[rows].mean())) for rows in parts]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: mean distance of prediction and label over bins, weighted by rows."""
    distances = [abs(each.predicted - each.observed) for each in bins]
    return float(np.average(distances, weights=[each.num_rows for each in bins]))


def log_loss(label_N: npt.ArrayLike, logit_N: npt.ArrayLike) -> float:
    """Mean of `-log p(label)` in nats, where p(1) is the sigmoid of the logit.

    Raises:
        ValueError: the shapes differ, a label is not 0 or 1, a logit is not finite, or there are no rows.
    """
    label, logit = _checked(label_N, logit_N)
    # log(1 + e^x) without overflow.
    return float(np.mean(np.logaddexp(0.0, logit) - label * logit))


def grouped_auc(label_N: npt.ArrayLike, score_N: npt.ArrayLike, group_N: npt.ArrayLike) -> tuple[float, int]:
    """Mean of the AUC within each group, weighted by its rows, and the number of groups in it.

    Groups whose labels are all equal have no AUC and are left out. The mean over users, weighted by
    impressions, is the GAUC of DIN (arXiv 1706.06978, equation 7).

    Raises:
        ValueError: as `auc`, or no group has both labels.
    """
    label, score = _checked(label_N, score_N)
    group = np.asarray(group_N)
    if group.shape != label.shape:
        raise ValueError(f"expected a group for each row, got {group.shape} for {label.shape}")
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=group[order][0] - 1))
    rows_of = [rows for rows in np.split(order, starts[1:]) if 0 < label[rows].sum() < len(rows)]
    if not rows_of:
        raise ValueError("no group has both labels, so there is no AUC within groups")
    each_G = [auc(label[rows], score[rows]) for rows in rows_of]
    return float(np.average(each_G, weights=[len(rows) for rows in rows_of])), len(rows_of)


def _checked(label_N: npt.ArrayLike, score_N: npt.ArrayLike) -> tuple[IntArray, FloatArray]:
    label, score = np.asarray(label_N), np.asarray(score_N, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape or not label.size:
        raise ValueError(f"expected labels and scores (N,), N > 0, got {label.shape} and {score.shape}")
    if not np.isin(label, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} scores are not finite")
    return label.astype(np.int64), score


def _require_both(label: IntArray) -> None:
    if label.min() == label.max():
        raise ValueError(f"all {len(label)} labels are {label[0]}; an AUC needs both 0 and 1")


def _counts(label: IntArray, score: FloatArray) -> tuple[IntArray, IntArray]:
    """Positive and negative rows at each distinct score, lowest first."""
    _, value_N = np.unique(score, return_inverse=True)
    positive_V = np.bincount(value_N, weights=label).astype(np.int64)
    return positive_V, np.bincount(value_N) - positive_V


def _auc_of_counts(positive_V: IntArray, negative_V: IntArray) -> float:
    below_V = np.cumsum(negative_V) - negative_V
    # Twice the pairs in the right order: whole numbers, exact to 2^63.
    pairs = int((positive_V * (2 * below_V + negative_V)).sum())
    return pairs / (2 * int(positive_V.sum()) * int(negative_V.sum()))
