"""RecoChain (arXiv 2604.25787): contract tables to item sequences.

Items are numbered by falling count in the training split, equal counts by item id.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import read_table
from feedworks.contracts.tables import INTERACTIONS, ITEMS, USERS
from feedworks.errors import DataError
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.data import Sequences
from feedworks.training.seed import numpy_generator

IntArray = npt.NDArray[np.int64]


class PreparedData(NamedTuple):
    """Sequences over item numbers, and the items table in the order of these numbers."""

    sequences: Sequences
    items: pa.Table
    count_N: IntArray


def prepare_data(data_dir: Path, config: RecoChainConfig) -> PreparedData:
    """Read a data folder that has passed the gate.

    Raises:
        DataError: a table is missing, an event names an unknown item, or too few users are left.
    """
    events = read_table(INTERACTIONS, data_dir)
    items = read_table(ITEMS, data_dir).combine_chunks()
    user_id = events["user_id"].to_numpy()
    item_row = _item_rows(events["item_id"].to_numpy(), items["item_id"].to_numpy())
    if config.dedup_consecutive and len(user_id):
        repeat = (user_id[1:] == user_id[:-1]) & (item_row[1:] == item_row[:-1])
        kept = np.append(True, ~repeat)
        user_id, item_row = user_id[kept], item_row[kept]
    sequences = _keep_users(_group(user_id, item_row), config)
    count = sequences.train_counts(len(items))
    order = np.lexsort((items["item_id"].to_numpy(), -count))
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    renumbered = Sequences(sequences.user_id, sequences.start, number[sequences.item])
    return PreparedData(renumbered, items.take(order), count[order])


def read_segments(data_dir: Path, user_id: IntArray) -> list[str] | None:
    """The segment of each user, `unknown` where there is none; None without a users table."""
    if not USERS.path(data_dir).is_file():
        return None
    table = read_table(USERS, data_dir)
    pairs = zip(table["user_id"].to_pylist(), table["segment"].to_pylist(), strict=True)
    segment = dict(pairs)
    return [segment.get(user) or "unknown" for user in user_id.tolist()]


def _item_rows(item_id: IntArray, known: IntArray) -> IntArray:
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], item_id).clip(max=max(len(known) - 1, 0))
    row = order[place] if len(known) else np.zeros(len(item_id), dtype=np.int64)
    unknown = np.ones(len(item_id), dtype=bool) if not len(known) else known[row] != item_id
    if unknown.any():
        examples = sorted(set(item_id[unknown].tolist()))[:3]
        raise DataError(
            f"table interactions, column item_id: {int(unknown.sum())} rows name items that items lacks, "
            f"such as {examples}; add them to items.parquet or drop the rows"
        )
    return row


def _group(user_id: IntArray, item_row: IntArray) -> Sequences:
    first = np.flatnonzero(np.append(True, user_id[1:] != user_id[:-1])) if len(user_id) else np.zeros(0, int)
    return Sequences(user_id[first], np.append(first, len(user_id)), item_row)


def _keep_users(sequences: Sequences, config: RecoChainConfig) -> Sequences:
    length = np.diff(sequences.start)
    kept = length >= config.min_events
    if config.user_fraction < 1:
        kept &= numpy_generator(config.seed, "users").random(len(kept)) < config.user_fraction
    if kept.sum() < 2:
        collapsed = " once repeats in a row are collapsed" if config.dedup_consecutive else ""
        share = f" and fall into user_fraction={config.user_fraction}" if config.user_fraction < 1 else ""
        raise DataError(
            f"table interactions, column user_id: {int(kept.sum())} of {len(kept)} users have "
            f"min_events={config.min_events} events or more{collapsed}{share}; bring more data, at least 2 "
            "users are needed"
        )
    start = np.append(0, np.cumsum(length[kept]))
    return Sequences(sequences.user_id[kept], start, sequences.item[np.repeat(kept, length)])
