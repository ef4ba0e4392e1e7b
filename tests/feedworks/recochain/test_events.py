"""Events that may outgrow memory: however the file is cut, the result is that of one look at all of it."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.contracts import files
from feedworks.contracts.files import write_table
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS
from feedworks.errors import DataError
from feedworks.recochain import data, preparation, steps
from feedworks.recochain.config import RecoChainConfig, tiny
from feedworks.recochain.data import read_sequences, write_sequences
from feedworks.recochain.preparation import prepare_data
from feedworks.training.seed import numpy_generator

NUM_ITEMS = 6


def write_events(folder: Path, rows: list[tuple[int, int, int]], groups: list[int]) -> Path:
    """Items, and events in row groups of these sizes, of which 0 is one; the last takes the rest."""
    ids = np.arange(NUM_ITEMS)[::-1] * 10
    vector = pa.array(np.eye(NUM_ITEMS).tolist(), pa.list_(pa.float32()))
    write_table(ITEMS, pa.table({"item_id": ids, "vector": vector}), folder)
    columns = [np.array(column, np.int64) for column in zip(*rows, strict=True)]
    table = pa.table([*columns[:2], pa.array(columns[2]).cast(EVENT_TIME)], schema=INTERACTIONS.schema)
    with pq.ParquetWriter(INTERACTIONS.path(folder), INTERACTIONS.schema) as writer:
        begin = 0
        for size in [*groups, len(rows)]:
            writer.write_table(table.slice(begin, size))
            begin += size
    assert pq.read_table(INTERACTIONS.path(folder)).equals(table)
    return folder


def by_definition(rows: list[tuple[int, int, int]], config: RecoChainConfig) -> tuple[list, list[int]]:
    """Users with their item ids, and the ids of all items in the order of their numbers."""
    histories: dict[int, list[int]] = {}
    for user, item, _ in rows:
        history = histories.setdefault(user, [])
        if not (config.dedup_consecutive and history and history[-1] == item):
            history.append(item)
    draws = numpy_generator(config.seed, "users").random(len(histories))
    kept = [
        (user, history)
        for (user, history), draw in zip(histories.items(), draws, strict=True)
        if len(history) >= config.min_events and draw < config.user_fraction
    ]
    seen = [item for _, history in kept for item in history[:-2]]
    return kept, sorted(np.arange(NUM_ITEMS).tolist(), key=lambda item: (-seen.count(item * 10), item))


@contextlib.contextmanager
def small_pieces(batch: int, block: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROW_GROUP_ROWS", batch)
        patch.setattr(preparation, "BLOCK_EVENTS", block)
        patch.setattr(data, "BLOCK_EVENTS", block)
        yield


events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, NUM_ITEMS - 1), st.integers(0, 3)), min_size=1, max_size=60
).map(lambda rows: [(u, i * 10, t) for u, i, t in sorted(rows, key=lambda row: (row[0], row[2]))])


@settings(max_examples=60)
@given(
    rows=events,
    groups=st.lists(st.integers(0, 9), max_size=8),
    batch=st.integers(1, 9),
    block=st.integers(1, 9),
    dedup=st.booleans(),
    fraction=st.sampled_from([1.0, 0.6]),
)
def test_pieces_of_any_size_give_what_the_definition_says(
    tmp_path_factory, rows, groups, batch, block, dedup, fraction
):
    config = replace(tiny(), dedup_consecutive=dedup, user_fraction=fraction)
    folder = write_events(tmp_path_factory.mktemp("events"), rows, groups)
    kept, order = by_definition(rows, config)
    with small_pieces(batch, block):
        if len(kept) < 2:
            with pytest.raises(DataError, match=f"{len(kept)} of "):
                prepare_data(folder, config)
            return
        made = prepare_data(folder, config)
        write_sequences(made.sequences, folder / "sequences.parquet")
    assert (made.items["item_id"].to_numpy() // 10).tolist() == order
    assert made.sequences.user_id.tolist() == [user for user, _ in kept]
    number = {item * 10: place for place, item in enumerate(order)}
    whole = [[number[item] for item in history] for _, history in kept]
    assert [made.sequences.row(user).tolist() for user in range(len(kept))] == whole
    seen = [item for history in whole for item in history[:-2]]
    assert made.count_N.tolist() == [seen.count(item) for item in range(NUM_ITEMS)]
    # Byte for byte the file of one write of the whole table.
    table = pa.table(
        {
            "user_id": pa.array([user for user, _ in kept], pa.int64()),
            "items": pa.array(whole, pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, folder / "whole.parquet")
    assert (folder / "sequences.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()


def test_one_user_of_a_hundred_thousand_events_among_others(tmp_path):
    rng = np.random.default_rng(0)
    history = (rng.integers(0, NUM_ITEMS, 100_000) * 10).tolist()
    rows = [(1, 10, 0), (1, 20, 1), (1, 30, 2), *((2, item, 5) for item in history)]
    rows += [(3, 10, 0), (3, 20, 1), (3, 40, 2)]
    folder = write_events(tmp_path, rows, [1, 1, 50_000, 0, 1])
    kept, order = by_definition(rows, tiny())
    with small_pieces(1000, 777):
        made = prepare_data(folder, tiny())
    assert [len(made.sequences.row(user)) for user in range(3)] == [3, len(kept[1][1]), 3]
    expected = [order.index(item // 10) for item in kept[1][1]]
    assert made.sequences.row(1).tolist() == expected


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=12), data_=st.data())
def test_row_groups_of_sequences_are_bounded_and_read_back(tmp_path_factory, lengths, data_):
    start = np.append(0, np.cumsum(lengths))
    made = data.Sequences(np.arange(len(lengths)) * 3, start, np.arange(start[-1]))
    most_users, most_events = data_.draw(st.integers(1, 5)), data_.draw(st.integers(1, 9))
    path = tmp_path_factory.mktemp("sequences") / "sequences.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "GROUP_USERS", most_users)
        patch.setattr(data, "GROUP_EVENTS", most_events)
        write_sequences(made, path)
    again = read_sequences(path)
    for name in ("user_id", "start", "item"):
        assert getattr(again, name).tolist() == getattr(made, name).tolist()
        assert getattr(again, name).dtype == np.int64
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(i)["items"].to_pylist() for i in range(file.num_row_groups)]
    assert all(len(group) <= most_users for group in groups)
    assert all(sum(map(len, group)) <= most_events or len(group) == 1 for group in groups)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ([(1, 0, 5), (1, 10, 4)], 1),
        ([(1, 0, 5), (2, 10, 4), (1, 10, 6)], 2),
        ([(1, 0, 1), (1, 10, 2), (1, 20, 3), (2, 0, 1), (2, 10, 0)], 4),
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_events_out_of_order_are_seen_while_they_are_read(tmp_path, rows, place, batch):
    folder = write_events(tmp_path, rows, [])
    with small_pieces(batch, 5), pytest.raises(DataError) as caught:
        prepare_data(folder, tiny())
    assert str(caught.value) == (
        f"table interactions: row {place} stands out of the order user_id, event_time; "
        "sort interactions.parquet"
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_synthetic(
        tmp_path / "data", num_users=300, num_items=60, mean_events=20, vector_width=256, seed=5
    ).folder


def test_a_damaged_row_group_in_the_middle_leaves_the_earlier_result(folder, tmp_path):
    table = pq.read_table(INTERACTIONS.path(folder))
    pq.write_table(table, INTERACTIONS.path(folder), row_group_size=1000, compression="zstd")
    out = tmp_path / "out"
    before = steps.prepare(folder, out, tiny())
    kept = {path.name: path.read_bytes() for path in out.iterdir()}
    with pq.ParquetFile(INTERACTIONS.path(folder)) as file:
        column = file.metadata.row_group(3).column(1)
        place = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(INTERACTIONS.path(folder).read_bytes())
    content[place : place + 40] = b"\xff" * 40
    INTERACTIONS.path(folder).write_bytes(bytes(content))
    with pytest.raises(
        DataError, match=r"table interactions: cannot read .*interactions\.parquet .*write it"
    ):
        steps.prepare(folder, out, tiny())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
    assert before.num_users == 300


# The limit holds for every file that the process writes, as a full disk does.
FULL = """
import resource, signal, sys
from pathlib import Path
from feedworks.recochain import steps
from feedworks.recochain.config import tiny
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    steps.prepare(Path(sys.argv[1]), Path(sys.argv[2]), tiny())
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("limit", [10_000, 30_000])  # within the temporary file, and within the results
def test_a_full_disk_leaves_the_earlier_result(folder, tmp_path, limit):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_text("kept")
    command = [sys.executable, "-c", FULL, str(folder), str(out), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout, done.stdout
    assert [path.name for path in out.iterdir()] == ["earlier"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]
