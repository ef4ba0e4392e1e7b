"""From the tables to the online store: all or nothing, the latest of each, and nothing goes back in time."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.features import FEATURE_TABLES, LIVE_STREAM, USER_PROFILE
from feedworks.errors import ConfigError, DataError, StoreError
from feedworks.features.materialize import Materialised, materialize
from feedworks.features.repo import apply, open_store, tables_folder

from .rows import DAY, HOUR, SECOND, START, table_of, write

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SERVED = [table for table in FEATURE_TABLES if not table.training_only]


def at(time_us: int) -> datetime:
    return EPOCH + timedelta(microseconds=time_us)


def write_profiles(repo: Path, users: list[int], at_us: list[int], **given: Any) -> pa.Table:
    return write(USER_PROFILE, tables_folder(repo), users, at_us, **given)


def read(repo: Path, users: list[int], *names: str) -> dict[str, list[Any]]:
    with open_store(repo) as store:
        features = [f"user_profile:{name}" for name in names]
        found = store.get_online_features(features=features, entity_rows=[{"user_id": u} for u in users])
        return {name: values for name, values in found.to_dict().items() if name in names}


@pytest.fixture
def embedded(repo: Path) -> Path:
    apply(repo)
    return repo


@pytest.fixture
def on_redis(use_redis: Path) -> Path:
    apply(use_redis)
    return use_redis


@pytest.fixture(params=["embedded", "on_redis"])
def store(request: pytest.FixtureRequest) -> Path:
    """An applied repository, in each of its forms."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_the_latest_row_of_each_user_in_the_window_is_read(store: Path) -> None:
    large = 2**62 + 1
    write_profiles(
        store,
        [1, 1, 1, 2, 3],
        [START, START + HOUR, START + DAY, START - 1, START],
        activity=[1, 2, 3, 4, 5],
        profile_time=[None, large, None, None, None],
    )
    done = materialize(store, at(START), at(START + HOUR), ["user_profile"])
    assert done["user_profile"].num_rows == 2
    found = read(store, [1, 2, 3, 9], "activity", "profile_time")
    # Redis says PRESENT of users that it does not have: only None tells.
    assert found == {"activity": [2, None, 5, None], "profile_time": [large, None, None, None]}


def test_an_older_row_never_overwrites_a_newer_one(store: Path) -> None:
    write_profiles(store, [1, 1], [START, START + HOUR], activity=[1, 2])
    assert materialize(store, at(START), at(START + HOUR), ["user_profile"])["user_profile"].num_rows == 1
    materialize(store, at(START), at(START), ["user_profile"])
    assert read(store, [1], "activity") == {"activity": [2]}


def test_all_views_at_once_and_lists_come_back(store: Path) -> None:
    tables = {table.name: write(table, tables_folder(store), [1, 2], [START] * 2) for table in SERVED}
    done = materialize(store, at(START), at(START + DAY))
    assert {name: each.num_rows for name, each in done.items()} == {table.name: 2 for table in SERVED}
    for table in SERVED:
        names = [column.name for column in table.features]
        with open_store(store) as opened:
            found = opened.get_online_features(
                features=[f"{table.name}:{name}" for name in names],
                entity_rows=[{table.entity: 1}, {table.entity: 2}],
            ).to_dict()
        expected = tables[table.name].select(names).to_pydict()
        for name in names:
            got = [list(cell) if isinstance(cell, list) else cell for cell in found[name]]
            assert got == expected[name], name


