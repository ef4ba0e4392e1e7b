"""The rankers of this house are cut where their first products meet both sides, and score the same."""

from __future__ import annotations

import pytest

from ..nn.rankers.samples import FEATURES, NAMES, inputs, ranker
from .test_convert import twin_of, widths

USER, ITEM = FEATURES.user_width, FEATURES.item_width
HIDDEN, EMBEDDING = 8, FEATURES.width

# Columns of (user, item) at each product, in the order of the graph. The second cross layer of DCNv2 reads
# x0 * (W x0 + b) + x0, in which both are everywhere.
WIDTHS = {
    "mlp": [(USER, ITEM)],
    "mmoe": [(USER, ITEM)] * 5,  # three experts, two gates
    "mmoe of one task": [(USER, ITEM)] * 3,
    "din": [(EMBEDDING, 2 * EMBEDDING), (USER, ITEM + EMBEDDING)],  # k (W2 - W3); q (W1 + W3) and (q * k) W4
    "din over fields": [(EMBEDDING, 2 * EMBEDDING), (USER, ITEM + EMBEDDING)],
    "dcnv2": [(USER, ITEM), (USER, ITEM)],
    "ppnet": [(EMBEDDING + USER, EMBEDDING + ITEM), (USER, ITEM), (EMBEDDING + USER, EMBEDDING + ITEM)],
    "pepnet": [(EMBEDDING + USER, ITEM), (2 * EMBEDDING, EMBEDDING + USER + ITEM)],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_of_a_ranker_is_equal_and_cut(name):
    given = inputs(name, rows=7)
    sides = ["item" if key == "item" else "user" for key in given]
    twin = twin_of(ranker(name), list(given.values()), tuple(sides))
    assert widths(twin)[: len(WIDTHS[name])] == WIDTHS[name]
