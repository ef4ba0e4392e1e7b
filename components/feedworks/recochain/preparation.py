"""RecoChain (arXiv 2604.25787): contract tables to item sequences.

Items are numbered by falling count in the training split, equal counts by item id.

Events may outgrow memory: they are read by row groups, and what is kept of them (4 bytes each) lies in a
temporary file that is mapped. Held in memory are the table of items with its vectors, 16 bytes for each user,
one batch of events, and `BLOCK_EVENTS` of the file or the events of the longest user.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.configuration import flatten
from feedworks.contracts.files import read_table
from feedworks.contracts.tables import DATA_FOLDER, ITEMS, USERS
from feedworks.errors import DataError
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.data import BLOCK_EVENTS, Sequences
from feedworks.recochain.events import Gathered, gather
from feedworks.results import run_key
from feedworks.storage import atomic_folder, read_json
from feedworks.training.seed import numpy_generator

IntArray = npt.NDArray[np.int64]
KEY_FILE = "key.json"
# The settings that the step reads, beside where it runs.
SETTINGS = ("seed", "min_events", "dedup_consecutive", "user_fraction", "vectors")


class PreparedData(NamedTuple):
    """Sequences over item numbers, and the items table in the order of these numbers."""

    sequences: Sequences
    items: pa.Table
    count_N: IntArray


def preparation_key(data_dir: Path, config: RecoChainConfig) -> str:
    """Name what the step makes of these data with these settings, wherever it runs."""
    settings = {key: each for key, each in flatten(config).items() if key.partition(".")[0] in SETTINGS}
    return run_key(json.dumps(settings), (table.path(data_dir) for table in DATA_FOLDER))


def take_prepared(done: Path, key: str, out_dir: Path) -> None:
    """Copy what the step wrote elsewhere.

    Args:
        done: its folder there.
        key: of these data and settings.
        out_dir: where the result goes, whole or not at all.

    Raises:
        DataError: there is no such result, or it is one of other data or settings.
    """
    if not (done / KEY_FILE).is_file():
        raise DataError(
            f"prepare.done_in={done}: no result of the step `prepare`; run it there, or leave this out"
        )
    if read_json(done / KEY_FILE)["key"] != key:
        raise DataError(
            f"prepare.done_in={done} was made of other data, by another version or with other settings "
            f"({', '.join(SETTINGS)}); remove it and prepare again, or leave this out"
        )
    with atomic_folder(out_dir) as folder:
        shutil.copytree(done, folder, dirs_exist_ok=True)


def prepare_data(data_dir: Path, config: RecoChainConfig, scratch: Path | None = None) -> PreparedData:
    """Read a data folder that has passed the gate.

    Args:
        data_dir: the data folder.
        config: which users and repeats are kept, and where the pass over the events runs.
        scratch: a folder for the temporary file, which has no name there and goes with its last reader; the
            system's own without it.

    Raises:
        DataError: a table is missing or damaged, events are out of order or name an unknown item, or too few
            users are left.
        ConfigError: there is no Ray cluster where one is asked for.
        OSError: there is no room for the temporary file.
    """
    items = read_table(ITEMS, data_dir).combine_chunks()
    item_id: IntArray = items["item_id"].to_numpy()
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            gathered = gather(data_dir, item_id, file, config)
        except OSError as error:  # a file without a name does not say where there is no room
            raise OSError(error.errno, error.strerror, str(scratch or tempfile.gettempdir())) from None
        kept = _kept_users(gathered.length, config)
        length = gathered.length[kept]
        start = np.append(0, np.cumsum(length))
        rows: npt.NDArray[Any] = np.memmap(file, np.int32, "r+", shape=(max(int(gathered.length.sum()), 1),))
    _move_up(rows, gathered, kept)
    sequences = Sequences(gathered.user_id[kept], start, rows[: start[-1]])
    count = sequences.train_counts(len(items))
    order = np.lexsort((item_id, -count))
    number = np.empty(len(order), dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    for begin in range(0, len(sequences.item), BLOCK_EVENTS):
        block = sequences.item[begin : begin + BLOCK_EVENTS]
        block[:] = number[block]
    return PreparedData(sequences, items.take(order), count[order])


def read_segments(data_dir: Path, user_id: IntArray) -> list[str] | None:
    """The segment of each user, `unknown` where there is none; None without a users table.

    Args:
        data_dir: the data folder.
        user_id: ids in rising order.
    """
    if not USERS.path(data_dir).is_file():
        return None
    table = read_table(USERS, data_dir)
    segment = table["segment"].dictionary_encode().combine_chunks()
    # Texts as a list of a few different ones: one per user would take ten times the memory.
    names = [*(name or "unknown" for name in segment.dictionary.to_pylist()), "unknown"]
    code = segment.indices.fill_null(len(names) - 1).to_numpy()
    known = table["user_id"].to_numpy()
    code_of_user = np.full(len(user_id), len(names) - 1)
    place = np.searchsorted(user_id, known).clip(max=max(len(user_id) - 1, 0))
    found = user_id[place] == known
    code_of_user[place[found]] = code[found]
    return [names[code] for code in code_of_user]


def _kept_users(length: IntArray, config: RecoChainConfig) -> npt.NDArray[np.bool_]:
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
    return kept


def _move_up(rows: npt.NDArray[np.int32], gathered: Gathered, kept: npt.NDArray[np.bool_]) -> None:
    """Close the gaps that users leave who are not kept; what moves never passes what is still to be read."""
    if kept.all():
        return
    end = np.cumsum(gathered.length)
    total, place = int(end[-1]), 0
    for begin in range(0, total, BLOCK_EVENTS):
        block = rows[begin : begin + BLOCK_EVENTS]
        first, last = np.searchsorted(end, [begin, begin + len(block) - 1], side="right")
        users = slice(first, last + 1)
        inside = np.minimum(end[users], begin + len(block)) - np.maximum(
            end[users] - gathered.length[users], begin
        )
        moved = block[np.repeat(kept[users], inside)]
        rows[place : place + len(moved)] = moved
        place += len(moved)
