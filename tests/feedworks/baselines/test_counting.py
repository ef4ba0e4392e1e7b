"""Counting baselines against their definitions written as loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.baselines.counting import ItemKNN, popularity, repeat_recent, without_seen


def arrays(*histories: list[int]) -> list[np.ndarray]:
    return [np.array(history, dtype=np.int64) for history in histories]


def test_popularity_ranks_by_count_and_then_by_number():
    assert popularity(np.array([2, 5, 5, 0]), num_users=2, k=3).tolist() == [[1, 2, 0]] * 2


def test_repeat_recent_gives_distinct_items_the_latest_first():
    ranked = repeat_recent(arrays([1, 2, 1, 3, 2], [4], [5, 6, 7, 8]), k=3)
    assert ranked.tolist() == [[2, 3, 1], [4, -1, -1], [8, 7, 6]]


def test_without_seen_closes_the_gaps():
    ranked = np.array([[4, 1, 3, 2], [1, 2, -1, -1]])
    assert without_seen(ranked, arrays([1, 4, 4], [7])).tolist() == [[3, 2, -1, -1], [1, 2, -1, -1]]


def knn_scores(train: list[np.ndarray], history: np.ndarray, num_items: int, neighbours: int) -> np.ndarray:
    users = [set(map(int, h)) for h in train]
    count = [sum(i in user for user in users) for i in range(num_items)]
    score = np.zeros(num_items)
    for i in history:
        row = np.zeros(num_items)
        for j in range(num_items):
            both = sum(i in user and j in user for user in users)
            if i != j and both:
                row[j] = both / np.sqrt(count[i] * count[j])
        for j in np.argsort(-row, kind="stable")[:neighbours]:
            score[j] += row[j]
    return score


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), num_items=st.integers(2, 12), neighbours=st.sampled_from([1, 3, 100]))
def test_item_knn_equals_brute_force(seed, num_items, neighbours):
    rng = np.random.default_rng(seed)
    train = [rng.integers(0, num_items, rng.integers(1, 6)) for _ in range(6)]
    asked = [rng.integers(0, num_items, rng.integers(1, 6)) for _ in range(3)]
    ranked = ItemKNN(train, num_items, neighbours).rank(asked, num_items, batch_size=2)
    for row, history in zip(ranked, asked, strict=True):
        score = knn_scores(train, history, num_items, num_items)
        kept = row[row >= 0]
        assert len(set(kept.tolist())) == len(kept)
        if neighbours == 100:  # fewer neighbours leave ties to choice
            np.testing.assert_allclose(score[kept], np.sort(score[score > 0])[::-1])
        else:
            assert (score[kept] > 0).all()
            assert len(kept) <= neighbours * len(history)


def test_item_knn_keeps_the_nearest_neighbours():
    # Item 0 stands with item 1 twice and with item 2 once.
    model = ItemKNN(arrays([0, 1], [0, 1], [0, 2]), num_items=4, num_neighbours=1)
    assert model.rank(arrays([0]), k=3).tolist() == [[1, -1, -1]]


def test_item_knn_knows_nothing_of_an_item_without_events():
    model = ItemKNN(arrays([0, 1], [0, 1]), num_items=5)
    assert model.rank(arrays([4], [0, 4]), k=2).tolist() == [[-1, -1], [1, -1]]


@pytest.mark.parametrize("k", [1, 7])
def test_item_knn_pads_to_k(k):
    assert ItemKNN(arrays([0, 1]), num_items=2).rank(arrays([0, 1, 1]), k).shape == (1, k)
