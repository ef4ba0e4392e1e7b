"""Every way in which a data folder can be bad stops at the gate, which says table, column, count and mend."""

import contextlib
import datetime
import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedworks.contracts.files import read_table
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import DATA_FOLDER, INTERACTIONS, ITEMS, USERS, Table
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid, validate_folder
from feedworks.validation.structure import BROKEN, batches, open_table

NUM_ITEMS = 60


@pytest.fixture
def folder(tmp_path):
    return write_synthetic(
        tmp_path / "data", num_users=20, num_items=NUM_ITEMS, mean_events=10, seed=5
    ).folder


def replace(folder: Path, contract: Table, column: str, values) -> None:
    """Puts `values` into a column, whatever the contract says of them."""
    rows = read_table(contract, folder)
    if not isinstance(values, pa.Array):
        values = pa.array(values, contract.column(column).type)
    index = rows.column_names.index(column)
    pq.write_table(rows.set_column(index, column, values), contract.path(folder))


def values_of(folder: Path, contract: Table, column: str) -> list:
    return read_table(contract, folder)[column].to_pylist()


def set_rows(folder: Path, contract: Table, column: str, changes: dict[int, object]) -> None:
    values = values_of(folder, contract, column)
    for row, value in changes.items():
        values[row] = value
    replace(folder, contract, column, values)


def take(folder: Path, contract: Table, order: list[int]) -> None:
    pq.write_table(read_table(contract, folder).take(order), contract.path(folder))


