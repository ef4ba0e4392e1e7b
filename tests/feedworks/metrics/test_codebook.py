"""Codebook metrics against hand-worked numbers and brute force."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedworks.metrics import codebook

tables = st.integers(1, 4).flatmap(
    lambda levels: st.lists(st.tuples(*[st.integers(0, 4)] * levels), min_size=1, max_size=30)
)


def test_by_hand():
    codes_NL = [[0, 1], [0, 1], [0, 2], [3, 2]]
    assert codebook.bucket_sizes(codes_NL).tolist() == [2, 1, 1]
    assert codebook.collision_rate(codes_NL) == 0.5
    assert codebook.code_counts(codes_NL, 4).tolist() == [[3, 0, 0, 1], [0, 2, 2, 0]]
    assert codebook.codebook_usage(codes_NL, 4).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(codebook.codebook_entropy(codes_NL, 4), [0.8112781245, 1.0])
    np.testing.assert_allclose(codebook.codebook_perplexity(codes_NL, 4), [2**0.8112781245, 2.0])


@given(tables)
def test_equal_brute_force(rows):
    sizes = Counter(rows)
    assert sorted(codebook.bucket_sizes(rows).tolist()) == sorted(sizes.values())
    assert codebook.bucket_sizes(rows).tolist() == [sizes[row] for row in sorted(sizes)]
    assert codebook.collision_rate(rows) == pytest.approx(sum(sizes[r] > 1 for r in rows) / len(rows))
    for level in range(len(rows[0])):
        counts = Counter(row[level] for row in rows)
        assert codebook.codebook_usage(rows, 5)[level] == pytest.approx(len(counts) / 5)
        bits = -sum(n / len(rows) * math.log2(n / len(rows)) for n in counts.values())
        assert codebook.codebook_entropy(rows, 5)[level] == pytest.approx(bits)


def test_bounds():
    even_NL = np.stack([np.arange(64) % 8, np.arange(64) // 8], axis=1)
    assert codebook.collision_rate(even_NL) == 0.0
    np.testing.assert_allclose(codebook.codebook_perplexity(even_NL, 8), [8.0, 8.0])
    collapsed_NL = np.zeros((9, 3), int)
    assert codebook.collision_rate(collapsed_NL) == 1.0
    np.testing.assert_array_equal(codebook.codebook_entropy(collapsed_NL, 8), [0.0, 0.0, 0.0])


def test_no_items():
    empty_NL = np.zeros((0, 3), int)
    assert codebook.collision_rate(empty_NL) == 0.0
    assert codebook.codebook_usage(empty_NL, 4).tolist() == [0, 0, 0]
    assert codebook.codebook_entropy(empty_NL, 4).tolist() == [0, 0, 0]


def test_wide_codes_do_not_overflow():
    wide = 2**40
    codes_NL = [[wide, wide, wide], [wide, wide, wide - 1], [wide, wide, wide]]
    assert codebook.bucket_sizes(codes_NL).tolist() == [1, 2]


@pytest.mark.parametrize("codes", [[1, 2], [[0.5, 1.0]], [[0, 4]], [[0, -1]]])
def test_wrong_codes_are_refused(codes):
    with pytest.raises(ValueError, match="expected"):
        codebook.code_counts(codes, 4)
