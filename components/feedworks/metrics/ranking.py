"""Top-k metrics for one held-out target per user, with bootstrap intervals over users.

Full ranking is assumed: the lists come from the whole catalogue, never from sampled negatives, because
sampled metrics can order methods differently (Krichene and Rendle, KDD 2020).

Shapes: N users, K list length, S bootstrap samples, U distinct rows, M columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_CHUNK_CELLS = 1 << 22  # cells of scratch per chunk: 32 MB of int64


class Interval(NamedTuple):
    """A point estimate and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def ranks_of_targets(ranked_NK: npt.ArrayLike, target_N: npt.ArrayLike) -> IntArray:
    """Find each user's target in the user's list.

    Args:
        ranked_NK: item ids, best first; -1 pads a list that is shorter than K.
        target_N: the held-out item of each user, never negative.

    Returns:
        1-based rank of the first occurrence; 0 where the target is not in the list.

    Raises:
        ValueError: the shapes do not fit or a target is negative.
    """
    ranked, target = np.asarray(ranked_NK), np.asarray(target_N)
    if ranked.ndim != 2 or target.shape != ranked.shape[:1]:
        raise ValueError(f"expected lists (N, K) and targets (N,), got {ranked.shape} and {target.shape}")
    if target.size and target.min() < 0:
        raise ValueError("a target is negative; -1 is the pad of a list and cannot be found in it")
    rank = np.zeros(len(target), dtype=np.int64)
    if ranked.shape[1] == 0:
        return rank
    step = max(1, _CHUNK_CELLS // ranked.shape[1])
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        found_NK = ranked[rows] == target[rows, None]
        rank[rows] = np.where(found_NK.any(axis=1), found_NK.argmax(axis=1) + 1, 0)
    return rank


def recall(rank_N: npt.ArrayLike, k: int) -> FloatArray:
    """Return 1 for each user whose target is among the first k, else 0 (one target: recall = hit rate)."""
    return _within(rank_N, k).astype(np.float64)


def hit(rank_N: npt.ArrayLike, k: int) -> FloatArray:
    """Return the hit rate per user, the name some papers use for `recall` with one target."""
    return recall(rank_N, k)


def ndcg(rank_N: npt.ArrayLike, k: int) -> FloatArray:
    """Return 1 / log2(1 + rank) per user, 0 beyond k; the ideal gain of one target is 1."""
    within = _within(rank_N, k)
    return np.where(within, 1.0 / np.log2(1.0 + np.maximum(rank_N, 1)), 0.0)


def mrr(rank_N: npt.ArrayLike, k: int) -> FloatArray:
    """Return 1 / rank per user, 0 beyond k."""
    within = _within(rank_N, k)
    return np.where(within, 1.0 / np.maximum(rank_N, 1), 0.0)


def bootstrap_mean(
    values_N: npt.ArrayLike, *, num_samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Estimate the mean over users with a percentile bootstrap interval (Efron, 1979).

    Raises:
        ValueError: there are no values.
    """
    values_NM = np.asarray(values_N, dtype=np.float64).reshape(-1, 1)
    means_S = _resampled_means(values_NM, num_samples, seed)[:, 0]
    return _interval(float(values_NM.mean()), means_S, confidence)


def paired_relative_gain(
    after_N: npt.ArrayLike,
    before_N: npt.ArrayLike,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Estimate mean(after) / mean(before) - 1, resampling users as pairs.

    Where mean(before) is 0 the difference is divided by 1/N, the mean that one hit would give, so that the
    result stays finite (JSON files and KFP metrics take neither NaN nor infinity).

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    after, before = np.asarray(after_N, dtype=np.float64), np.asarray(before_N, dtype=np.float64)
    if after.shape != before.shape or after.ndim != 1:
        raise ValueError(f"expected two arrays (N,) over the same users, got {after.shape}, {before.shape}")
    pairs_NM = np.stack([after, before], axis=1)
    means_SM = _resampled_means(pairs_NM, num_samples, seed)
    gain = _relative_gain(pairs_NM.mean(axis=0, keepdims=True), len(after))
    return _interval(float(gain[0]), _relative_gain(means_SM, len(after)), confidence)


def summarise(
    rank_N: npt.ArrayLike, cutoffs: Sequence[int] = (5, 10), *, num_samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Return `{"recall@5": Interval, "ndcg@5": ..., "mrr@5": ...}` for every cutoff."""
    per_user = {"recall": recall, "ndcg": ndcg, "mrr": mrr}
    return {
        f"{name}@{k}": bootstrap_mean(metric(rank_N, k), num_samples=num_samples, seed=seed)
        for k in cutoffs
        for name, metric in per_user.items()
    }


def flat(prefix: str, intervals: Mapping[str, Interval]) -> dict[str, float]:
    """Return `prefix/name`, `prefix/name/ci_low` and `prefix/name/ci_high` as plain floats for JSON."""
    rows: dict[str, float] = {}
    for name, interval in intervals.items():
        rows[f"{prefix}/{name}"] = float(interval.mean)
        rows[f"{prefix}/{name}/ci_low"] = float(interval.low)
        rows[f"{prefix}/{name}/ci_high"] = float(interval.high)
    return rows


def read_back(metrics: Mapping[str, float], group: str) -> dict[str, dict[str, Interval | float]]:
    """Read method -> metric -> value back from flat metrics `group/method/metric`.

    Args:
        metrics: of a run; those that `flat` wrote become intervals again, others stay numbers.
        group: first part of the keys that are read, such as `test`.
    """
    found: dict[str, dict[str, Interval | float]] = {}
    for key, value in metrics.items():
        first, _, rest = key.partition("/")
        method, _, name = rest.partition("/")
        if first != group or not name or name.endswith(("/ci_low", "/ci_high")):
            continue
        low, high = metrics.get(f"{key}/ci_low"), metrics.get(f"{key}/ci_high")
        cell = value if low is None or high is None else Interval(value, low, high)
        found.setdefault(method, {})[name] = cell
    return found


def _within(rank_N: npt.ArrayLike, k: int) -> npt.NDArray[np.bool_]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    rank = np.asarray(rank_N)
    return (rank >= 1) & (rank <= k)


def _relative_gain(means_SM: FloatArray, num_users: int) -> FloatArray:
    after_S, before_S = means_SM[:, 0], means_SM[:, 1]
    return (after_S - before_S) / np.where(before_S > 0, before_S, 1.0 / num_users)


def _interval(mean: float, means_S: FloatArray, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(means_S, [tail, 1.0 - tail])
    return Interval(mean, float(low), float(high))


def _resampled_means(values_NM: FloatArray, num_samples: int, seed: int) -> FloatArray:
    """Return means_SM over S resamples of the rows, each drawn with replacement.

    Top-k metrics take at most k + 1 values, so a resample is one multinomial draw over the distinct rows
    instead of N indices: 22 k users x 1000 resamples take 8 ms instead of 220 ms, by the same law.
    """
    num_users = len(values_NM)
    if num_users == 0:
        raise ValueError("no values to average: the slice holds no user")
    rng = np.random.default_rng(seed)
    distinct_UM, count_U = np.unique(values_NM, axis=0, return_counts=True)
    if 16 * len(distinct_UM) <= num_users:  # one binomial draw costs about as much as 16 gathered indices
        drawn_SU = rng.multinomial(num_users, count_U / num_users, size=num_samples)
        return drawn_SU @ distinct_UM / num_users
    means_SM = np.empty((num_samples, values_NM.shape[1]))
    step = max(1, _CHUNK_CELLS // num_users)
    for start in range(0, num_samples, step):
        stop = min(start + step, num_samples)
        index_SN = rng.integers(0, num_users, size=(stop - start, num_users))
        means_SM[start:stop] = values_NM[index_SN].mean(axis=1)
    return means_SM
