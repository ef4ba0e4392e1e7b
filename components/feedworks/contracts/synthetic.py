"""Seeded rows with planted structure, for the demo, the tests and the cluster.

What is planted, so that a test or a reader can ask whether a model found it:

* Items fall into categories. An item's vector and its words come from its category, so content tells
  categories apart. Inside a category most items form a ring, the *chain*: whoever takes one takes the next
  one soon after. A next-item model learns this from the last item alone.
* The other items of a category come in *styles*: nearly equal vectors, cosine about 0.96 within a style and
  0.6 between styles. Every user has one hidden style per category. A visit to a category is a walk of one to
  four chain items that ends with an item of the user's style there, another one each time while there are
  any.
* A user returns to a category only after visiting all the other interests, about 20 events later. A model
  that sees a shorter window cannot know the style and must spread its guess over all of them; a ranker that
  searches the whole history for items close to the candidate finds the style of the earlier visit.
  At the default size a table of next-item counts has Recall@5 0.51; its first 20 candidates, put in order by
  closeness to the history, have 0.68.
* Users belong to segments that prefer different categories; within a category the first doors into the chain
  are the popular ones. One event in twenty is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS, USERS
from feedworks.errors import ConfigError

ITEMS_PER_CATEGORY = 50
NUM_STYLES = 6
ITEMS_PER_STYLE = 3
NUM_DOORS = 4
NUM_INTERESTS = 6
NUM_SEGMENTS = 4
MAX_WALK = 4
P_NOISE = 0.05
MIN_EVENTS = 5
START_S = 1_704_067_200  # 2024-01-01 00:00 UTC
MEAN_GAP_S = 20_000

IntArray = npt.NDArray[np.int64]


class SyntheticPaths(NamedTuple):
    """The files of a generated data folder."""

    folder: Path
    interactions: Path
    items: Path
    users: Path


@dataclass(frozen=True, kw_only=True)
class Category:
    """The item ids of one category: its ring, and its styles, one row of members each."""

    chain: IntArray
    styles: IntArray


def write_synthetic(
    out_dir: Path,
    *,
    num_users: int = 2000,
    num_items: int = 500,
    mean_events: int = 40,
    vector_width: int = 32,
    seed: int = 0,
) -> SyntheticPaths:
    """Writes a data folder of invented users, items and events; the same arguments give the same bytes.

    Args:
        out_dir: Folder to write into; made if it does not exist.
        num_users: Number of users; ids run from 1, like the item ids.
        num_items: Number of items, at least 8; there is one category per 50 of them.
        mean_events: Mean length of a history; lengths are uniform in +-50 % of it, never below 5.
        vector_width: Width of the item vectors.
        seed: Any non-negative integer.

    Raises:
        ConfigError: An argument is out of its range.
    """
    for name, value, least in (
        ("num_users", num_users, 1),
        ("num_items", num_items, 8),
        ("mean_events", mean_events, MIN_EVENTS),
        ("vector_width", vector_width, 2),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"synthetic data: {name} is {value}, it must be at least {least}")
    # One stream per table: more users leave the items as they are.
    item_rng, user_rng, event_rng = (np.random.default_rng([seed, part]) for part in range(3))
    categories = _categories(num_items, item_rng)
    segment_of_user = user_rng.integers(NUM_SEGMENTS, size=num_users)
    return SyntheticPaths(
        out_dir,
        write_table(INTERACTIONS, _events(categories, segment_of_user, mean_events, event_rng), out_dir),
        write_table(ITEMS, _items(categories, num_items, vector_width, item_rng), out_dir),
        write_table(USERS, _users(segment_of_user), out_dir),
    )


def _categories(num_items: int, rng: np.random.Generator) -> list[Category]:
    # A permutation, so that an id says nothing about its category.
    ids = rng.permutation(num_items) + 1
    categories = []
    for members in np.array_split(ids, max(1, num_items // ITEMS_PER_CATEGORY)):
        per_style = min(ITEMS_PER_STYLE, len(members) // 8)
        styled = members[: per_style * (NUM_STYLES if per_style > 1 else 2)].reshape(-1, per_style)
        categories.append(Category(chain=members[styled.size :], styles=styled))
    return categories


def _items(categories: list[Category], num_items: int, width: int, rng: np.random.Generator) -> pa.Table:
    vectors_ND = np.empty((num_items, width), np.float32)
    texts = [""] * num_items
    for c, category in enumerate(categories):
        centre_D = _directions(rng, 1, width)[0]
        own_ND = _directions(rng, len(category.chain), width)
        vectors_ND[category.chain - 1] = centre_D + 0.8 * own_ND
        for item in category.chain:
            texts[item - 1] = f"{_word(c, 'n')} {_word(item, 'r')}"
        for s, members in enumerate(category.styles):
            style_D = _directions(rng, 1, width)[0]
            vectors_ND[members - 1] = centre_D + 0.8 * style_D + 0.25 * _directions(rng, len(members), width)
            for item in members:
                texts[item - 1] = f"{_word(c, 'n')} {_word(c * NUM_STYLES + s, 's')} {_word(item, 'r')}"
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    ids = np.arange(1, num_items + 1)
    return pa.table(
        {
            "item_id": ids,
            "vector": pa.FixedSizeListArray.from_arrays(vectors_ND.ravel(), width),
            "text": texts,
            "external_id": [f"synthetic-{i}" for i in ids],
        }
    )


def _users(segment_of_user: IntArray) -> pa.Table:
    ids = np.arange(1, len(segment_of_user) + 1)
    return pa.table({"user_id": ids, "segment": [f"segment_{s}" for s in segment_of_user]})


def _events(
    categories: list[Category], segment_of_user: IntArray, mean_events: int, rng: np.random.Generator
) -> pa.Table:
    half = mean_events // 2
    lengths = np.maximum(
        rng.integers(mean_events - half, mean_events + half + 1, len(segment_of_user)), MIN_EVENTS
    )
    items = [_history(categories, int(s), int(n), rng) for s, n in zip(segment_of_user, lengths, strict=True)]
    starts_s = START_S + rng.integers(0, 90 * 86_400, len(lengths))
    gaps_s = 1 + rng.exponential(MEAN_GAP_S, int(lengths.sum())).astype(np.int64)
    # Seconds since the user's first event: the running sum less what stood there when the user began.
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    elapsed_s = np.cumsum(gaps_s)
    times_s = np.repeat(starts_s, lengths) + elapsed_s - elapsed_s[first]
    return pa.table(
        {
            "user_id": np.repeat(np.arange(1, len(lengths) + 1), lengths),
            "item_id": np.concatenate(items),
            "event_time": pa.array(times_s * 1_000_000, pa.int64()).cast(EVENT_TIME),
        }
    )


def _history(categories: list[Category], segment: int, num_events: int, rng: np.random.Generator) -> IntArray:
    """One user's items, oldest first: visits to the interests in turn, in the same order every round."""
    weights = 1.0 / (1 + (np.arange(len(categories)) + segment * 3) % len(categories))
    count = min(NUM_INTERESTS, len(categories))
    interests = rng.choice(len(categories), count, replace=False, p=weights / weights.sum())
    taste = rng.integers(0, 1 << 30, size=len(categories))  # hidden: the user's style in each category
    items: list[int] = []
    visit = 0
    while len(items) < num_events:
        category, style = categories[interests[visit % count]], taste[interests[visit % count]]
        items += _visit(category, int(style), visit // count, rng)
        visit += 1
    history = np.array(items[:num_events], np.int64)
    noisy = np.flatnonzero(rng.random(num_events) < P_NOISE)
    for place in noisy:
        history[place] = rng.choice(categories[rng.choice(interests)].chain)
    return history


def _visit(category: Category, taste: int, round_: int, rng: np.random.Generator) -> list[int]:
    """A walk along the ring from one of its doors, then one item of the user's style."""
    ring = category.chain
    door = min(int(rng.geometric(0.5)), NUM_DOORS) - 1
    start = door * len(ring) // NUM_DOORS
    walk = [int(ring[(start + step) % len(ring)]) for step in range(rng.integers(1, MAX_WALK + 1))]
    members = category.styles[taste % len(category.styles)]
    offset = taste // len(category.styles)
    return [*walk, int(members[(offset + round_) % len(members)])]


def _directions(rng: np.random.Generator, count: int, width: int) -> npt.NDArray[np.float64]:
    raw = rng.standard_normal((count, width))
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def _word(number: int, ending: str) -> str:
    """A pronounceable word for each number, the same in every run."""
    word = ""
    number = int(number)
    while True:
        number, rest = divmod(number, 45)
        word += "bdfgklmnp"[rest % 9] + "aeiou"[rest // 9]
        if number == 0:
            return word + ending
