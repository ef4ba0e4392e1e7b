"""RecoChain (arXiv 2604.25787): events of any number, in one pass, to rows of the items table and users.

The pass works on batches that know nothing of each other, so that they may be read anywhere; `gather` then
joins what they found in their order. Shapes: E events of a batch, U users, R runs of one user's events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import group_rows, read_batches
from feedworks.contracts.tables import INTERACTIONS
from feedworks.engines import over_row_groups
from feedworks.errors import DataError
from feedworks.progress import Progress
from feedworks.recochain.config import RecoChainConfig

IntArray = npt.NDArray[np.int64]
COLUMNS = ("user_id", "item_id", "event_time")
NUM_EXAMPLES = 3


class Gathered(NamedTuple):
    """Users in the order of the file, ids rising, and how many rows each has in the file of rows."""

    user_id: IntArray
    length: IntArray


class ItemIds:
    """The row of each item in the items table, by its id."""

    def __init__(self, item_id: IntArray) -> None:
        self._order = np.argsort(item_id, kind="stable")
        self._known = item_id[self._order]

    def rows(self, item_id_E: IntArray) -> tuple[npt.NDArray[np.int32], IntArray]:
        """Rows `(E,)`, and those ids that are unknown, whose rows mean nothing."""
        if not len(self._known):
            return np.zeros(len(item_id_E), np.int32), item_id_E
        place_E = np.searchsorted(self._known, item_id_E).clip(max=len(self._known) - 1)
        unknown_E = self._known[place_E] != item_id_E
        return self._order[place_E].astype(np.int32), item_id_E[unknown_E]


def gather(data_dir: Path, item_id: IntArray, file: IO[bytes], config: RecoChainConfig) -> Gathered:
    """Write the row of each event's item to `file`, int32, in the order of the events.

    Args:
        data_dir: the data folder.
        item_id: ids of the items table.
        file: open for writing; flushed, and not closed.
        config: whether repeats of one item in a row are collapsed, and where the pass runs.

    Raises:
        DataError: the events are damaged or out of order, or name an unknown item.
        ConfigError: there is no Ray cluster where one is asked for.
        OSError: the file cannot be written.
    """
    groups = group_rows(INTERACTIONS, data_dir)
    ids, dedup = ItemIds(item_id), config.dedup_consecutive
    look_up = partial(batch_rows, data_dir=data_dir.resolve(), ids=ids, dedup=dedup)
    joined = _Joined(file, dedup=dedup)
    with Progress("events", total=sum(groups)) as shown:
        for batch in over_row_groups(look_up, groups, config.prepare):
            for row in range(batch.num_rows):  # Ray puts batches together
                joined.add(batch.slice(row, 1))
            shown.advance(joined.num_read - shown.count)
    return joined.close()


def batch_rows(
    row_groups: Sequence[int], *, data_dir: Path, ids: ItemIds, dedup: bool
) -> Iterator[pa.RecordBatch]:
    """Yield one row for each batch of some row groups, whose lists `_Joined` reads."""
    for batch in read_batches(INTERACTIONS, data_dir, COLUMNS, row_groups):
        if batch.num_rows:
            yield _look_up(batch, ids, dedup)


def _look_up(batch: pa.RecordBatch, ids: ItemIds, dedup: bool) -> pa.RecordBatch:
    user_E, item_E = batch["user_id"].to_numpy(), batch["item_id"].to_numpy()
    time_E = batch["event_time"].cast(pa.int64()).to_numpy()
    row_E, unknown = ids.rows(item_E)
    same_E = user_E[1:] == user_E[:-1]
    wrong_E = (user_E[1:] < user_E[:-1]) | (same_E & (time_E[1:] < time_E[:-1]))
    first_R = np.append(0, np.flatnonzero(~same_E) + 1)
    length_R = np.diff(np.append(first_R, len(user_E)))
    if dedup:
        kept_E = np.append(True, ~(same_E & (item_E[1:] == item_E[:-1])))
        row_E, length_R = row_E[kept_E], np.add.reduceat(kept_E, first_R, dtype=np.int64)
    lists = {
        "user": user_E[first_R],
        "length": length_R,
        "row": row_E,
        "time": time_E[[0, -1]],
        "item": item_E[[0, -1]],
        "wrong": np.flatnonzero(wrong_E)[:1] + 1,
        "unknown": np.unique(unknown)[:NUM_EXAMPLES],
    }
    counts = {"num_read": len(user_E), "num_unknown": len(unknown)}
    columns = {name: pa.ListArray.from_arrays([0, len(v)], pa.array(v)) for name, v in lists.items()}
    return pa.RecordBatch.from_pydict(columns | {name: pa.array([n]) for name, n in counts.items()})


class _Joined:
    """What the batches found, in their order: a user whose events two batches share becomes one again."""

    def __init__(self, file: IO[bytes], *, dedup: bool) -> None:
        self.num_read = 0
        self._file, self._dedup = file, dedup
        self._user: list[IntArray] = [np.zeros(0, np.int64)]
        self._length: list[IntArray] = [np.zeros(0, np.int64)]
        self._last: tuple[int, int, int] | None = None  # user, time and item of the last event
        self._unknown: set[int] = set()
        self._num_unknown = 0

    def add(self, found: pa.RecordBatch) -> None:
        """Take one row of `batch_rows`."""
        of: dict[str, Any] = {name: found[name] for name in found.schema.names}
        lists = {name: v.flatten().to_numpy() for name, v in of.items() if pa.types.is_list(v.type)}
        user, length, row, item = (lists[name] for name in ("user", "length", "row", "item"))
        self._require_order(int(user[0]), int(lists["time"][0]), lists["wrong"])
        if self._last is not None and self._last[0] == user[0]:
            repeat = int(self._dedup and self._last[2] == item[0])
            row = row[repeat:]
            self._length[-1][-1] += length[0] - repeat
            user, length = user[1:], length[1:]
        self._file.write(row.tobytes())
        if len(user):
            self._user.append(user)
            self._length.append(length.copy())
        self._last = (int(lists["user"][-1]), int(lists["time"][1]), int(item[1]))
        self.num_read += of["num_read"][0].as_py()
        self._num_unknown += of["num_unknown"][0].as_py()
        self._unknown = set(sorted(self._unknown | set(lists["unknown"].tolist()))[:NUM_EXAMPLES])

    def close(self) -> Gathered:
        """The users, once all batches were added."""
        if self._num_unknown:
            raise DataError(
                f"table interactions, column item_id: {self._num_unknown} rows name items that items lacks, "
                f"such as {sorted(self._unknown)}; add them to items.parquet or drop the rows"
            )
        self._file.flush()
        return Gathered(np.concatenate(self._user), np.concatenate(self._length))

    def _require_order(self, user: int, time: int, wrong: IntArray) -> None:
        place = int(wrong[0]) if len(wrong) else None
        if self._last is not None and (user, time) < self._last[:2]:
            place = 0
        if place is not None:
            raise DataError(
                f"table interactions: row {self.num_read + place} stands out of the order user_id, "
                "event_time; sort interactions.parquet"
            )
