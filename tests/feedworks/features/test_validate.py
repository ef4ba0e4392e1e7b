"""Poisoned rows are named before anything is written: table, column, row, key and value."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.features import AD_CONTEXT, INTERACTION_AGGREGATES, LIVE_STREAM, USER_PROFILE
from feedworks.errors import DataError
from feedworks.features import validate
from feedworks.features.validate import check_rows, check_tables, require_rows, require_tables

from .rows import HOUR, SECOND, START, table_of, write

NUM_ROWS = 8
NOW = "2023-11-14T22:13:20"


def rows_of(contract=INTERACTION_AGGREGATES) -> pa.Table:
    return table_of(contract, [1] * NUM_ROWS, [START + i * SECOND for i in range(NUM_ROWS)])


def poisoned(column: str, value: object, row: int = 5, contract=INTERACTION_AGGREGATES) -> pa.Table:
    """Good rows, of which one has `value` in `column`, whose type is one that holds all values."""
    table = rows_of(contract)
    values = table[column].to_pylist()
    values[row] = value
    if isinstance(value, str):
        replaced = pa.array([str(each) for each in values])
    elif value == 0.5:
        replaced = pa.array(values, pa.float64())
    else:
        replaced = pa.array(values, table.schema.field(column).type)
    return table.set_column(table.column_names.index(column), column, replaced)


@pytest.mark.parametrize("contract", [USER_PROFILE, INTERACTION_AGGREGATES, AD_CONTEXT, LIVE_STREAM])
def test_good_rows_pass(contract, tmp_path: Path) -> None:
    rows = rows_of(contract)
    assert check_rows(contract, rows).breaches == []
    write(contract, tmp_path, [1, 1, 2], [START, START + 1, START - HOUR])
    assert require_tables(tmp_path, [contract]) == {contract.name: 3}


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("num_events_1d", -1, r"1 are outside \[0, -\], first row 5 \(user_id=1, .*\): -1"),
        ("num_events_1d", None, r"1 are null"),
        ("num_events_1d", "many", r"1 are no int64 but string, first row 5 \(.*\): 'many'"),
        ("num_events_1d", 0.5, r"1 are no int64 but double, first row 5 \(.*\): 0.5"),
        ("mean_engagement_7d", float("nan"), r"1 hold NaN or infinity, first row 5 \(.*\): nan"),
        ("mean_engagement_7d", float("inf"), r"1 hold NaN or infinity"),
        ("mean_engagement_7d", 1.5, r"1 are outside \[0, 1\], first row 5 \(.*\): 1.5"),
        (
            "history_engagement",
            [0.5, float("nan"), 0.1],
            r"1 hold NaN or infinity, first row 5 \(.*\[0.5, nan",
        ),
        ("history_engagement", [0.5, None, 0.1], r"1 hold a null"),
        ("history_item", None, r"1 are null"),
        ("history_category", [1, 2], r"1 are not as long as history_item"),
    ],
)
def test_a_poisoned_row_is_named(column: str, value: object, told: str, tmp_path: Path) -> None:
    rows = poisoned(column, value)
    checked = check_rows(INTERACTION_AGGREGATES, rows)
    assert checked.bad_N.tolist() == [False] * 5 + [True] + [False] * 2
    with pytest.raises(DataError, match=f"table interaction_aggregates, column {column}: {told}"):
        require_rows(INTERACTION_AGGREGATES, rows)
    pq.write_table(rows, INTERACTION_AGGREGATES.path(tmp_path))
    with pytest.raises(DataError, match=f"column {column}: {told}.*; nothing was written"):
        require_tables(tmp_path, [INTERACTION_AGGREGATES])


def test_a_null_is_no_number_out_of_range_where_it_may_stand() -> None:
    assert check_rows(INTERACTION_AGGREGATES, poisoned("mean_engagement_7d", None)).breaches == []


def test_text_that_holds_numbers_is_text_in_every_row() -> None:
    rows = rows_of()
    i = rows.column_names.index("num_events_1d")
    checked = check_rows(
        INTERACTION_AGGREGATES,
        rows.set_column(i, "num_events_1d", rows["num_events_1d"].cast(pa.string())),
    )
    assert checked.bad_N.all()


def test_narrow_types_and_whole_floats_fit() -> None:
    rows = rows_of()
    for type_ in (pa.int16(), pa.float64()):
        i = rows.column_names.index("num_events_1d")
        other = rows.set_column(i, "num_events_1d", rows["num_events_1d"].cast(type_))
        assert check_rows(INTERACTION_AGGREGATES, other).breaches == []


def test_large_numbers_beside_nulls_keep_their_range() -> None:
    rows = rows_of(USER_PROFILE)
    i = rows.column_names.index("profile_time")
    values = pa.array([None, 2**62 + 1, *[0] * (NUM_ROWS - 2)], pa.int64())
    assert check_rows(USER_PROFILE, rows.set_column(i, "profile_time", values)).breaches == []


def test_several_breaches_are_all_told() -> None:
    rows = poisoned("num_events_1d", -1)
    i = rows.column_names.index("num_days_7d")
    values = pa.array([-1] * NUM_ROWS, pa.int64())
    breaches = check_rows(INTERACTION_AGGREGATES, rows.set_column(i, "num_days_7d", values)).breaches
    assert [(b.column, b.num_rows) for b in breaches] == [("num_events_1d", 1), ("num_days_7d", NUM_ROWS)]


@pytest.mark.parametrize(
    ("order", "told"),
    [([0, 1, 1], "repeat the key of the row before"), ([0, 2, 1], "stand in the wrong order")],
)
def test_keys_stand_once_and_in_order_across_batches(
    order: list[int], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validate, "BATCH_ROWS", 2)
    rows = rows_of(AD_CONTEXT).take(pa.array(order))
    pq.write_table(rows, AD_CONTEXT.path(tmp_path))
    with pytest.raises(DataError, match=f"column event_time: 1 {told} .*first row 2 "):
        require_tables(tmp_path, [AD_CONTEXT])


def test_breaches_of_all_batches_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "BATCH_ROWS", 3)
    table = rows_of(AD_CONTEXT)
    i = table.column_names.index("num_returns")
    pq.write_table(table.set_column(i, "num_returns", pa.array([-1] * NUM_ROWS)), AD_CONTEXT.path(tmp_path))
    num_rows, breaches = check_tables(tmp_path, [AD_CONTEXT])
    assert num_rows == {"ad_context": NUM_ROWS}
    assert [breach.num_rows for breach in breaches] == [NUM_ROWS]
    assert breaches[0].first.startswith("row 0 (user_id=1, event_time=" + NOW)


def test_missing_and_broken_tables_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing; build the feature tables"):
        require_tables(tmp_path, [AD_CONTEXT])
    path = AD_CONTEXT.path(tmp_path)
    pq.write_table(rows_of(AD_CONTEXT).drop_columns(["num_returns"]), path)
    with pytest.raises(DataError, match=r"lacks columns \['num_returns'\]"):
        require_tables(tmp_path, [AD_CONTEXT])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read"):
        require_tables(tmp_path, [AD_CONTEXT])


def test_one_row_is_checked_in_a_millisecond_or_two() -> None:
    """A push asks for it in a service."""
    rows = table_of(LIVE_STREAM, [1], [START])
    start_s = time.perf_counter()
    for _ in range(50):
        require_rows(LIVE_STREAM, rows)
    assert (time.perf_counter() - start_s) / 50 < 0.02  # 10 times what it takes, for a busy machine


def test_many_rows_are_checked_at_once() -> None:
    num_rows = 50_000
    rows = table_of(AD_CONTEXT, np.arange(num_rows), np.full(num_rows, START))
    start_s = time.perf_counter()
    assert not check_rows(AD_CONTEXT, rows).bad_N.any()
    assert time.perf_counter() - start_s < 1.0
