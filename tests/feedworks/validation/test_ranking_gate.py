"""The gate on ranking data folders: each way in which they can be wrong is seen and told in one line."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.ranking import FIELDS_FILE, SPLITS
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.errors import DataError
from feedworks.validation.gate import require_valid, validate_folder

NUM_ROWS = {"train": 500, "valid": 100, "test": 100}


@pytest.fixture
def folder(tmp_path):
    return write_synthetic_ranking(tmp_path / "data", num_users=40, num_items=30, num_rows=500)


def message(folder, **arguments):
    with pytest.raises(DataError) as caught:
        require_valid(folder, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(folder, split, **columns):
    """Replaces columns, given as a function of their values or as new ones; None drops one."""
    path = folder / f"{split}.parquet"
    rows = pq.read_table(path)
    for name, by in columns.items():
        place = rows.column_names.index(name)
        if by is None:
            rows = rows.remove_column(place)
        else:
            new = by(rows[name].to_pylist()) if callable(by) else by
            rows = rows.set_column(place, name, new if isinstance(new, pa.Array) else pa.array(new))
    pq.write_table(rows, path)


def with_first(value, count=1):
    return lambda values: pa.array([value] * count + values[count:], pa.int64())


def test_good_data_pass_and_the_kind_is_seen(folder):
    result = require_valid(folder)
    assert result.rows == NUM_ROWS
    assert {check.table for check in result.checks} == {"fields", *SPLITS}
    assert require_valid(folder, kind="ranking").checks == result.checks


def test_the_report_shows_every_split(folder, tmp_path):
    change(folder, "valid", label=with_first(3))
    text = message(folder, report_path=tmp_path / "report.html")
    assert text.endswith(f"; report: {tmp_path / 'report.html'}")
    report = (tmp_path / "report.html").read_text()
    assert 'Data validation: <span class="failed">failed' in report
    assert all(f"<h2>{name} " in report for name in ("fields", *SPLITS))
    assert "row 0: label=3" in report


@pytest.mark.parametrize("split", SPLITS)
def test_a_missing_split(folder, split):
    (folder / f"{split}.parquet").unlink()
    text = message(folder)
    assert f"table {split}: is missing" in text
    assert "a data folder holds train.parquet, valid.parquet, test.parquet, fields.json" in text


def test_missing_fields(folder):
    (folder / FIELDS_FILE).unlink()
    assert "table fields: cannot be used" in message(folder)
    assert "fields.json is missing" in message(folder)


def test_wrong_fields(folder):
    content = json.loads((folder / FIELDS_FILE).read_text())
    content["fields"][0]["size"] = -1
    (folder / FIELDS_FILE).write_text(json.dumps(content))
    text = message(folder)
    assert "table fields: cannot be used" in text
    assert "field user: size -1 is not at least 1" in text
    assert "; write fields.json as" in text


def test_an_interactions_folder_is_no_ranking_folder(tmp_path):
    folder = write_synthetic(tmp_path, num_users=20, num_items=20).folder
    assert require_valid(folder).rows.keys() == {"items", "users", "interactions"}
    assert "table fields: cannot be used" in message(folder, kind="ranking")


def test_a_ranking_folder_is_no_interactions_folder(folder):
    assert "table interactions: is missing" in message(folder, kind="interactions")


@pytest.mark.parametrize("content", [b"", b"PAR1", "half"])
def test_an_empty_or_truncated_file(folder, content):
    path = folder / "test.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    problem = "is empty (0 bytes)" if content == b"" else "is truncated or no parquet file"
    assert f"table test: {problem}" in message(folder)


def test_a_split_without_rows(folder):
    path = folder / "valid.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "table valid: has 0 rows" in message(folder)


@pytest.mark.parametrize("column", ["label", "user", "last_8"])
def test_a_missing_column(folder, column):
    change(folder, "train", **{column: None})
    assert f"table train, column {column}: is missing in all 500 rows" in message(folder)


@pytest.mark.parametrize(
    ("as_type", "word"),
    [(pa.float64(), "double"), (pa.string(), "string"), (pa.int32(), "int32"), (pa.bool_(), "bool")],
)
def test_a_wrong_type(folder, as_type, word):
    change(folder, "train", label=lambda values: pa.array(values).cast(as_type))
    assert f"table train, column label: has type {word}, not int64," in message(folder)


@pytest.mark.parametrize("column", ["label", "user", "price"])
def test_nulls(folder, column):
    change(folder, "test", **{column: with_first(None, 3)})
    assert f"table test, column {column}: 3 of 100 rows are null (row 0: {column}=<NA>;" in message(folder)


@pytest.mark.parametrize("value", [2, -1])
def test_a_label_that_is_neither_0_nor_1(folder, value):
    change(folder, "train", label=with_first(value))
    text = message(folder)
    assert f"table train, column label: 1 of 500 rows are outside 0 to 1 (row 0: label={value})" in text


@pytest.mark.parametrize(("column", "size"), [("user", 40), ("item", 30), ("hour", 24), ("last_1", 31)])
def test_an_id_out_of_range(folder, column, size):
    change(folder, "valid", **{column: with_first(size, 2)})
    text = message(folder)
    assert (
        f"table valid, column {column}: 2 of 100 rows are outside 0 to {size - 1} (row 0: {column}=" in text
    )
    change(folder, "valid", **{column: with_first(-1, 2)})
    assert f"row 0: {column}=-1" in message(folder)


@pytest.mark.parametrize("value", [0, 1])
def test_a_split_with_one_label_alone(folder, value):
    change(folder, "test", label=lambda values: [value] * len(values))
    text = message(folder)
    assert "table test, column label: 100 of 100 rows hold one and the same value" in text
    assert "give the table rows with another value too" in text


def test_columns_that_the_contract_does_not_name_are_not_looked_at(folder):
    rows = pq.read_table(folder / "train.parquet")
    pq.write_table(rows.append_column("in_order", pa.array(["x"] * 500)), folder / "train.parquet")
    assert validate_folder(folder).success
