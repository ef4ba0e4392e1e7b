"""Ranking metrics against hand-worked numbers and brute force; bootstrap intervals against simulation."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedworks.metrics import ranking

lists = st.integers(1, 6).flatmap(
    lambda k: st.lists(
        st.tuples(st.lists(st.integers(-1, 7), min_size=k, max_size=k), st.integers(0, 7)),
        min_size=1,
        max_size=8,
    )
)


def test_ranks_by_hand():
    ranked_NK = [[3, 1, 2], [3, 1, 2], [5, -1, -1], [4, 4, 4]]
    assert ranking.ranks_of_targets(ranked_NK, [3, 2, 7, 4]).tolist() == [1, 3, 0, 1]


@given(lists)
def test_ranks_equal_a_plain_search(rows):
    rank_N = ranking.ranks_of_targets([r for r, _ in rows], [t for _, t in rows])
    assert rank_N.tolist() == [r.index(t) + 1 if t in r else 0 for r, t in rows]


def test_ranks_in_chunks_equal_ranks_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    ranked_NK, target_N = rng.integers(-1, 50, (101, 17)), rng.integers(0, 50, 101)
    whole = ranking.ranks_of_targets(ranked_NK, target_N)
    monkeypatch.setattr(ranking, "_CHUNK_CELLS", 17 * 10)
    np.testing.assert_array_equal(ranking.ranks_of_targets(ranked_NK, target_N), whole)


def test_empty_lists_find_nothing():
    assert ranking.ranks_of_targets(np.zeros((3, 0), int), [1, 2, 3]).tolist() == [0, 0, 0]
    assert ranking.ranks_of_targets(np.zeros((0, 4), int), np.zeros(0, int)).tolist() == []


@pytest.mark.parametrize(("ranked", "target"), [([1, 2], [1]), ([[1, 2]], [1, 2]), ([[1, -1]], [-1])])
def test_ranks_refuse_what_cannot_be_meant(ranked, target):
    with pytest.raises(ValueError, match=r"expected|negative"):
        ranking.ranks_of_targets(ranked, target)


def test_metrics_by_hand():
    rank_N = [1, 2, 3, 5, 6, 0]
    assert ranking.recall(rank_N, 5).tolist() == [1, 1, 1, 1, 0, 0]
    assert ranking.hit(rank_N, 5).tolist() == [1, 1, 1, 1, 0, 0]
    assert ranking.mrr(rank_N, 5).tolist() == [1, 1 / 2, 1 / 3, 1 / 5, 0, 0]
    np.testing.assert_allclose(ranking.ndcg(rank_N, 5), [1, 0.63092975, 0.5, 0.38685281, 0, 0], atol=1e-8)


@given(lists, st.integers(1, 8))
def test_metrics_equal_their_definitions(rows, k):
    rank_N = ranking.ranks_of_targets([r for r, _ in rows], [t for _, t in rows])
    for user, (ranked, target) in enumerate(rows):
        gains = [1.0 if item == target else 0.0 for item in ranked[:k]]
        first = next((i for i, gain in enumerate(gains) if gain), None)
        assert ranking.recall(rank_N, k)[user] == (target in ranked[:k])
        dcg = 0.0 if first is None else 1 / math.log2(first + 2)
        assert ranking.ndcg(rank_N, k)[user] == pytest.approx(dcg)
        assert ranking.mrr(rank_N, k)[user] == pytest.approx(0.0 if first is None else 1 / (first + 1))


def test_k_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        ranking.recall([1], 0)


def test_bootstrap_mean_of_a_constant_has_no_width():
    assert ranking.bootstrap_mean([0.25] * 40) == (0.25, 0.25, 0.25)


def test_bootstrap_is_seeded():
    values = np.random.default_rng(0).random(200)
    one, two, other = (ranking.bootstrap_mean(values, seed=s) for s in (7, 7, 8))
    assert one == two
    assert one != other
    assert one.low < one.mean < one.high


def test_bootstrap_needs_values():
    with pytest.raises(ValueError, match="no user"):
        ranking.bootstrap_mean([])


def _share_covered(draw, truth, confidence, num_trials=400):
    covered = 0
    for trial in range(num_trials):
        values_N = draw(np.random.default_rng(trial))
        interval = ranking.bootstrap_mean(values_N, num_samples=400, seed=trial, confidence=confidence)
        covered += interval.low <= truth <= interval.high
    return covered / num_trials


# 400 trials: three standard errors are 0.033 at 95 % and 0.06 at 80 %.
@pytest.mark.parametrize(("confidence", "slack"), [(0.95, 0.033), (0.80, 0.06)])
def test_interval_covers_the_true_mean_of_few_distinct_values(confidence, slack):
    share = _share_covered(lambda rng: rng.random(400) < 0.2, 0.2, confidence)
    assert abs(share - confidence) < slack


@pytest.mark.parametrize(("confidence", "slack"), [(0.95, 0.033), (0.80, 0.06)])
def test_interval_covers_the_true_mean_of_many_distinct_values(confidence, slack):
    share = _share_covered(lambda rng: rng.exponential(size=400), 1.0, confidence)
    assert abs(share - confidence) < slack


def test_both_ways_to_resample_follow_one_law():
    """The multinomial draw over distinct rows has the spread of drawing users one by one."""
    values_NM = np.stack([np.arange(320) % 4, np.arange(320) % 3], axis=1).astype(float)
    fast = ranking._resampled_means(values_NM, 4000, seed=1)
    index_SN = np.random.default_rng(2).integers(0, 320, size=(4000, 320))
    slow = values_NM[index_SN].mean(axis=1)
    np.testing.assert_allclose(fast.mean(axis=0), slow.mean(axis=0), rtol=0.005)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(slow.T), rtol=0.1, atol=1e-4)


def test_relative_gain_by_hand():
    gain = ranking.paired_relative_gain([1, 1, 0, 1], [1, 0, 0, 1])
    assert gain.mean == pytest.approx(0.5)
    assert gain.low <= gain.mean <= gain.high


def test_relative_gain_of_equal_lists_is_exactly_zero():
    assert ranking.paired_relative_gain([1, 0, 1], [1, 0, 1]) == (0, 0, 0)
    assert ranking.paired_relative_gain([0, 0], [0, 0]) == (0, 0, 0)


def test_relative_gain_over_nothing_stays_finite():
    gain = ranking.paired_relative_gain([1, 1, 0, 0], [0, 0, 0, 0])
    assert gain.mean == pytest.approx(2.0)  # two hits where one would be 1/N
    assert np.isfinite(gain).all()


def test_pairing_narrows_the_interval():
    """A method that only adds hits must be seen as better although the users differ a lot."""
    before = np.random.default_rng(0).random(2000) < 0.1
    after = before | (np.arange(2000) % 100 == 0)
    low = ranking.paired_relative_gain(after, before).low
    shuffled = np.random.default_rng(1).permutation(after)
    assert low > 0 > ranking.paired_relative_gain(shuffled, before).low


def test_relative_gain_covers_the_truth():
    covered = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        before = rng.random(600) < 0.3
        after = np.where(rng.random(600) < 0.5, before, rng.random(600) < 0.4)  # E = 0.35
        gain = ranking.paired_relative_gain(after, before, num_samples=400, seed=trial)
        covered += gain.low <= 0.35 / 0.30 - 1 <= gain.high
    assert 0.91 <= covered / 300 <= 0.985


def test_relative_gain_needs_pairs():
    with pytest.raises(ValueError, match="same users"):
        ranking.paired_relative_gain([1, 0], [1])


def test_a_full_evaluation_takes_under_a_second():
    rank_N = np.random.default_rng(0).integers(0, 40, 22_363)
    start = time.process_time()
    ranking.summarise(rank_N)
    ranking.paired_relative_gain(ranking.ndcg(rank_N, 10), ranking.ndcg(rank_N[::-1], 10))
    assert time.process_time() - start < 1.0


def test_summary_and_flat_keys():
    intervals = ranking.summarise([1, 0, 3, 7], cutoffs=(5,), num_samples=50)
    assert list(intervals) == ["recall@5", "ndcg@5", "mrr@5"]
    flat = ranking.flat("test/rerank", intervals)
    assert flat["test/rerank/recall@5"] == 0.5
    assert flat["test/rerank/ndcg@5"] == pytest.approx((1 + 0.5) / 4)
    assert flat["test/rerank/mrr@5"] == pytest.approx((1 + 1 / 3) / 4)
    assert flat["test/rerank/recall@5/ci_low"] <= 0.5 <= flat["test/rerank/recall@5/ci_high"]
    assert all(type(value) is float for value in flat.values())


def test_flat_metrics_are_read_back():
    interval = ranking.Interval(0.7, 0.6, 0.8)
    metrics = {
        **ranking.flat("test/student", {"auc": interval, "lt7/auc": interval}),
        "test/student/log_loss": 0.7,
        "test/base/lt7/gauc": 0.5,
        "test/num_rows": 9.0,
        "train/loss": 1.0,
    }
    assert ranking.read_back(metrics, "test") == {
        "student": {"auc": interval, "lt7/auc": interval, "log_loss": 0.7},
        "base": {"lt7/gauc": 0.5},
    }
