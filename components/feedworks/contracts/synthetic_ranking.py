"""Seeded candidates with labels and planted structure, for the demo, the tests and the cluster.

A label is drawn with the probability `sigmoid(logit)`, and the logit is a sum of four planted parts, so that
a test or a reader can ask which of them a model found:

* popularity: a bias of each item, the one part that a model without products of two fields can learn in full;
* taste: a hidden number of the user times one of the item;
* context: a hidden number for each pair of `hour` and `category`: what is wanted in the morning is not in the
  evening;
* history: a candidate that is among the user's last items is wanted more. A model must compare the candidate
  with each entry of the history to see it.

Three candidates in ten are drawn from the user's last items. `segment` is the sign of the user's hidden
number, `price` and `device` say nothing at all. At the default size the logit itself has AUC 0.865
on test, without the history part 0.832, and popularity alone 0.605.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.ranking import LABEL, SPLITS, Field, RankingFields, write_fields
from feedworks.errors import ConfigError

NUM_CATEGORIES = 12
NUM_HOURS = 24
NUM_DEVICES = 3
NUM_PRICES = 5
MIN_ITEMS = 20
HISTORY = 8
P_FROM_HISTORY = 0.3
# How much each part moves the logit, in standard deviations or, for the history, if it applies.
POPULARITY, TASTE, CONTEXT, HISTORY_GAIN = 0.6, 1.7, 1.0, 2.0
BIAS = -1.2

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Parts(NamedTuple):
    """The planted parts of the logit of each row, `(N,)` each."""

    popularity: FloatArray
    taste: FloatArray
    context: FloatArray
    history: FloatArray

    @property
    def logit(self) -> FloatArray:
        """Their sum."""
        return np.asarray(BIAS + sum(self))


class _World(NamedTuple):
    taste_U: FloatArray
    suits_I: FloatArray
    category_I: IntArray
    price_I: IntArray
    popularity_I: FloatArray
    wanted_HC: FloatArray
    history_UL: IntArray


def write_synthetic_ranking(
    out_dir: Path,
    *,
    num_users: int = 300,
    num_items: int = 200,
    num_rows: int = 30_000,
    seed: int = 0,
) -> Path:
    """Writes a ranking data folder of invented users, items and labels; equal arguments give equal bytes.

    Args:
        out_dir: Folder to write into; made if it does not exist.
        num_users: Ids of the field `user`.
        num_items: Ids of the field `item`, at least 20.
        num_rows: Rows of the training split, at least 100; the others have a fifth of it each.
        seed: Any non-negative integer.

    Raises:
        ConfigError: An argument is out of its range.
    """
    for name, value, least in (
        ("num_users", num_users, 1),
        ("num_items", num_items, MIN_ITEMS),
        ("num_rows", num_rows, 100),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"synthetic ranking data: {name} is {value}, it must be at least {least}")
    world = _world(num_users, num_items, np.random.default_rng([seed, 0]))
    fields = _fields(num_users, num_items)
    out_dir.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(fields.tables()):
        rows = num_rows if table.name == SPLITS[0] else num_rows // 5
        columns, _ = _split(world, rows, np.random.default_rng([seed, 1 + number]))
        write_table(table, pa.table(columns), out_dir)
    write_fields(fields, out_dir)
    return out_dir


def planted_parts(
    split: str, *, num_users: int = 300, num_items: int = 200, num_rows: int = 30_000, seed: int = 0
) -> Parts:
    """What was planted in the rows of a split of `write_synthetic_ranking` with the same arguments."""
    world = _world(num_users, num_items, np.random.default_rng([seed, 0]))
    rows = num_rows if split == SPLITS[0] else num_rows // 5
    return _split(world, rows, np.random.default_rng([seed, 1 + SPLITS.index(split)]))[1]


def _fields(num_users: int, num_items: int) -> RankingFields:
    places = [f"last_{place}" for place in range(1, HISTORY + 1)]
    return RankingFields(
        fields=(
            Field(name="user", side="user", size=num_users),
            Field(name="segment", side="user", size=2),
            Field(name="hour", side="context", size=NUM_HOURS),
            Field(name="device", side="context", size=NUM_DEVICES),
            Field(name="item", side="item", size=num_items),
            Field(name="category", side="item", size=NUM_CATEGORIES),
            Field(name="price", side="item", size=NUM_PRICES),
            *(Field(name=name, side="user", size=num_items + 1, history_of="item") for name in places),
        )
    )


def _world(num_users: int, num_items: int, rng: np.random.Generator) -> _World:
    length_U = rng.integers(0, HISTORY + 1, num_users)
    history_UL = rng.integers(1, num_items + 1, (num_users, HISTORY))
    history_UL[np.arange(HISTORY) >= length_U[:, None]] = 0
    return _World(
        taste_U=rng.standard_normal(num_users),
        suits_I=rng.standard_normal(num_items),
        category_I=rng.integers(NUM_CATEGORIES, size=num_items),
        price_I=rng.integers(NUM_PRICES, size=num_items),
        popularity_I=rng.standard_normal(num_items),
        wanted_HC=rng.standard_normal((NUM_HOURS, NUM_CATEGORIES)),
        history_UL=history_UL,
    )


def _split(world: _World, num_rows: int, rng: np.random.Generator) -> tuple[dict[str, IntArray], Parts]:
    user_N = rng.integers(len(world.taste_U), size=num_rows)
    history_NL = world.history_UL[user_N]
    one_of_them_N = history_NL[np.arange(num_rows), rng.integers(HISTORY, size=num_rows)] - 1
    again_N = (rng.random(num_rows) < P_FROM_HISTORY) & (one_of_them_N >= 0)
    item_N = np.where(again_N, one_of_them_N, rng.integers(len(world.suits_I), size=num_rows))
    hour_N, category_N = rng.integers(NUM_HOURS, size=num_rows), world.category_I[item_N]
    parts = Parts(
        popularity=POPULARITY * world.popularity_I[item_N],
        taste=TASTE * world.taste_U[user_N] * world.suits_I[item_N],
        context=CONTEXT * world.wanted_HC[hour_N, category_N],
        history=HISTORY_GAIN * (history_NL == item_N[:, None] + 1).any(axis=1),
    )
    columns = {
        LABEL: (rng.random(num_rows) < 1 / (1 + np.exp(-parts.logit))).astype(np.int64),
        "user": user_N,
        "segment": (world.taste_U[user_N] > 0).astype(np.int64),
        "hour": hour_N,
        "device": rng.integers(NUM_DEVICES, size=num_rows),
        "item": item_N,
        "category": category_N,
        "price": world.price_I[item_N],
        **{f"last_{place + 1}": history_NL[:, place] for place in range(HISTORY)},
    }
    return columns, parts
