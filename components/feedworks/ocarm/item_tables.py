"""Event logs to the feature tables of items and authors: one row per day with events, known when it is over.

Shapes: E events of a block, I items, R rows of one id and day each, sorted by both.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from feedworks.contracts.features import AUTHOR_PROFILE, ITEM_PROFILE
from feedworks.contracts.files import read_table, write_table
from feedworks.contracts.retention import CATALOGUE
from feedworks.ocarm.event_log import DAY_US, Events, FloatArray, IntArray
from feedworks.ocarm.tables import times

WINDOW_DAYS = 7
MERGE_ROWS = 4_000_000  # 128 MB


class Daily(NamedTuple):
    """Events of each id on each of its days, and the sum of their engagement; days count from 1970 UTC."""

    id_R: IntArray
    day_R: IntArray
    count_R: IntArray
    engagement_R: FloatArray


class ItemTables:
    """Counts blocks of events by item and day; memory is that of the items' days, not of the log.

    Engagement is float32, whose sums in float64 are exact up to some million terms: the order of blocks and
    sums changes no bit.
    """

    def __init__(self, data_dir: Path) -> None:
        rows = read_table(CATALOGUE, data_dir, ["item_id", "author_id", "category"])
        self._item_I, self._author_I, self._category_I = (rows[name].to_numpy() for name in rows.column_names)
        self._parts: list[Daily] = []

    def add(self, events: Events) -> None:
        """Count a block."""
        ones = np.ones(len(events.item_E), np.int64)
        self._parts.append(_summed(events.item_E, events.time_E // DAY_US, ones, events.engagement_E))
        # Every block meets the same items on the same days.
        first, *others = (len(part.id_R) for part in self._parts)
        if sum(others) > max(first, MERGE_ROWS):
            self._parts = [self._daily()]

    def write(self, folder: Path) -> None:
        """Write both tables."""
        daily = self._daily()
        place_R = np.searchsorted(self._item_I, daily.id_R)
        author_R = self._author_I[place_R]
        named = {"item_id": daily.id_R, "item_category": self._category_I[place_R]}
        named |= {"item_author_id": author_R, "item_counted_time": (daily.day_R + 1) * DAY_US}
        write_table(ITEM_PROFILE, pa.table(named | _of_the_week(daily, "item_")), folder)
        of_author = _summed(author_R, daily.day_R, daily.count_R, daily.engagement_R)
        named = {"author_id": of_author.id_R, "num_items": _num_items(daily, author_R, of_author)}
        write_table(AUTHOR_PROFILE, pa.table(named | _of_the_week(of_author)), folder)

    def _daily(self) -> Daily:
        return _summed(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))


def _summed(id_N: IntArray, day_N: IntArray, count_N: IntArray, engagement_N: FloatArray) -> Daily:
    order = np.lexsort((day_N, id_N))
    id_N, day_N = id_N[order], day_N[order]
    first_R = np.flatnonzero(np.append(True, (np.diff(id_N) != 0) | (np.diff(day_N) != 0)))
    count_R, engagement_R = (np.add.reduceat(each[order], first_R) for each in (count_N, engagement_N))
    return Daily(id_N[first_R], day_N[first_R], count_R, engagement_R)


def _of_the_week(daily: Daily, prefix: str = "") -> dict[str, pa.Array]:
    # Rows of one id lie together and rise by day, so a place in (id, day) is a place in the rows.
    base = int(daily.day_R.min())
    width = int(daily.day_R.max()) - base + WINDOW_DAYS + 1
    _, rank_R = np.unique(daily.id_R, return_inverse=True)
    place_R = rank_R * width + (daily.day_R - base + WINDOW_DAYS)
    begin_R = np.searchsorted(place_R, place_R - WINDOW_DAYS + 1)
    end_R = np.arange(1, len(place_R) + 1)
    count_R, engagement_R = (
        (running := np.append(0, np.cumsum(each)))[end_R] - running[begin_R]
        for each in (daily.count_R, daily.engagement_R)
    )
    return {
        "event_time": times((daily.day_R + 1) * DAY_US),
        f"{prefix}num_events_7d": pa.array(count_R),
        f"{prefix}mean_engagement_7d": pa.array((engagement_R / count_R).clip(0, 1).astype(np.float32)),
    }


def _num_items(daily: Daily, author_R: IntArray, of_author: Daily) -> IntArray:
    """Different items of each author met up to each of the author's days."""
    first_R = np.append(True, np.diff(daily.id_R) != 0)
    new = _summed(author_R, daily.day_R, first_R.astype(np.int64), daily.engagement_R)
    running_R = np.cumsum(new.count_R)
    begins_R = np.searchsorted(of_author.id_R, of_author.id_R)
    before_R: IntArray = np.append(0, running_R)[begins_R]
    return running_R - before_R
