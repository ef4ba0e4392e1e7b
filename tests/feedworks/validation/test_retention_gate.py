"""The gate on logs of events and on feature tables: each way in which they can be wrong is seen."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.errors import DataError
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.samples import build_samples
from feedworks.validation.gate import require_valid


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_synthetic_retention(tmp_path_factory.mktemp("good") / "data", num_users=8, num_days=30)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "data")


def change(folder, table, column, by):
    path = folder / f"{table}.parquet"
    rows = pq.read_table(path)
    values = rows[column].to_pylist()
    by(values)
    place = rows.column_names.index(column)
    # Without "not null", which a writer of such values would not declare.
    field = pa.field(column, rows.schema.field(column).type)
    pq.write_table(rows.set_column(place, field, pa.array(values, field.type)), path)


def put(value, row=3):
    def by(values):
        values[row] = value

    return by


def message(folder, **arguments):
    with pytest.raises(DataError) as caught:
        require_valid(folder, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_data_pass_and_the_kind_is_seen(folder):
    result = require_valid(folder)
    assert set(result.rows) == {"catalogue", "profiles", "events"}
    (folder / "profiles.parquet").unlink()
    assert set(require_valid(folder, kind="retention").rows) == {"catalogue", "events"}


@pytest.mark.parametrize(
    ("table", "column", "by", "said"),
    [
        ("events", "item_id", put(10**6), "item_id: 1 of"),
        ("events", "item_id", put(10**6), "are not in table catalogue"),
        ("events", "surface", put(16), "are outside 0 to 15"),
        ("events", "engagement", put(1.5), "are outside 0 to 1"),
        ("events", "engagement", put(float("nan")), "are outside 0 to 1"),
        ("events", "engagement", put(None), "are null"),
        ("events", "user_id", put(7, row=0), "stand out of the order user_id, event_time"),
        ("catalogue", "vector", put([1.0]), "do not have 16 numbers like most"),
        ("catalogue", "vector", put([float("inf")] * 16), "hold null, NaN or infinite numbers"),
        ("catalogue", "item_id", put(1), "repeat the key of another row"),
        ("profiles", "tenure_days", put(float("inf")), "are below 0"),
        ("profiles", "segment", put(256), "are outside 0 to 255"),
    ],
)
def test_each_breach_is_named(folder, table, column, by, said):
    change(folder, table, column, by)
    found = message(folder)
    assert f"table {table}, column" in found
    assert said in found


def test_a_log_without_catalogue_is_told_what_a_folder_holds(folder):
    (folder / "catalogue.parquet").unlink()
    assert "events.parquet, catalogue.parquet, profiles.parquet (optional)" in message(folder)


def test_lists_of_any_length_are_right_in_feature_tables_and_nan_in_them_is_not(folder, tmp_path):
    build_samples(folder, tmp_path / "samples", tmp_path / "tables", SamplesConfig(embargo=False))
    lengths = {
        len(items)
        for items in pq.read_table(tmp_path / "tables" / "interaction_aggregates.parquet")[
            "history_item"
        ].to_pylist()
    }
    assert len(lengths) > 1
    assert require_valid(tmp_path / "tables", kind="features").rows["interaction_aggregates"] > 0
    change(tmp_path / "tables", "interaction_aggregates", "history_engagement", put([0.1, float("nan")]))
    assert "history_engagement: 1 of" in message(tmp_path / "tables", kind="features")
