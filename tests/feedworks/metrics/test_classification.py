import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from feedworks.metrics.classification import (
    auc,
    auc_interval,
    calibration,
    calibration_error,
    grouped_auc,
    log_loss,
    weighted_aucs,
)


def rows(seed, num_rows=200, distinct=20):
    rng = np.random.default_rng(seed)
    score = rng.integers(distinct, size=num_rows) / 3 - 2
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-score))).astype(int)
    label[:2] = 0, 1
    return label, score


@pytest.mark.parametrize(("seed", "distinct"), [(0, 20), (1, 2), (2, 1), (3, 10**9)])
def test_auc_is_the_share_of_pairs_in_the_right_order(seed, distinct):
    label, score = rows(seed, distinct=distinct)
    pairs = [(p > n) + (p == n) / 2 for p in score[label == 1] for n in score[label == 0]]
    assert auc(label, score) == np.mean(pairs)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-14)


def test_auc_of_hand_worked_rows():
    assert auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1
    assert auc([1, 1, 0, 0], [1, 2, 3, 4]) == 0
    assert auc([0, 1, 0, 1], [1, 1, 1, 1]) == 0.5
    assert auc([0, 1, 0, 1], [1, 2, 3, 4]) == 0.75
    assert auc([0, 1], [1e300, np.nextafter(1e300, 2e300)]) == 1


def test_auc_sees_scores_of_float32_as_they_are():
    score = np.array([1, 1 + 2**-24], np.float32)  # the same number in float32
    assert auc([0, 1], score) == 0.5


def test_auc_does_not_overflow_on_many_rows():
    label = np.repeat([0, 1], 200_000)
    assert auc(label, label) == 1


def test_log_loss_is_that_of_scikit_learn_and_survives_large_logits():
    label, logit = rows(4)
    assert log_loss(label, logit) == pytest.approx(
        sklearn_log_loss(label, 1 / (1 + np.exp(-logit))), rel=1e-12
    )
    assert log_loss([1], [0]) == pytest.approx(math.log(2))
    assert log_loss([0, 1], [1000, -1000]) == 1000


def test_the_interval_holds_the_auc_and_has_the_width_of_theory():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 400)
    score = rng.standard_normal(800) + label
    mean, low, high = auc_interval(label, score, num_samples=400, seed=1)
    assert mean == auc(label, score)
    assert low < mean < high
    # Hanley and McNeil (1982), equation 1.
    q1, q2 = mean / (2 - mean), 2 * mean**2 / (1 + mean)
    variance = (mean * (1 - mean) + 399 * (q1 - mean**2) + 399 * (q2 - mean**2)) / 400**2
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.15)
    assert auc_interval(label, score, num_samples=400, seed=1) == (mean, low, high)
    assert auc_interval(label, label).low == 1


def test_grouped_auc_is_the_mean_of_the_groups_that_have_both_labels():
    label = [1, 0, 1, 0, 1, 1, 1]
    score = [2, 1, 3, 4, 5, 0, 9]
    group = [7, 7, 2, 2, 2, -3, -3]  # 7: AUC 1; 2: AUC 0.5; -3: positive alone
    value, num_groups = grouped_auc(label, score, group)
    assert (value, num_groups) == (pytest.approx((2 * 1 + 3 * 0.5) / 5), 2)
    whole, one = grouped_auc(*rows(5), np.zeros(200, int))
    assert (whole, one) == (auc(*rows(5)), 1)


@pytest.mark.parametrize(
    ("label", "score", "problem"),
    [
        ([0, 1], [1], r"got \(2,\) and \(1,\)"),
        ([], [], "N > 0"),
        ([0, 2], [1, 2], "neither 0 nor 1"),
        ([0, math.nan], [1, 2], "neither 0 nor 1"),
        ([0, 1], [1, math.nan], "1 scores are not finite"),
        ([0, 1], [1, math.inf], "not finite"),
        ([1, 1], [1, 2], "all 2 labels are 1; an AUC needs both"),
    ],
)
def test_what_has_no_auc_is_refused(label, score, problem):
    for metric in (auc, auc_interval):
        with pytest.raises(ValueError, match=problem):
            metric(label, score)


def test_groups_without_an_auc_are_refused():
    with pytest.raises(ValueError, match="no group has both labels"):
        grouped_auc([0, 1], [1, 2], [1, 2])
    with pytest.raises(ValueError, match="a group for each row"):
        grouped_auc([0, 1], [1, 2], [1])


@given(st.integers(2, 40), st.integers(0, 10**6))
def test_weighted_aucs_are_those_of_repeated_rows(num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.append([0, 1], rng.integers(2, size=num_rows - 2))
    score = rng.integers(-3, 4, size=num_rows) / 2
    weight = rng.integers(0, 4, size=(5, num_rows))
    weight[:, :2] += 1
    weight[4, label == 1] = 0
    found = weighted_aucs(label, score, weight)
    for one, times in zip(found[:4], weight, strict=False):
        assert one == pytest.approx(auc(np.repeat(label, times), np.repeat(score, times)), abs=1e-12)
    assert np.isnan(found[4])


def test_weights_must_fit_the_rows() -> None:
    with pytest.raises(ValueError, match=r"expected weights \(S, 2\), got \(1, 3\)"):
        weighted_aucs([0, 1], [0.1, 0.2], [[1, 1, 1]])


def test_calibration_by_hand() -> None:
    label, p = [0, 1, 0.5, 1, 0], [0.9, 0.2, 0.1, 0.8, 0.3]
    bins = calibration(label, p, num_bins=2)
    assert bins == [
        (3, pytest.approx(0.2), pytest.approx(0.5)),
        (2, pytest.approx(0.85), pytest.approx(0.5)),
    ]
    assert calibration_error(bins) == pytest.approx((3 * 0.3 + 2 * 0.35) / 5)


@pytest.mark.parametrize(
    ("label", "p"), [([0, 2], [0.1, 0.2]), ([0, 1], [0.1, 1.2]), ([0], [0.1, 0.2]), ([], [])]
)
def test_calibration_refuses_what_is_no_share(label: list[float], p: list[float]) -> None:
    with pytest.raises(ValueError, match="labels and predictions"):
        calibration(label, p)
