import json

import pyarrow as pa
import pytest

from feedworks.contracts.files import read_table, write_table
from feedworks.contracts.ranking import FIELDS_FILE, Field, RankingFields, read_fields, write_fields
from feedworks.errors import DataError

FIELDS = RankingFields(
    fields=(
        Field(name="user", side="user", size=5),
        Field(name="item", side="item", size=7),
        Field(name="hour", side="context", size=24),
        Field(name="last_1", side="user", size=8, history_of="item"),
        Field(name="price", side="item", size=3),
    )
)


def test_fields_come_back_as_they_were_written(tmp_path):
    write_fields(FIELDS, tmp_path)
    assert read_fields(tmp_path) == FIELDS
    first = (tmp_path / FIELDS_FILE).read_bytes()
    write_fields(read_fields(tmp_path), tmp_path)
    assert (tmp_path / FIELDS_FILE).read_bytes() == first


def test_the_sides_of_fields():
    assert [field.name for field in FIELDS.of_user] == ["user", "hour"]
    assert [field.name for field in FIELDS.of_item] == ["item", "price"]
    assert [field.name for field in FIELDS.history] == ["last_1"]


def test_the_tables_hold_a_label_and_the_fields_within_their_sizes(tmp_path):
    tables = FIELDS.tables()
    assert [table.file_name for table in tables] == ["train.parquet", "valid.parquet", "test.parquet"]
    for table in tables:
        assert table.schema.names == ["label", "user", "item", "hour", "last_1", "price"]
        assert {column.name: (column.minimum, column.maximum) for column in table.columns} == {
            "label": (0, 1),
            "user": (0, 4),
            "item": (0, 6),
            "hour": (0, 23),
            "last_1": (0, 7),
            "price": (0, 2),
        }
        assert table.key == table.sorted_by == ()
    rows = pa.table({name: [0, 1] for name in tables[0].schema.names})
    write_table(tables[0], rows, tmp_path)
    assert read_table(tables[0], tmp_path).equals(rows.cast(tables[0].schema))
    with pytest.raises(DataError, match=r"holds train.parquet, valid.parquet, test.parquet, fields.json"):
        read_table(tables[1], tmp_path)


def changed(**changes):
    """The fields as they stand in the file, with one changed."""
    rows = [
        {"name": "user", "side": "user", "size": 5},
        {"name": "item", "side": "item", "size": 7},
        {"name": "last_1", "side": "user", "size": 8, "history_of": "item"},
    ]
    number = changes.pop("row", 0)
    rows[number] = {key: value for key, value in (rows[number] | changes).items() if value is not None}
    return {"format": 1, "fields": rows}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "expected an object, found list"),
        ({"format": 2, "fields": []}, "expected format 1, found 2"),
        ({"format": 1}, "expected a list of fields"),
        ({"format": 1, "fields": []}, "no field of the side user or context"),
        ({"format": 1, "fields": ["user"]}, "expected an object for each field, found 'user'"),
        (changed(name=None), "lacks name"),
        (changed(size=None), "field 'user' lacks size"),
        (changed(size="5"), "field 'user': size is '5', expected int"),
        (changed(size=True), "field 'user': size is True, expected int"),
        (changed(size=5.0), "size is 5.0, expected int"),
        (changed(size=0), "field user: size 0 is not at least 1"),
        (changed(colour="red"), "unknown entry 'colour'; known: name, side, size, history_of"),
        (changed(name="label"), "a field cannot be called 'label'"),
        (changed(name=""), "a field cannot be called ''"),
        (changed(name="item"), "field item stands twice"),
        (changed(side="seller"), "field user: side 'seller' is none of user, context, item"),
        (changed(side="item"), "no field of the side user or context"),
        (changed(side="user", row=1), "field last_1: history_of 'item' is no field of the item"),
        (changed(history_of="price", row=2), "history_of 'price' is no field of the item"),
        (
            changed(size=7, row=2),
            "field last_1: a history is of the side user and has the ids of its field plus 1",
        ),
        (changed(side="context", row=2), "field last_1: a history is of the side user"),
    ],
)
def test_a_wrong_fields_file_is_told_in_one_line(tmp_path, content, problem):
    (tmp_path / FIELDS_FILE).write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_fields(tmp_path)
    assert problem in str(caught.value)
    assert str(tmp_path / FIELDS_FILE) in str(caught.value)
    assert str(caught.value).endswith("; correct it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "is missing"), (b"", "cannot be read"), (b"{", "JSON"), (b"\xff\xfe", "JSON")],
)
def test_a_damaged_fields_file(tmp_path, content, problem):
    if content is not None:
        (tmp_path / FIELDS_FILE).write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_fields(tmp_path)
