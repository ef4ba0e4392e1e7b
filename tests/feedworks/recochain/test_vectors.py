"""Item vectors: each source by its definition, and combined by weight."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from feedworks.errors import ConfigError, DataError
from feedworks.recochain.config import VectorConfig
from feedworks.recochain.data import Sequences
from feedworks.recochain.vectors import (
    build_vectors,
    collaborative_vectors,
    given_vectors,
    text_vectors,
    unit_rows,
)

from .test_data import sequences


def vectors(rows) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows, pa.list_(pa.float32()))])


def build(config: VectorConfig, made: Sequences, given=None, text=None) -> np.ndarray:
    num_items = 6
    return build_vectors(
        config,
        given=vectors(given or [None] * num_items),
        text=text or [None] * num_items,
        sequences=made,
        seed=0,
    )[0]


def test_vectors_of_any_finite_size_have_length_1():
    tiny, huge = np.full((1, 4), 1e-30, np.float32), np.full((1, 4), 3e38, np.float32)
    np.testing.assert_allclose(
        unit_rows(np.concatenate((tiny, huge, 0 * huge))), [[0.5] * 4, [0.5] * 4, [0] * 4]
    )


def two_groups(seed: int = 0) -> Sequences:
    """Users take items of one group only: 0 to 2 or 3 to 5."""
    rng = np.random.default_rng(seed)
    rows = [[*(rng.permutation(3) + 3 * (user % 2)).tolist(), 0, 3] for user in range(40)]
    return sequences(*rows)


CONFIG = VectorConfig(sources=("collaborative",), collaborative_width=3, shift=1.0)


def test_items_seen_together_get_like_vectors():
    found = build(CONFIG, two_groups())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    cosine = found @ found.T
    within, across = cosine[:3, :3], cosine[:3, 3:]
    assert within.min() > 0.5
    assert across.max() < 0.2


def test_property_7_held_out_items_do_not_count():
    made = two_groups()
    altered = Sequences(made.user_id, made.start, made.item.copy())
    altered.item[made.start[1:] - 1], altered.item[made.start[1:] - 2] = 5, 2
    one, other = (collaborative_vectors(s, 6, CONFIG, seed=0) for s in (made, altered))
    assert np.array_equal(one, other)


def test_shifted_information_by_hand():
    # One user, training items 0 1 0 2 at window 1: pairs 0-1 twice, 0-2 once.
    found = collaborative_vectors(
        sequences([0, 1, 0, 2, 9, 9]), 3, VectorConfig(window=1, shift=1.0, collaborative_width=2), seed=0
    )
    together = np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]], dtype=float)
    seen = together.sum(axis=0)
    context = seen**0.75 / (seen**0.75).sum()
    with np.errstate(divide="ignore"):
        information = np.log(together / np.outer(seen, context))
    table = np.where(information > 0, information, 0)
    left, size, _ = np.linalg.svd(table)
    expected = left[:, :2] * np.sqrt(size[:2])
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_users_with_one_training_item_give_zero_vectors():
    found = build(CONFIG, sequences([0, 1, 2], [3, 4, 5]))
    assert found.shape == (6, 3)
    assert not found.any()


def test_texts_with_words_in_common_get_like_vectors():
    text = ["red shoe", "red shoe big", "green hat", "green hat big", "red", None]
    found = build(VectorConfig(sources=("text",), text_width=3), sequences([0, 1, 2]), text=text)
    cosine = found @ found.T
    assert cosine[0, 1] > 0.5 > cosine[0, 2]
    assert not found[5].any()


@pytest.mark.parametrize("text", [[None] * 4, ["a", "b", "c", "d"]])
def test_texts_without_a_common_word_are_refused(text):
    with pytest.raises(DataError, match="no word stands in two items"):
        text_vectors(text, 3, seed=0)


def test_one_common_word_is_enough():
    found = text_vectors(["a x", "a y", "z", None], 3, seed=0)
    assert found.shape[0] == 4
    assert found[0].any()
    assert not found[3].any()


def test_given_vectors_are_stacked_and_gaps_are_zero():
    assert given_vectors(vectors([None, [1.0, 2.0], None])).tolist() == [[0, 0], [1, 2], [0, 0]]
    with pytest.raises(DataError, match=r"no item has a vector; set vectors\.sources"):
        given_vectors(vectors([None, None]))
    with pytest.raises(DataError, match=r"vectors of \[1, 2\] numbers; use one encoder"):
        given_vectors(vectors([[1.0, 2.0], [3.0]]))


def test_sources_are_joined_by_weight_and_the_result_has_length_one():
    given = [[3.0, 4.0], [1.0, 0.0], None, None, None, None]
    config = VectorConfig(
        sources=("given", "collaborative"), weights=(2.0, 1.0), collaborative_width=3, shift=1.0
    )
    found = build(config, two_groups(), given=given)
    np.testing.assert_allclose(found[0, :2], np.array([0.6, 0.8]) * 2 / np.sqrt(5), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_unknown_sources_and_missing_weights_are_refused():
    with pytest.raises(ConfigError, match="given, text, collaborative"):
        VectorConfig(sources=("image",))
    with pytest.raises(ConfigError, match="expected 2 numbers"):
        VectorConfig(sources=("given", "text"))
