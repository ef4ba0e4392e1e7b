"""OCARM (arXiv 2604.25839): all arms over all seeds, compared on the same users.

Keys of the flat metrics, for each horizon of d days (AUC is that of "any return"):

    test/<arm>/auc@d, gauc@d, log_loss@d, ece@d     mean over seeds
    gain/<arm>/auc@d                                AUC of the arm minus that of the base
    recovered/ocarm/share@d                         (ocarm - base) / (upper - base)
    valid/ocarm/similarity@d                        mean cosine of e_u and e_c

`/ci_low` and `/ci_high` behind a key are the ends of a 95 % bootstrap interval, which draws users and seeds.
Shape legend: N rows of a split, K seeds, S bootstrap samples, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.files import read_file
from feedworks.contracts.retention import OBSERVABLES_FILE, label_of
from feedworks.errors import DataError
from feedworks.metrics.classification import (
    Bin,
    calibration,
    calibration_error,
    grouped_auc,
    weighted_aucs,
)
from feedworks.metrics.ranking import Interval
from feedworks.ocarm.arms import ARMS
from feedworks.ocarm.config import OcarmConfig

FloatArray = npt.NDArray[np.float64]
BASE, OURS, UPPER = "base", "ocarm", "upper"
GAIN = f"gain/{OURS}/auc"
GROUPS = ("user", "idle", "split")
CONFIDENCE = 0.95
# Weights of bootstrap samples held at a time: 64 MB.
MAX_WEIGHTS = 8_000_000


class SimilarityBin(NamedTuple):
    """Validation rows of similar cosine: their number, mean cosine, mean gain in log loss over the base."""

    num_rows: int
    similarity: float
    gain: Interval


class Seen(NamedTuple):
    """One horizon of one split: labels, users, and for each arm the logits of all seeds `(K, N)`."""

    label_N: FloatArray
    user_N: npt.NDArray[np.int64]
    idle_N: npt.NDArray[np.int64]
    logit_KN: dict[str, FloatArray]
    similarity_KN: FloatArray

    @property
    def any(self) -> npt.NDArray[np.int64]:
        """Whether each user came back at all, 0 or 1, `(N,)`."""
        return (self.label_N > 0).astype(np.int64)


class Evaluated(NamedTuple):
    """What a run found; horizons are days.

    Attributes:
        metrics: flat, see the top of this file.
        methods: arm -> metric -> value on test.
        gains: arm -> metric -> AUC over the base.
        recovered: horizon -> share of the gap between base and upper bound.
        per_seed: arm, seed, then AUC for each horizon.
        calibration: horizon -> arm -> bins on test.
        similarity: horizon -> bins on validation.
        groups: what GAUC was taken within, `user`, `idle` or `split` for each horizon.
    """

    metrics: dict[str, float]
    methods: dict[str, dict[str, Interval | float]]
    gains: dict[str, dict[str, Interval | float]]
    recovered: dict[int, Interval]
    per_seed: list[tuple[str, int, dict[int, float]]]
    calibration: dict[int, dict[str, list[Bin]]]
    similarity: dict[int, list[SimilarityBin]]
    groups: dict[int, str]


class _Horizon(NamedTuple):
    """Of one horizon: AUC of each arm over bootstrap samples `(S,)`, and without drawing, by seed `(K,)`."""

    drawn_S: dict[str, FloatArray]
    auc_K: dict[str, FloatArray]


def evaluate_arms(predictions: pa.Table, observables: Path, cfg: OcarmConfig) -> Evaluated:
    """Compare the arms.

    Args:
        predictions: rows of `feedworks.ocarm.arms.prediction_rows`, of all seeds and some arms.
        observables: folder of the training set, for labels.
        cfg: horizons and what is reported.

    Raises:
        DataError: a seed lacks rows of an arm, there is no base, student or teacher, or all test users of a
            horizon came back, or none did.
    """
    horizons, wanted = cfg.samples.horizons, cfg.evaluation
    seeds = sorted(pc.unique(predictions["seed"]).to_pylist())
    named = {*pc.unique(predictions["arm"].cast(pa.string())).to_pylist(), BASE, OURS, UPPER}
    arms = [arm for arm in ARMS if arm in named]
    found = Evaluated({}, {arm: {} for arm in arms}, {}, {}, [], {}, {}, {})
    auc_of: dict[int, _Horizon] = {}
    for days in horizons:
        test = _seen(predictions, observables, "test", days, arms)
        auc_of[days] = _bootstrap(test, wanted.bootstrap, cfg.seed, days)
        found.groups[days] = _add_quality(found, test, days, auc_of[days], wanted.bins)
        valid = _seen(predictions, observables, "valid", days, arms)
        found.similarity[days] = _similarity(valid, wanted.bins, wanted.bootstrap, cfg.seed)
        found.metrics[f"valid/{OURS}/similarity@{days}"] = float(np.nanmean(valid.similarity_KN))
    for arm in arms:
        for place, seed in enumerate(seeds):
            found.per_seed.append((arm, seed, {d: float(auc_of[d].auc_K[arm][place]) for d in horizons}))
    _add_gains(found, auc_of)
    found.metrics.update(_flat("test", found.methods) | _flat("gain", found.gains))
    found.metrics[GAIN] = float(np.mean([_mean(found.gains[OURS][f"auc@{days}"]) for days in horizons]))
    shares = {OURS: {f"share@{days}": share for days, share in found.recovered.items()}}
    found.metrics.update(_flat("recovered", shares))
    return found


def _seen(predictions: pa.Table, folder: Path, split: str, days: int, arms: Sequence[str]) -> Seen:
    name, seeds = label_of(days), sorted(pc.unique(predictions["seed"]).to_pylist())
    truth = read_file(
        folder / OBSERVABLES_FILE, ["sample_id", "user_id", "bid_time", "aggregated_time", name]
    )
    rows = predictions.filter(pc.equal(predictions["split"].cast(pa.string()), split))
    sample_P = rows["sample_id"].to_numpy()
    sample_N = np.unique(sample_P)
    place_N = np.searchsorted(truth["sample_id"].to_numpy(), sample_N)
    truth = truth.take(place_N)
    known_N = truth[name].is_valid().to_numpy()
    arm_P, seed_P = rows["arm"].cast(pa.string()).to_numpy(zero_copy_only=False), rows["seed"].to_numpy()
    order_P = np.searchsorted(sample_N, sample_P)

    def of(arm: str, column: str) -> FloatArray:
        value_P = rows[column].to_numpy(zero_copy_only=False).astype(np.float64)
        found_KN = np.full((len(seeds), len(sample_N)), np.nan)
        for place, seed in enumerate(seeds):
            mine_P = (arm_P == arm) & (seed_P == seed)
            if int(mine_P.sum()) != len(sample_N):
                raise DataError(
                    f"arm {arm}, seed {seed}: {int(mine_P.sum())} predictions for {len(sample_N)} rows of "
                    f"{split}; train the arms again"
                )
            found_KN[place, order_P[mine_P]] = value_P[mine_P]
        return found_KN[:, known_N]

    label_N = truth[name].to_numpy()[known_N].astype(np.float64)
    if not 0 < (label_N > 0).sum() < len(label_N):
        raise DataError(f"{split}, {name}: all users came back or none did; bring more samples")
    return Seen(
        label_N=label_N,
        user_N=truth["user_id"].to_numpy()[known_N],
        idle_N=_idle_bucket(truth)[known_N],
        logit_KN={arm: of(arm, f"logit_{name}") for arm in arms},
        similarity_KN=of(OURS, f"similarity_{name}"),
    )


def _idle_bucket(truth: pa.Table) -> npt.NDArray[np.int64]:
    """Doublings of the days since the last event; -1 where there was none."""
    bid_N = truth["bid_time"].cast(pa.int64()).to_numpy()
    last_N = truth["aggregated_time"].to_numpy(zero_copy_only=False).astype(np.float64)
    days_N = np.maximum((bid_N - last_N) / 86_400e6, 1)
    return np.where(np.isnan(days_N), -1, np.log2(np.nan_to_num(days_N, nan=1.0))).astype(np.int64)


def _bootstrap(seen: Seen, num_samples: int, seed: int, days: int) -> _Horizon:
    """Draw users and seeds; the same draws for every arm, so that differences are paired."""
    rng = np.random.default_rng([seed, days])
    _, user_N = np.unique(seen.user_N, return_inverse=True)
    num_users, num_seeds = int(user_N.max()) + 1, len(seen.similarity_KN)
    count_SU = rng.multinomial(num_users, np.full(num_users, 1 / num_users), size=num_samples)
    count_SK = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_samples)
    at_once = max(1, MAX_WEIGHTS // len(user_N))
    parts = range(0, num_samples, at_once)
    drawn, plain = {}, {}
    ones_1N = np.ones((1, len(user_N)))
    for arm, logit_KN in seen.logit_KN.items():
        plain[arm] = np.array([weighted_aucs(seen.any, one_N, ones_1N)[0] for one_N in logit_KN])
        auc_SK = np.concatenate(
            [
                np.stack([weighted_aucs(seen.any, one_N, weight_PN) for one_N in logit_KN], axis=1)
                for start in parts
                for weight_PN in [count_SU[start : start + at_once, user_N]]
            ]
        )
        drawn[arm] = (auc_SK * count_SK).sum(axis=1) / num_seeds
    return _Horizon(drawn, plain)


def _add_quality(found: Evaluated, seen: Seen, days: int, auc: _Horizon, num_bins: int) -> str:
    group, group_N = _groups(seen)
    found.calibration[days] = {}
    for arm, logit_KN in seen.logit_KN.items():
        p_KN = 1 / (1 + np.exp(-logit_KN))
        bins = [calibration(seen.label_N, p_N, num_bins) for p_N in p_KN]
        found.calibration[days][arm] = bins[0]
        within = [grouped_auc(seen.any, logit_N, group_N)[0] for logit_N in logit_KN]
        found.methods[arm] |= {
            f"auc@{days}": _interval(auc.auc_K[arm].mean(), auc.drawn_S[arm]),
            f"gauc@{days}": float(np.mean(within)),
            f"log_loss@{days}": float(np.mean([_entropy(seen.label_N, one).mean() for one in logit_KN])),
            f"ece@{days}": float(np.mean([calibration_error(each) for each in bins])),
        }
    return group


def _groups(seen: Seen) -> tuple[str, npt.NDArray[np.int64]]:
    """Users where enough of them have both labels to say something, else idle times, else all rows."""
    _, user_N, count_U = np.unique(seen.user_N, return_inverse=True, return_counts=True)
    positive_U = np.bincount(user_N, weights=seen.any)
    both_U = (positive_U > 0) & (positive_U < count_U)
    if count_U[both_U].sum() >= 0.1 * len(user_N):
        return GROUPS[0], seen.user_N
    if any(len(np.unique(seen.any[seen.idle_N == bucket])) == 2 for bucket in np.unique(seen.idle_N)):
        return GROUPS[1], seen.idle_N
    return GROUPS[2], np.zeros_like(seen.user_N)


def _add_gains(found: Evaluated, auc_of: Mapping[int, _Horizon]) -> None:
    for arm in found.methods:
        if arm != BASE:
            found.gains[arm] = {
                f"auc@{days}": _interval(
                    (of.auc_K[arm] - of.auc_K[BASE]).mean(), of.drawn_S[arm] - of.drawn_S[BASE]
                )
                for days, of in auc_of.items()
            }
    for days, of in auc_of.items():
        ours, base, upper = (of.auc_K[arm].mean() for arm in (OURS, BASE, UPPER))
        gap_S = of.drawn_S[UPPER] - of.drawn_S[BASE]
        share_S = (of.drawn_S[OURS] - of.drawn_S[BASE]) / np.where(gap_S == 0, np.nan, gap_S)
        found.recovered[days] = _interval((ours - base) / (upper - base) if upper != base else 0.0, share_S)


def _similarity(seen: Seen, num_bins: int, num_samples: int, seed: int) -> list[SimilarityBin]:
    """Gain in log loss over the base by cosine, each the mean over seeds."""
    gain_KN = _entropy(seen.label_N, seen.logit_KN[BASE]) - _entropy(seen.label_N, seen.logit_KN[OURS])
    cosine_N, gain_N = seen.similarity_KN.mean(axis=0), gain_KN.mean(axis=0)
    known = np.flatnonzero(np.isfinite(cosine_N))
    order = known[np.argsort(cosine_N[known], kind="stable")]
    rng = np.random.default_rng(seed)
    bins = []
    for rows in np.array_split(order, min(num_bins, len(order))):
        drawn_S = gain_N[rows[rng.integers(len(rows), size=(num_samples, len(rows)))]].mean(axis=1)
        bins.append(
            SimilarityBin(len(rows), float(cosine_N[rows].mean()), _interval(gain_N[rows].mean(), drawn_S))
        )
    return bins


def _entropy(label_N: FloatArray, logit: FloatArray) -> FloatArray:
    """Binary cross-entropy of each row; labels may be shares."""
    entropy: FloatArray = np.logaddexp(0.0, logit) - label_N * logit
    return entropy


def _interval(mean: float, drawn_S: FloatArray) -> Interval:
    if np.isnan(drawn_S).all():  # no draw had both labels, or a gap to recover
        return Interval(float(mean), float(mean), float(mean))
    low, high = np.nanquantile(drawn_S, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(mean), float(low), float(high))


def _mean(value: Interval | float) -> float:
    return value.mean if isinstance(value, Interval) else value


def _flat(group: str, methods: Mapping[str, Mapping[str, Interval | float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for method, values in methods.items():
        for name, value in values.items():
            key = f"{group}/{method}/{name}"
            found[key] = _mean(value)
            if isinstance(value, Interval):
                found |= {f"{key}/ci_low": value.low, f"{key}/ci_high": value.high}
    return found
