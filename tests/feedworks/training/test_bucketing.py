"""Batches of like length: every row once, little padding, the same for a seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedworks.training.bucketing import POOL_BATCHES, length_batches, pad_right


@given(
    lengths=st.lists(st.integers(0, 50), max_size=200),
    batch_size=st.integers(1, 30),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_row_comes_exactly_once_in_batches_that_are_not_too_large(lengths, batch_size, seed):
    batches = length_batches(lengths, batch_size, None if seed is None else np.random.default_rng(seed))
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_without_a_stream_the_order_is_fixed_and_the_longest_come_last():
    batches = length_batches([3, 1, 2, 1], 2)
    assert [batch.tolist() for batch in batches] == [[1, 3], [2, 0]]


def test_a_seed_gives_one_order_and_another_seed_another():
    lengths = np.random.default_rng(0).integers(1, 50, 300)

    def order(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in length_batches(lengths, 8, np.random.default_rng(seed))]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_there_is_almost_no_padding_and_batches_come_in_no_order_of_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 101, 16 * POOL_BATCHES)
    batches = length_batches(lengths, 16, rng)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest != sorted(longest)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_pad_right_by_hand(dtype):
    rows = [np.array([1, 2, 3], dtype), [], [4]]
    table = pad_right(rows)
    assert table.dtype == np.int64
    assert table.tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    assert pad_right(rows, fill=0)[1].tolist() == [0, 0, 0]
    assert pad_right([[], []]).tolist() == [[-1], [-1]]
    assert pad_right([]).shape == (0, 1)
