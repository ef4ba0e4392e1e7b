"""The point-in-time join: nothing from the future, nothing past its time, every row once and in its order."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedworks.contracts.features import (
    AD_CONTEXT,
    INTERACTION_AGGREGATES,
    ITEM_PROFILE,
    ONBOARDING,
    SERVICES,
    STUDENT_ITEM_SERVICE,
    STUDENT_SERVICE,
    TEACHER_ITEM_SERVICE,
    TEACHER_SERVICE,
    USER_PROFILE,
    FeatureTable,
)
from feedworks.contracts.files import write_table
from feedworks.contracts.retention import CATALOGUE, SAMPLES
from feedworks.errors import DataError
from feedworks.features.definitions import define
from feedworks.features.schema import ServiceSchema, training_only_columns
from feedworks.features.training_set import build_training_set, missing_share, point_in_time, temporary_store

from .rows import DAY, HOUR, SECOND, START, table_of, times, write

TTL = AD_CONTEXT.ttl_s * SECOND
STUDENT = SERVICES[STUDENT_SERVICE]


def ask(users: list[int], at_us: list[int]) -> pa.Table:
    return pa.table({"user_id": pa.array(users, pa.int64()), "at": times(at_us)})


def num_returns(users: list[int], at_us: list[int], folder: Path) -> list[int | None]:
    return point_in_time(ask(users, at_us), "at", folder, [AD_CONTEXT])["num_returns"].to_pylist()


def test_a_value_of_one_second_later_never_leaks(tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1, 1], [START, START + HOUR], num_returns=[10, 20])
    at = [START - SECOND, START - 1, START, START + HOUR - 1, START + HOUR, START + HOUR + SECOND]
    assert num_returns([1] * 6, at, tmp_path) == [None, None, 10, 10, 20, 20]


def test_a_row_is_used_for_its_ttl_and_not_a_microsecond_longer(tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1], [START], num_returns=[10])
    assert num_returns([1] * 3, [START + TTL - 1, START + TTL, START + TTL + 1], tmp_path) == [10, 10, None]


def test_an_expired_latest_row_does_not_bring_an_older_one_back(tmp_path: Path) -> None:
    """All rows of a view live equally long, so what expires last is the latest."""
    write(AD_CONTEXT, tmp_path, [1, 1], [START, START + DAY], num_returns=[10, 20])
    assert num_returns([1] * 2, [START + TTL + DAY, START + TTL + DAY + 1], tmp_path) == [20, None]


def test_rows_with_the_same_key_and_time_all_come_back_in_their_order(tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1, 2], [START, START], num_returns=[10, 20])
    users, at = [2, 1, 1, 7, 1, 2], [DAY, HOUR, HOUR, HOUR, HOUR, HOUR]
    found = num_returns(users, [START + each for each in at], tmp_path)
    assert found == [20, 10, 10, None, 10, 20]


def test_two_feature_rows_of_one_key_and_time_give_one_row(tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1, 1], [START, START], num_returns=[10, 20])
    found = num_returns([1, 1], [START, START], tmp_path)
    assert found in ([10, 10], [20, 20])


def test_whole_numbers_stay_whole_beside_nulls(tmp_path: Path) -> None:
    large = 2**62 + 1
    write(AD_CONTEXT, tmp_path, [1], [START], num_returns=[large])
    assert num_returns([1, 2], [START, START], tmp_path) == [large, None]


def test_no_rows_give_no_rows(tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1], [START])
    found = point_in_time(ask([], []), "at", tmp_path, [AD_CONTEXT])
    assert (found.num_rows, found.column_names) == (0, [c.name for c in AD_CONTEXT.features])


def test_times_in_nanoseconds_and_wide_strings_are_read_as_the_contract_says(tmp_path: Path) -> None:
    """What pandas writes by default: DuckDB 2.0 can not materialise it, ours are always microseconds."""
    frame = table_of(AD_CONTEXT, [1], [START], num_returns=[10]).to_pandas()
    frame["event_time"] = frame["event_time"].astype("datetime64[ns, UTC]")
    frame.to_parquet(AD_CONTEXT.path(tmp_path))
    assert pq.read_schema(AD_CONTEXT.path(tmp_path)).field("event_time").type.unit == "ns"
    assert num_returns([1], [START], tmp_path) == [10]


@pytest.mark.parametrize("name", ["user_id", "at"])
def test_an_unknown_user_or_time_is_told(name: str, tmp_path: Path) -> None:
    write(AD_CONTEXT, tmp_path, [1], [START])
    rows = ask([1], [START])
    rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(1, rows.schema.field(name).type))
    with pytest.raises(DataError, match=f"column {name}: 1 rows are null"):
        point_in_time(rows, "at", tmp_path, [AD_CONTEXT])


def test_a_missing_table_and_a_missing_column_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table ad_context: .*ad_context.parquet is missing"):
        num_returns([1], [START], tmp_path)
    rows = table_of(AD_CONTEXT, [1], [START]).drop_columns(["num_returns"])
    pq.write_table(rows, AD_CONTEXT.path(tmp_path))
    with pytest.raises(DataError, match=r"lacks columns \['num_returns'\]"):
        num_returns([1], [START], tmp_path)


def brute_force(rows: pa.Table, table: pa.Table, contract: FeatureTable) -> list[dict[str, object] | None]:
    """The definition, row by row."""
    ttl = pd.Timedelta(seconds=contract.ttl_s)
    known = table.to_pylist()
    found = []
    for row in rows.to_pylist():
        usable = [
            each
            for each in known
            if each[contract.entity] == row[contract.entity]
            and each["event_time"] <= row["at"] <= each["event_time"] + ttl
        ]
        found.append(max(usable, key=lambda each: each["event_time"], default=None))
    return found


moments = st.integers(0, 12).map(lambda step: START + step * TTL // 4)
pairs = st.lists(st.tuples(st.integers(0, 3), moments), max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=pairs.map(lambda found: sorted(set(found))), asked=pairs, shift=st.sampled_from([-1, 0, 1]))
def test_the_join_is_the_definition(
    known: list[tuple[int, int]], asked: list[tuple[int, int]], shift: int, tmp_path: Path
) -> None:
    """Random users and times, and for each the microsecond before and after."""
    tables: list[tuple[FeatureTable, pa.Table]] = []
    for seed, contract in enumerate((AD_CONTEXT, INTERACTION_AGGREGATES)):
        some = known[seed::2] if seed else known
        users, at = [user for user, _ in some], [time for _, time in some]
        tables.append((contract, write(contract, tmp_path, users, at, seed)))
    rows = ask([user for user, _ in asked], [time + shift for _, time in asked])
    found = point_in_time(rows, "at", tmp_path, [contract for contract, _ in tables])
    for contract, table in tables:
        names = [column.name for column in contract.features]
        expected = [
            {name: None if row is None else row[name] for name in names}
            for row in brute_force(rows, table, contract)
        ]
        assert found.select(names).to_pylist() == expected


def write_samples(
    folder: Path, users: list[int], bid_us: list[int], items: list[int | None] | None = None
) -> None:
    num_rows = len(users)
    start = [each + SECOND for each in bid_us]
    columns = {
        "sample_id": np.arange(num_rows),
        "user_id": users,
        "bid_time": times(bid_us),
        "surface": np.zeros(num_rows, np.int64),
        "ad_item": pa.array(items or [None] * num_rows, pa.int64()),
        "content_start": times(start),
        "content_end": times([each + DAY for each in start]),
        "label_start": times([each + DAY for each in start]),
        "lt1": pa.array(np.ones(num_rows), pa.float32()),
        "split": ["train"] * num_rows,
    }
    write_table(SAMPLES, pa.table(columns), folder)
    catalogue = {"item_id": [0], "author_id": [0], "category": [0], "vector": [[0.0]]}
    write_table(CATALOGUE, pa.table(catalogue), folder)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """samples/ of three users, and tables/ that know the first two of them; content of the first alone."""
    write_samples(tmp_path / "samples", [1, 2, 3], [START + DAY] * 3)
    for contract in STUDENT:
        write(contract, tmp_path / "tables", [1, 2], [START, START])
    write(ONBOARDING, tmp_path / "tables", [1, 2], [START + 2 * DAY + SECOND, START + 2 * DAY + 2 * SECOND])
    return tmp_path


def build(folder: Path):
    paths = [folder / name for name in ("samples", "tables", "observables", "content")]
    return build_training_set(*paths)


def test_a_training_set_holds_samples_and_features(folders: Path) -> None:
    built = build(folders)
    table = pq.read_table(folders / "observables" / "observables.parquet")
    assert built.num_rows == table.num_rows == 3
    assert table.column_names == [*SAMPLES.schema.names, *ServiceSchema.of(STUDENT_SERVICE).columns]
    assert table["sample_id"].to_pylist() == [0, 1, 2]
    assert table["history_item"].is_valid().to_pylist() == [True, True, False]
    third = pytest.approx(1 / 3)
    assert built.num_missing == {**{t.name: third for t in STUDENT}, "onboarding": pytest.approx(2 / 3)}
    assert ServiceSchema.read(folders / "observables") == ServiceSchema.of(STUDENT_SERVICE)
    assert CATALOGUE.path(folders / "observables").is_file()


def test_observables_are_those_of_the_bid_and_not_a_microsecond_later(folders: Path) -> None:
    for contract in STUDENT:
        write(contract, folders / "tables", [1, 2, 3], [START + DAY, START + DAY + 1, START + 2 * DAY])
    build(folders)
    table = pq.read_table(folders / "observables" / "observables.parquet")
    for name in ("history_item", "num_returns", "activity"):
        assert table[name].is_valid().to_pylist() == [True, False, False], name


def test_content_stands_apart_as_of_the_end_of_its_window(folders: Path) -> None:
    build(folders)
    table = pq.read_table(folders / "content" / "content.parquet")
    assert table.column_names == ["sample_id", *(column.name for column in ONBOARDING.features)]
    # What the second user met became known a second after the end of the window.
    assert table["content_item"].is_valid().to_pylist() == [True, False, False]
    assert ServiceSchema.read(folders / "content") == ServiceSchema.of(TEACHER_SERVICE)


def test_the_landing_item_is_read_as_of_the_bid_and_not_a_microsecond_later(folders: Path) -> None:
    bid_us, ttl_us = START + DAY, ITEM_PROFILE.ttl_s * SECOND
    write_samples(folders / "samples", [1, 2, 3, 1, 2, 3], [bid_us] * 6, [10, 11, 12, 13, 14, None])
    at = [bid_us, bid_us + 1, bid_us + SECOND, bid_us - ttl_us, bid_us - ttl_us - 1]
    write(ITEM_PROFILE, folders / "tables", range(10, 15), at, item_num_events_7d=range(5))
    built = build(folders)
    table = pq.read_table(folders / "observables" / "observables.parquet")
    assert table.column_names == [*SAMPLES.schema.names, *ServiceSchema.of(STUDENT_ITEM_SERVICE).columns]
    assert table["item_num_events_7d"].to_pylist() == [0, None, None, 3, None, None]
    assert table["history_item"].is_valid().to_pylist() == [True, True, False] * 2
    assert built.num_missing["item_profile"] == pytest.approx(4 / 6)
    assert ServiceSchema.read(folders / "content") == ServiceSchema.of(TEACHER_ITEM_SERVICE)


def test_what_the_student_opens_names_no_column_of_the_content(folders: Path) -> None:
    build(folders)
    for path in (folders / "observables").iterdir():
        text = path.read_bytes().decode(errors="ignore")
        assert not [name for name in (*training_only_columns(), ONBOARDING.name) if name in text]


def test_the_student_needs_no_table_of_the_content(folders: Path) -> None:
    ONBOARDING.path(folders / "tables").unlink()
    built = build_training_set(folders / "samples", folders / "tables", folders / "observables", None)
    assert set(built.num_missing) == {table.name for table in STUDENT}
    assert not (folders / "content").exists()


def test_the_same_tables_give_the_same_bytes(folders: Path) -> None:
    names = [Path("observables/observables.parquet"), Path("content/content.parquet")]
    build(folders)
    first = [(folders / name).read_bytes() for name in names]
    build(folders)
    assert [(folders / name).read_bytes() for name in names] == first


def test_the_share_of_missing_rows_of_nothing_is_0() -> None:
    empty = pa.schema([("activity", pa.int64())]).empty_table()
    assert missing_share(empty, [USER_PROFILE]) == {"user_profile": 0}


def test_the_default_store_of_feast_drops_rows_and_duckdb_keeps_them(tmp_path: Path) -> None:
    """Why ours is DuckDB: Dask loses rows with nothing known, with old rows only and with equal keys."""
    write(AD_CONTEXT, tmp_path, [1], [START], num_returns=[10])
    asked = pd.DataFrame(
        {
            "user_id": [1, 1, 1, 1],
            "event_timestamp": pd.to_datetime(
                [START, START, START - HOUR, START + TTL + HOUR], unit="us", utc=True
            ),
        }
    )
    kept = {}
    for kind in ("duckdb", "dask"):
        with temporary_store(tmp_path, [AD_CONTEXT], offline=kind) as store, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            job = store.get_historical_features(entity_df=asked, features=["ad_context:num_returns"])
            kept[kind] = len(job.to_df())
    assert kept["duckdb"] == 4
    assert kept["dask"] < 4


def test_a_relative_path_is_read_from_another_folder_by_each_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why ours are absolute: what DuckDB is given is relative to the process, wherever the repository is."""
    monkeypatch.chdir(tmp_path)
    write(AD_CONTEXT, Path("tables"), [1], [START], num_returns=[10])
    source = define(Path("tables"), [AD_CONTEXT]).views["ad_context"].batch_source
    assert source.path == str(tmp_path / "tables" / "ad_context.parquet")
    (tmp_path / "elsewhere").mkdir()
    with temporary_store(Path("tables"), [AD_CONTEXT]) as store:
        monkeypatch.chdir(tmp_path / "elsewhere")
        asked = ask([1], [START]).to_pandas().rename(columns={"at": "event_timestamp"})
        job = store.get_historical_features(entity_df=asked, features=["ad_context:num_returns"])
        found = job.to_arrow()["num_returns"].to_pylist()
    assert found == [10]
