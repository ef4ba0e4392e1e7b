"""A table in blocks is judged as in one look: the same checks, counts, rows and words."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS
from feedworks.errors import DataError
from feedworks.validation import blocks, gate, structure
from feedworks.validation.gate import require_valid, validate_folder

NUM_ITEMS = 8


@contextlib.contextmanager
def blocks_of(block: int, batch: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", block)
        patch.setattr(gate, "BLOCK_ROWS", block)
        patch.setattr(structure, "ROW_GROUP_ROWS", batch)
        yield


def random_folder(folder, seed: int):
    """Events in order with nulls, negatives, repeated rows or unknown items; vectors that do not fit."""
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 60))
    user, time = rng.integers(-1, 6, num_rows), rng.integers(0, 4, num_rows)
    order = np.lexsort((time, user))
    item = rng.integers(0, NUM_ITEMS + 1, num_rows).tolist()
    columns = [user[order].tolist(), item, pa.array(time[order]).cast(EVENT_TIME).to_pylist()]
    for column in columns:
        if rng.random() < 0.3:
            column[rng.integers(num_rows)] = None
    schema = pa.schema([field.with_nullable(True) for field in INTERACTIONS.schema])
    events = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
    groups = int(rng.integers(1, 20))
    pq.write_table(events, INTERACTIONS.path(folder), row_group_size=groups)
    widths = rng.choice([2, 2, 2, 3], NUM_ITEMS)
    vectors = [None if rng.random() < 0.2 else [1.0] * width for width in widths]
    items = {
        "item_id": np.arange(NUM_ITEMS),
        "vector": pa.array(vectors, pa.list_(pa.float32())),
        "text": pa.array([None] * NUM_ITEMS, pa.string()),
        "external_id": pa.array(["x", *[None] * (NUM_ITEMS - 1)], pa.string()),
    }
    pq.write_table(pa.table(items), ITEMS.path(folder))
    return folder


@pytest.mark.parametrize("seed", range(8))
def test_the_checks_are_those_of_one_look(tmp_path, seed):
    folder = random_folder(tmp_path, seed)
    whole = validate_folder(folder)
    with blocks_of(7 + seed * 3, 1 + seed % 4):
        again = validate_folder(folder)
    assert again == whole
    assert whole.checks


def test_an_order_that_breaks_between_two_blocks_and_a_key_that_two_would_share(tmp_path):
    folder = write_synthetic(tmp_path, num_users=9, num_items=20, mean_events=8, seed=1).folder
    rows = pq.read_table(INTERACTIONS.path(folder))
    order = [*range(10), 9, 9, *range(10, 25), 26, 25, *range(27, len(rows))]
    pq.write_table(rows.take(order), INTERACTIONS.path(folder))
    whole = validate_folder(folder)
    assert {check.problem for check in whole.failures} == {
        "repeat the key of another row",
        "stand out of the order user_id, event_time",
    }
    for block in (11, 28):
        with blocks_of(block, 1):
            assert validate_folder(folder) == whole


def test_a_label_that_varies_between_blocks_only(tmp_path):
    folder = write_synthetic_ranking(tmp_path, num_users=40, num_items=30, num_rows=200)
    rows = pq.read_table(folder / "train.parquet")
    pq.write_table(rows.sort_by("label"), folder / "train.parquet")
    num_negative = pq.read_table(folder / "train.parquet")["label"].to_pylist().index(1)
    with blocks_of(num_negative, num_negative):
        require_valid(folder)
    constant = rows.set_column(rows.column_names.index("label"), "label", pa.array([1] * len(rows)))
    pq.write_table(constant, folder / "train.parquet")
    whole = validate_folder(folder)
    with blocks_of(70, 70):
        assert validate_folder(folder) == whole
        with pytest.raises(DataError, match="200 of 200 rows hold one and the same value"):
            require_valid(folder)


def test_a_retention_folder_in_blocks(tmp_path):
    folder = write_synthetic_retention(tmp_path, num_users=12, seed=3)
    whole = validate_folder(folder)
    num_rows = whole.rows["events"]
    with blocks_of(num_rows // 3, num_rows // 5):
        assert validate_folder(folder) == whole


def test_a_damaged_row_group_after_good_blocks_fails_the_table(tmp_path):
    folder = write_synthetic(tmp_path, num_users=50, num_items=20, mean_events=8, seed=1).folder
    rows = pq.read_table(INTERACTIONS.path(folder))
    pq.write_table(rows, INTERACTIONS.path(folder), row_group_size=50, write_page_checksum=True)
    with pq.ParquetFile(INTERACTIONS.path(folder)) as file:
        column = file.metadata.row_group(5).column(1)
        place = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(INTERACTIONS.path(folder).read_bytes())
    content[place : place + 40] = b"\xff" * 40
    INTERACTIONS.path(folder).write_bytes(bytes(content))
    with blocks_of(50, 50), pytest.raises(DataError) as caught:
        require_valid(folder)
    assert "table interactions: has corrupt pages (" in str(caught.value)
    assert f"in all {len(rows)} rows; write or copy the file again" in str(caught.value)
