"""Diversity metrics against hand-worked numbers and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedworks.metrics import diversity

lists = st.integers(1, 5).flatmap(
    lambda k: st.lists(st.lists(st.integers(-1, 9), min_size=k, max_size=k), min_size=1, max_size=10)
)


def test_by_hand():
    ranked_NK = [[0, 1], [0, -1], [0, 1]]
    assert diversity.exposure(ranked_NK, 4).tolist() == [3, 2, 0, 0]
    assert diversity.coverage(ranked_NK, 4) == 0.5
    # sorted exposure 0 0 2 3: (1*2 + 3*3) / (4 * 5)
    assert diversity.gini(ranked_NK, 4) == pytest.approx(11 / 20)
    # p = 1/2, 1/4, 1/8, 1/8: (3 * 1 bit + 2 * 2 bits) / 5
    assert diversity.novelty(ranked_NK, [4, 2, 1, 1]) == pytest.approx(7 / 5)


@given(lists)
def test_equal_brute_force(rows):
    shown = [item for row in rows for item in row if item >= 0]
    counts = [shown.count(item) for item in range(10)]
    assert diversity.coverage(rows, 10) == pytest.approx(len(set(shown)) / 10)
    if shown:
        differences = sum(abs(a - b) for a in counts for b in counts)
        assert diversity.gini(rows, 10) == pytest.approx(differences / (2 * 10 * len(shown)))
        train_count_I = np.arange(10)
        bits = [-math.log2(max(1, item) / 46) for item in shown]  # 0..9 with 0 counted as 1
        assert diversity.novelty(rows, train_count_I) == pytest.approx(sum(bits) / len(bits))


def test_bounds_of_gini():
    assert diversity.gini([[0, 1, 2]], 3) == pytest.approx(0.0)
    assert diversity.gini([[0], [0]], 1000) == pytest.approx(0.999)


def test_nothing_shown():
    pads_NK = [[-1, -1]]
    assert diversity.coverage(pads_NK, 3) == 0
    assert diversity.gini(pads_NK, 3) == 0
    assert diversity.novelty(pads_NK, [1, 1, 1]) == 0
    assert diversity.coverage(np.zeros((0, 5), int), 0) == 0


@pytest.mark.parametrize("item", [-2, 3])
def test_unknown_items_are_refused(item):
    with pytest.raises(ValueError, match="expected"):
        diversity.coverage([[item]], 3)
