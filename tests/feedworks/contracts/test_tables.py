import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.files import read_table, write_table
from feedworks.contracts.tables import DATA_FOLDER, INTERACTIONS, ITEMS, USERS, Table
from feedworks.errors import DataError


@pytest.mark.parametrize("table", DATA_FOLDER, ids=lambda table: table.name)
def test_a_contract_is_consistent_in_itself(table: Table):
    names = [column.name for column in table.columns]
    assert table.schema.names == names
    assert len(set(names)) == len(names)
    assert set(table.key) <= set(names)
    assert set(table.sorted_by) <= set(names)
    assert table.event_time is None or table.event_time in names
    assert not any(table.column(name).nullable for name in table.key)
    assert all(column.description for column in table.columns)


def test_the_contracts_are_the_published_ones():
    assert [f"{f.name}: {f.type}" for f in INTERACTIONS.schema] == [
        "user_id: int64",
        "item_id: int64",
        "event_time: timestamp[us, tz=UTC]",
    ]
    assert ITEMS.column("vector").type == pa.list_(pa.float32())
    assert not USERS.required
    with pytest.raises(KeyError, match=r"it has \['user_id', 'segment'\]"):
        USERS.column("age")


def test_written_rows_come_back_in_contract_order_and_type(tmp_path):
    rows = pa.table({"text": ["a", None], "item_id": pa.array([1, 2], pa.int32())})
    path = write_table(ITEMS, rows, tmp_path)
    assert path == tmp_path / "items.parquet"
    back = read_table(ITEMS, tmp_path)
    assert back.schema.equals(ITEMS.schema)
    assert back.to_pylist()[0] == {"item_id": 1, "vector": None, "text": "a", "external_id": None}
    assert read_table(ITEMS, tmp_path, ["text", "item_id"]).column_names == ["text", "item_id"]
    assert [p.name for p in tmp_path.iterdir()] == ["items.parquet"], "no partial file stays behind"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pa.table({"user_id": [1], "age": [3]}), r"table users: unknown columns \['age'\]"),
        (pa.table({"segment": ["a"]}), "table users: column user_id is missing"),
        (pa.table({"user_id": [1.5]}), "table users, column user_id: .*truncated"),
    ],
)
def test_rows_that_break_the_contract_are_refused_and_the_old_file_stays(tmp_path, rows, message):
    good = write_table(USERS, pa.table({"user_id": [7]}), tmp_path).read_bytes()
    with pytest.raises(DataError, match=message):
        write_table(USERS, rows, tmp_path)
    assert (tmp_path / "users.parquet").read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["users.parquet"]


def test_reading_names_the_table_and_the_reason(tmp_path):
    with pytest.raises(
        DataError, match=r"table items: .* is missing; a data folder holds interactions.parquet"
    ):
        read_table(ITEMS, tmp_path)
    pq.write_table(pa.table({"item_id": [1]}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"items.parquet lacks columns \['text', 'vector'\]; write it again"):
        read_table(ITEMS, tmp_path, ["vector", "item_id", "text"])
    (tmp_path / "items.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"table items: cannot read .*; write it again"):
        read_table(ITEMS, tmp_path)