def test_the_same_as_feast_itself_writes(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profiles(embedded, [1, 1, 2], [START, START + HOUR, START], tenure_days=[None, 2.5, None])
    tables = shutil.copytree(tables_folder(embedded), embedded / "tables")
    monkeypatch.setenv("FEEDWORKS_FEATURES", str(tables))
    names = [column.name for column in USER_PROFILE.features]
    found = []
    for feast in (False, True):
        shutil.rmtree(embedded / "data", ignore_errors=True)
        apply(embedded)
        if feast:
            with open_store(embedded) as opened:
                opened.materialize(at(START), at(START + DAY), feature_views=["user_profile"])
        else:
            materialize(embedded, at(START), at(START + DAY), ["user_profile"])
        found.append(read(embedded, [1, 2], *names))
    assert found[0] == found[1]
    assert found[0]["tenure_days"] == [2.5, None]


@pytest.mark.parametrize(
    ("form", "column", "value", "told"),
    [
        ("embedded", "activity", 16, r"outside \[0, 15\]"),
        ("embedded", "tenure_days", float("nan"), "NaN"),
        ("on_redis", "activity", "very", "no int64 but string"),
    ],
)
def test_a_poisoned_row_stops_it_before_the_first_is_written(
    form: str, column: str, value: object, told: str, request: pytest.FixtureRequest
) -> None:
    """The row is named; what stood in the store stands there, of this table and of the others."""
    store: Path = request.getfixturevalue(form)
    folder = tables_folder(store)
    for table in SERVED:
        write(table, folder, [1], [START])
    write_profiles(store, [1], [START], activity=[1])
    materialize(store, at(START), at(START))
    for table in SERVED:
        write(table, folder, [1, 2], [START + HOUR, START])
    rows = table_of(USER_PROFILE, [1, 2], [START + HOUR, START], activity=[2, 3])
    values = [value, *rows[column].to_pylist()[1:]]
    values = [str(each) for each in values] if isinstance(value, str) else values
    i = rows.column_names.index(column)
    pq.write_table(rows.set_column(i, column, pa.array(values)), USER_PROFILE.path(folder))
    with pytest.raises(
        DataError, match=rf"table user_profile, column {column}: 1 .*{told}.*row 0 \(user_id=1"
    ):
        materialize(store, at(START), at(START + DAY))
    assert read(store, [1, 2], "activity") == {"activity": [1, None]}
    with open_store(store) as opened:
        live = opened.get_online_features(
            features=["live_stream:num_viewers"], entity_rows=[{"room_id": 1}, {"room_id": 2}]
        ).to_dict()["num_viewers"]
    assert live[0] is not None
    assert live[1] is None


def test_feasts_incremental_form_would_write_nothing_of_an_old_table(embedded: Path) -> None:
    """Why START and END are asked for: it begins a TTL before now."""
    write(LIVE_STREAM, tables_folder(embedded), [1], [START], num_viewers=[7])
    with open_store(embedded) as opened:
        opened.materialize_incremental(datetime.now(UTC), feature_views=["live_stream"])
        asked = {"features": ["live_stream:num_viewers"], "entity_rows": [{"room_id": 1}]}
        assert opened.get_online_features(**asked).to_dict()["num_viewers"] == [None]
    materialize(embedded, at(START), at(START + SECOND), ["live_stream"])
    with open_store(embedded) as opened:
        assert opened.get_online_features(**asked).to_dict()["num_viewers"] == [7]


def test_the_registry_knows_what_was_written(embedded: Path) -> None:
    write_profiles(embedded, [1], [START])
    materialize(embedded, at(START), at(START + DAY), ["user_profile"])
    with open_store(embedded) as opened:
        assert opened.get_feature_view("user_profile").materialization_intervals == [
            (at(START), at(START + DAY))
        ]
        assert not opened.get_feature_view("ad_context").materialization_intervals


def test_a_window_without_rows_writes_none(embedded: Path) -> None:
    write_profiles(embedded, [1], [START])
    done = materialize(embedded, at(START + 1), at(START + DAY), ["user_profile"])
    assert isinstance(done["user_profile"], Materialised)
    assert done["user_profile"].num_rows == 0


def test_progress_is_shown_with_a_rate(embedded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profiles(embedded, list(range(5_000)), [START] * 5_000)
    materialize(embedded, at(START), at(START), ["user_profile"])
    said = capsys.readouterr().err
    assert "checking user_profile: 5000/5000" in said
    assert "writing user_profile: 5000/5000" in said
    assert "/s" in said


@pytest.mark.parametrize(
    ("start", "end"),
    [(at(1), at(0)), (datetime(2024, 1, 1), at(0)), (at(0), datetime(2024, 1, 1))],
)
def test_times_that_say_nothing_are_refused(start: datetime, end: datetime, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two times with zones, the earlier first"):
        materialize(tmp_path, start, end)


@pytest.mark.parametrize("name", ["onboarding", "shoes"])
def test_what_is_not_served_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not served; known: user_profile"):
        materialize(tmp_path, at(0), at(1), [name])


def test_a_repository_that_was_not_applied_is_told(repo: Path) -> None:
    with pytest.raises(ConfigError, match="user_profile is not applied; run `feedworks features apply`"):
        materialize(repo, at(0), at(1))


def test_a_view_that_was_applied_with_other_columns_is_told(repo: Path) -> None:
    file = repo / "users.py"
    file.write_text(file.read_text() + "user_profile.features.pop()\n")
    apply(repo)
    with pytest.raises(ConfigError, match="user_profile was applied with other features"):
        materialize(repo, at(0), at(1), ["user_profile"])


def test_views_without_a_table_are_left_out(embedded: Path) -> None:
    """Live rooms may come by pushes alone."""
    write_profiles(embedded, [1], [START])
    assert set(materialize(embedded, at(START), at(START))) == {"user_profile"}
    with pytest.raises(DataError, match=r"live_stream.parquet is missing"):
        materialize(embedded, at(START), at(START), ["user_profile", "live_stream"])


def test_a_missing_table_is_told(embedded: Path) -> None:
    with pytest.raises(DataError, match=r"user_profile.parquet is missing"):
        materialize(embedded, at(0), at(1))


def test_a_store_that_goes_away_says_how_far_it_came(embedded: Path) -> None:
    write_profiles(embedded, [1], [START])
    database = embedded / "data" / "online.db"
    database.unlink()
    database.write_bytes(b"no database at all, but long enough to be read as one")
    with pytest.raises(StoreError, match="user_profile: 0 of 1 rows are written, then DatabaseError"):
        materialize(embedded, at(START), at(START), ["user_profile"])
