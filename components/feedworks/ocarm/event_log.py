"""Events of whole users, a bounded number at a time, and positions in them.

Shapes: E events of a block, sorted by user and time; N questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS
from feedworks.errors import DataError

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
# About 200 MB of columns at a time.
BLOCK_EVENTS = 4_000_000
BATCH_EVENTS = 1 << 18

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Events(NamedTuple):
    """Events of complete users; a user's stand from `start_E` to before `end_E`.

    Times are microseconds since 1970 UTC.
    """

    user_E: IntArray
    item_E: IntArray
    time_E: IntArray
    surface_E: IntArray
    engagement_E: FloatArray
    start_E: IntArray
    end_E: IntArray


class Span(NamedTuple):
    """When the log begins and ends (its first and last event), and how many events it has."""

    start_us: int
    end_us: int
    num_events: int


def read_span(data_dir: Path) -> Span:
    """Looks at all times once.

    Raises:
        DataError: The events are missing or cannot be read, or there are none.
    """
    lows, highs, num_events = [], [], 0
    for batch in _batches(data_dir, ["event_time"]):
        found = pc.min_max(batch["event_time"].cast(pa.int64()))
        lows.append(found["min"].as_py())
        highs.append(found["max"].as_py())
        num_events += batch.num_rows
    if not num_events:
        raise DataError(f"table {EVENTS.name}: {EVENTS.path(data_dir)} has no rows; bring a log of events")
    return Span(min(lows), max(highs), num_events)


def read_blocks(data_dir: Path) -> Iterator[Events]:
    """Yields the log in blocks of whole users, about `BLOCK_EVENTS` each, in its order.

    Args:
        data_dir: A retention data folder that has passed the gate.

    Raises:
        DataError: The events are missing or cannot be read, or are not sorted by user and time.
    """
    parts: list[pa.Table] = []
    num_rows = 0
    for batch in _batches(data_dir, EVENTS.schema.names):
        parts.append(pa.Table.from_batches([batch]))
        num_rows += batch.num_rows
        if num_rows < BLOCK_EVENTS:
            continue
        rows = pa.concat_tables(parts)
        user_E = rows["user_id"].to_numpy()
        complete = int(np.searchsorted(user_E, user_E[-1]))
        if complete:
            yield _events(rows.slice(0, complete))
        parts, num_rows = [rows.slice(complete)], len(rows) - complete
    if num_rows:
        yield _events(pa.concat_tables(parts))


def first_at_least(time_E: IntArray, low_N: IntArray, high_N: IntArray, time_N: IntArray) -> IntArray:
    """For each question the first position in `[low, high)` whose time is not less than `time_N`, or `high`.

    Times must rise within each of these ranges; nothing is assumed between ranges.
    """
    low_N, high_N = low_N.copy(), high_N.copy()
    while (low_N < high_N).any():
        middle_N = (low_N + high_N) // 2
        less_N = (low_N < high_N) & (time_E[np.minimum(middle_N, len(time_E) - 1)] < time_N)
        low_N, high_N = np.where(less_N, middle_N + 1, low_N), np.where(less_N, high_N, middle_N)
    return np.asarray(low_N)


def ranges(start_N: IntArray, length_N: IntArray) -> IntArray:
    """`start, start + 1, ...` of each row, `length` numbers long, one row after the other."""
    before_N = np.cumsum(length_N) - length_N
    return np.asarray(np.arange(int(length_N.sum())) + np.repeat(start_N - before_N, length_N))


class Categories:
    """The category of each item, by item id."""

    def __init__(self, data_dir: Path) -> None:
        table = read_table(CATALOGUE, data_dir, ["item_id", "category"])
        self._item_I: IntArray = table["item_id"].to_numpy()
        self._category_I: IntArray = table["category"].to_numpy()

    def of(self, item_N: IntArray) -> IntArray:
        """The categories of these items.

        Raises:
            DataError: An item is not in the catalogue.
        """
        place_N = np.searchsorted(self._item_I, item_N).clip(max=max(len(self._item_I) - 1, 0))
        known_N = self._item_I[place_N] == item_N if len(self._item_I) else np.zeros(len(item_N), bool)
        if not known_N.all():
            examples = np.unique(item_N[~known_N])[:3].tolist()
            raise DataError(
                f"table {EVENTS.name}, column item_id: items such as {examples} are not in the catalogue; "
                "add them to it or drop their events"
            )
        return np.asarray(self._category_I[place_N])


def _batches(data_dir: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    path = EVENTS.path(data_dir)
    if not path.is_file():
        raise DataError(f"table {EVENTS.name}: {path} is missing; give a retention data folder")
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_EVENTS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"table {EVENTS.name}: cannot read {path} ({reason}); write it again") from None


def _events(rows: pa.Table) -> Events:
    user_E = rows["user_id"].to_numpy()
    time_E = rows["event_time"].cast(pa.int64()).to_numpy()
    later_E = np.diff(user_E) > 0
    if not (later_E | ((np.diff(user_E) == 0) & (np.diff(time_E) >= 0))).all():
        raise DataError(f"table {EVENTS.name}: rows are not sorted by user_id and event_time; sort the file")
    first = np.append(0, np.flatnonzero(later_E) + 1)
    length = np.diff(np.append(first, len(user_E)))
    return Events(
        user_E=user_E,
        item_E=rows["item_id"].to_numpy(),
        time_E=time_E,
        surface_E=rows["surface"].to_numpy(),
        engagement_E=rows["engagement"].to_numpy().astype(np.float64),
        start_E=np.repeat(first, length),
        end_E=np.repeat(first + length, length),
    )