def message(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        require_valid(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_data_pass(folder):
    result = require_valid(folder)
    assert result.success
    assert result.rows == {table.name: read_table(table, folder).num_rows for table in DATA_FOLDER}
    assert result.warnings == ()
    assert {check.table for check in result.checks} == {"items", "users", "interactions"}
    assert result.metrics()["validation/failures"] == 0
    assert result.metrics()["validation/rows/items"] == NUM_ITEMS


def test_users_are_optional(folder):
    USERS.path(folder).unlink()
    assert "users" not in require_valid(folder).rows


@pytest.mark.parametrize("table", [INTERACTIONS, ITEMS], ids=lambda table: table.name)
def test_a_missing_file(folder, table):
    table.path(folder).unlink()
    text = message(folder)
    assert f"table {table.name}: is missing" in text
    assert "a data folder holds interactions.parquet, items.parquet, users.parquet (optional)" in text


@pytest.mark.parametrize("table", DATA_FOLDER, ids=lambda table: table.name)
def test_a_folder_in_the_place_of_a_file(folder, table):
    table.path(folder).unlink()
    table.path(folder).mkdir()
    assert f"table {table.name}: is a folder, not a file; write the table as one" in message(folder)


def test_a_link_to_nothing_is_not_an_absent_table(folder):
    USERS.path(folder).unlink()
    USERS.path(folder).symlink_to(folder / "nowhere")
    assert "table users: is missing" in message(folder)


@pytest.mark.parametrize("table", DATA_FOLDER, ids=lambda table: table.name)
def test_an_empty_file(folder, table):
    table.path(folder).write_bytes(b"")
    assert f"table {table.name}: is empty (0 bytes); write the file again" in message(folder)


@pytest.mark.parametrize("table", DATA_FOLDER, ids=lambda table: table.name)
def test_a_table_without_rows(folder, table):
    pq.write_table(table.schema.empty_table(), table.path(folder))
    text = message(folder)
    assert f"table {table.name}: has 0 rows; write the table with its rows" in text
    assert ("or remove the file" in text) == (table == USERS)


@pytest.mark.parametrize("kept", [0.0005, 0.1, 0.5, 0.99])
def test_a_truncated_file(folder, kept):
    whole = INTERACTIONS.path(folder).read_bytes()
    INTERACTIONS.path(folder).write_bytes(whole[: int(len(whole) * kept) + 1])
    text = message(folder)
    assert "table interactions: is truncated or no parquet file" in text
    assert "write or copy the file again" in text


def test_a_flipped_byte_inside_a_page(folder):
    path = ITEMS.path(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "table items: has corrupt pages (" in message(folder)
    assert f"in all {NUM_ITEMS} rows; write or copy the file again" in message(folder)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_told_as_damage_or_does_none(folder, seed):
    """Flips bits, most of them in the footer, where no checksum guards them."""
    rng = random.Random(seed)
    table = rng.choice(DATA_FOLDER)
    content = bytearray(table.path(folder).read_bytes())
    for _ in range(rng.choice([1, 1, 3])):
        content[rng.randrange(rng.choice([0, int(len(content) * 0.8)]), len(content))] ^= 1 << rng.randrange(
            8
        )
    table.path(folder).write_bytes(bytes(content))
    opened = open_table(table, folder)
    if opened.file is not None:
        with opened.file as file:
            if opened.usable:
                with contextlib.suppress(*BROKEN):
                    assert sum(batch.num_rows for batch in batches(file, table)) == file.metadata.num_rows


@pytest.mark.parametrize(
    ("table", "column"), [(table, column.name) for table in DATA_FOLDER for column in table.columns]
)
def test_a_missing_column(folder, table, column):
    rows = read_table(table, folder)
    pq.write_table(rows.drop_columns([column]), table.path(folder))
    assert f"table {table.name}, column {column}: is missing in all {rows.num_rows} rows; write" in message(
        folder
    )


def test_a_column_that_stands_there_twice(folder):
    rows = read_table(ITEMS, folder)
    pq.write_table(rows.append_column("item_id", rows["item_id"]), ITEMS.path(folder))
    assert "table items, column item_id: stands there 2 times" in message(folder)


@pytest.mark.parametrize(
    ("table", "column", "wrong"),
    [
        (INTERACTIONS, "user_id", pa.string()),
        (INTERACTIONS, "user_id", pa.int32()),
        (INTERACTIONS, "item_id", pa.float64()),
        (INTERACTIONS, "event_time", pa.timestamp("us")),
        (INTERACTIONS, "event_time", pa.int64()),
        (ITEMS, "text", pa.binary()),
        (ITEMS, "vector", pa.list_(pa.float64())),
        (ITEMS, "external_id", pa.null()),
    ],
)
def test_a_wrong_type(folder, table, column, wrong):
    rows = read_table(table, folder)
    values = pa.nulls(rows.num_rows) if wrong == pa.null() else rows[column].combine_chunks().cast(wrong)
    replace(folder, table, column, values)
    text = message(folder)
    expected = table.column(column).type
    names = ("list of double", "list of float") if column == "vector" else (wrong, expected)
    assert f"table {table.name}, column {column}: has type {names[0]}, not {names[1]}, in all" in text
    assert f"in all {rows.num_rows} rows; cast the column to {names[1]}" in text


@pytest.mark.parametrize(
    ("column", "same"),
    [
        ("text", pa.large_string()),
        ("text", pa.dictionary(pa.int32(), pa.string())),
        ("vector", pa.large_list(pa.float32())),
        ("vector", pa.list_(pa.float32(), 32)),
    ],
)
def test_types_that_hold_the_same_values_pass_and_are_read_as_the_contract_says(folder, column, same):
    before = read_table(ITEMS, folder)
    replace(folder, ITEMS, column, before[column].combine_chunks().cast(same))
    assert pq.read_schema(ITEMS.path(folder)).field(column).type == same
    require_valid(folder)
    assert read_table(ITEMS, folder).equals(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
def test_a_vector_that_is_not_finite(folder, bad):
    vectors = values_of(folder, ITEMS, "vector")
    set_rows(folder, ITEMS, "vector", {7: [bad, *vectors[7][1:]], 9: [*vectors[9][:-1], bad]})
    text = message(folder)
    assert f"table items, column vector: 2 of {NUM_ITEMS} rows hold null, NaN or infinite numbers" in text
    assert "row 7: item_id=8; row 9: item_id=10" in text
    assert "compute these vectors again" in text


def test_vectors_of_different_width(folder):
    set_rows(folder, ITEMS, "vector", {3: [1.0] * 31, 4: []})
    text = message(folder)
    assert f"table items, column vector: 2 of {NUM_ITEMS} rows do not have 32 numbers like most" in text


def test_vectors_without_numbers(folder):
    replace(folder, ITEMS, "vector", [[]] * NUM_ITEMS)
    assert f"{NUM_ITEMS} of {NUM_ITEMS} rows do not have 1 numbers like most" in message(folder)


def test_no_vectors_at_all_are_fine_and_some_missing_ones_a_warning(folder, capsys):
    set_rows(folder, ITEMS, "vector", {3: None})
    (warning,) = require_valid(folder).warnings
    assert (warning.table, warning.column, warning.count, warning.severity) == (
        "items",
        "vector",
        1,
        "warning",
    )
    shown = capsys.readouterr().err
    assert (
        f"warning: table items, column vector: 1 of {NUM_ITEMS} rows are null while others are not" in shown
    )
    replace(folder, ITEMS, "vector", [None] * NUM_ITEMS)
    assert require_valid(folder).warnings == ()


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column.name) for table in DATA_FOLDER for column in table.columns if not column.nullable],
)
def test_nulls(folder, table, column):
    num_rows = read_table(table, folder).num_rows
    set_rows(folder, table, column, {2: None, 5: None, 6: None})
    text = message(folder)
    assert f"table {table.name}, column {column}: 3 of {num_rows} rows are null (row 2: " in text
    assert "fill or drop these rows" in text
    if table == INTERACTIONS:
        assert "are not in table" not in text


def test_negative_ids(folder):
    set_rows(folder, ITEMS, "item_id", {0: -4})
    set_rows(folder, INTERACTIONS, "user_id", {0: -1})
    text = message(folder)
    assert f"table items, column item_id: 1 of {NUM_ITEMS} rows are below 0 (row 0: item_id=-4)" in text
    assert "table interactions, column user_id: 1 of " in text


def test_duplicate_keys(folder):
    take(folder, ITEMS, [0, 0, 0, *range(1, NUM_ITEMS)])
    num_events = read_table(INTERACTIONS, folder).num_rows
    take(folder, INTERACTIONS, [0, 0, *range(1, num_events)])
    text = message(folder)
    assert f"table items, column item_id: 3 of {NUM_ITEMS + 2} rows repeat the key of another row" in text
    assert (
        f"table interactions, column user_id, item_id, event_time: 2 of {num_events + 1} rows repeat the key"
    ) in text
    assert "keep one row for each key" in text


def test_events_out_of_time_order(folder):
    users = values_of(folder, INTERACTIONS, "user_id")
    place = users.index(3)
    order = list(range(len(users)))
    order[place], order[place + 1] = order[place + 1], order[place]
    take(folder, INTERACTIONS, order)
    text = message(folder)
    assert f"column event_time: 1 of {len(users)} rows stand out of the order user_id, event_time" in text
    assert f"row {place + 1}: user_id=3, " in text
    assert "sort interactions.parquet by user_id, event_time" in text


def test_users_out_of_order(folder):
    num_events = read_table(INTERACTIONS, folder).num_rows
    take(folder, INTERACTIONS, [num_events - 1, *range(num_events - 1)])
    assert "1 of " in message(folder)


@pytest.mark.parametrize("first", [2**53, 2**63 - 21])
def test_ids_of_63_bits_keep_their_order(folder, first):
    ids = [first + i for i in values_of(folder, INTERACTIONS, "user_id")]
    replace(folder, INTERACTIONS, "user_id", ids)
    USERS.path(folder).unlink()
    require_valid(folder)
    swapped = ids.index(first + 2)
    ids[swapped - 1], ids[swapped] = ids[swapped], ids[swapped - 1]
    replace(folder, INTERACTIONS, "user_id", ids)
    assert f"(row {swapped}: user_id={first + 1}, " in message(folder)


def test_a_struct_for_a_vector(folder):
    replace(folder, ITEMS, "vector", pa.array([{"x": 1.0}] * NUM_ITEMS))
    assert "table items, column vector: has type struct<x: double>, not list of float, in all" in message(
        folder
    )


def test_two_events_at_the_same_time_are_fine(folder):
    times = values_of(folder, INTERACTIONS, "event_time")
    set_rows(folder, INTERACTIONS, "event_time", {1: times[0]})
    require_valid(folder)


def test_events_of_unknown_items(folder):
    set_rows(folder, INTERACTIONS, "item_id", {0: 1000, 3: 1001})
    text = message(folder)
    assert "table interactions, column item_id: 2 of " in text
    assert "rows are not in table items (row 0: " in text


def test_a_broken_table_does_not_hide_what_is_wrong_with_the_next(folder):
    ITEMS.path(folder).write_bytes(b"")
    set_rows(folder, INTERACTIONS, "user_id", {0: -1})
    text = message(folder)
    assert "table items: is empty" in text
    assert "table interactions, column user_id: 1 of " in text
    assert "are not in table items" not in text


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        validate_folder(tmp_path / "absent")


def test_many_failures_make_one_line_that_says_how_many_more(folder):
    set_rows(folder, ITEMS, "item_id", {0: None, 1: -1})
    set_rows(folder, USERS, "user_id", {0: None, 1: -1, 3: 3})
    result = validate_folder(folder)
    assert len(result.failures) > 3
    text = message(folder)
    assert f"| and {len(result.failures) - 3} more failures" in text
    assert "table items" in text
    assert "table users" in text, "no table hides behind the failures of another"


def test_order_holds_across_the_borders_of_row_groups(folder, monkeypatch):
    monkeypatch.setattr("feedworks.validation.structure.ROW_GROUP_ROWS", 3)
    require_valid(folder)
    num_events = read_table(INTERACTIONS, folder).num_rows
    take(folder, INTERACTIONS, [0, 1, 3, 2, *range(4, num_events)])
    assert "row 3: " in message(folder)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_counts_are_those_of_a_brute_force_look(tmp_path, data):
    """Random small event tables: nulls, negatives, duplicates, order and references counted row by row."""
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    row = st.tuples(
        st.one_of(st.none(), st.integers(-1, 2)), st.integers(0, 3), st.one_of(st.none(), st.integers(0, 3))
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=12))
    events = [(u, i, None if t is None else start + datetime.timedelta(seconds=t)) for u, i, t in rows]
    columns = [
        pa.array(c, f.type) for c, f in zip(zip(*events, strict=True), INTERACTIONS.schema, strict=True)
    ]
    folder = tmp_path
    pq.write_table(pa.table(columns, names=INTERACTIONS.schema.names), INTERACTIONS.path(folder))
    items = {"item_id": [0, 1, 2], "vector": [None] * 3, "text": [None] * 3, "external_id": [None] * 3}
    pq.write_table(
        pa.table(items, schema=pa.schema([f.with_nullable(True) for f in ITEMS.schema])), ITEMS.path(folder)
    )
    counts = {
        (c.column, c.problem): c.count for c in validate_folder(folder).checks if c.table == "interactions"
    }
    whole = [(u, t) for u, _, t in events]
    out_of_order = sum(None not in (*a, *b) and b < a for a, b in itertools.pairwise(whole))
    assert counts["user_id", "are null"] == sum(u is None for u, _, _ in events)
    assert counts["event_time", "are null"] == sum(t is None for _, _, t in events)
    assert counts["user_id", "are below 0"] == sum(u is not None and u < 0 for u, _, _ in events)
    assert counts["item_id", "are not in table items"] == sum(i == 3 for _, i, _ in events)
    duplicates = counts["user_id, item_id, event_time", "repeat the key of another row"]
    complete = [e for e in events if None not in e]
    assert duplicates >= sum(complete.count(e) > 1 for e in complete)
    if complete == events:
        assert duplicates == sum(events.count(e) > 1 for e in events)
        assert counts["event_time", "stand out of the order user_id, event_time"] == out_of_order


def test_a_million_events_take_seconds(tmp_path):
    num_users, per_user = 20_000, 50
    folder = write_synthetic(tmp_path, num_users=5, num_items=NUM_ITEMS).folder
    place = np.tile(np.arange(per_user), num_users)
    events = {
        "user_id": np.repeat(np.arange(num_users), per_user),
        "item_id": 1 + place,
        "event_time": pa.array(place * 1_000_000).cast(INTERACTIONS.schema.field("event_time").type),
    }
    pq.write_table(pa.table(events), INTERACTIONS.path(folder))
    assert require_valid(folder).rows["interactions"] == 1_000_000
