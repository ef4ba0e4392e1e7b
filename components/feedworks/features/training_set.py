"""Training sets: samples joined with features as they were known, by Feast's point-in-time join.

A row of a view is taken where event_time <= time of the sample <= event_time + ttl, and of those the latest.
Feast keeps neither the order of rows nor the whole of a whole number beside nulls in a pandas frame, so rows
are numbered, read back as Arrow and checked. Shapes: N samples.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.features import (
    ITEM_PROFILE,
    SERVICES,
    FeatureTable,
    student_service,
    teacher_service,
)
from feedworks.contracts.files import read_table, write_table
from feedworks.contracts.retention import CATALOGUE, CONTENT_FILE, OBSERVABLES_FILE, SAMPLES
from feedworks.contracts.tables import ROW_GROUP_ROWS
from feedworks.errors import DataError
from feedworks.features.definitions import define
from feedworks.features.schema import ServiceSchema
from feedworks.progress import say
from feedworks.storage import atomic_folder

if TYPE_CHECKING:
    import pandas as pd
    from feast import FeatureStore

PROJECT = "feedworks"
_ROW, _TIME = "__row", "event_timestamp"
# The id of an item that a sample does not have: no contract allows it, so that no table has a row of it.
_NO_ITEM = -1


class TrainingSet(NamedTuple):
    """Rows written, and for each view the share of rows, from 0 to 1, for which it had nothing."""

    num_rows: int
    num_missing: dict[str, float]


def build_training_set(samples: Path, tables: Path, observables: Path, content: Path | None) -> TrainingSet:
    """Writes what the models train from, one row per sample in the order of the samples.

    Where samples have a landing item, the services are those that read it, as of bid_time, too.

    Args:
        samples: Folder with samples.parquet and catalogue.parquet.
        tables: Folder with the feature tables.
        observables: Folder to write: the columns of the samples and all features that the student may read,
            as of bid_time; features.json of that service; the catalogue.
        content: Folder to write: sample_id and the features that only the teacher may read, as of
            content_end; features.json of its service. None to leave them out.

    Raises:
        DataError: A table is missing or does not keep its contract's types.
    """
    rows = read_table(SAMPLES, samples)
    landing_item = rows["ad_item"].null_count < rows.num_rows
    student_name, teacher_name = student_service(landing_item), teacher_service(landing_item)
    student, teacher = SERVICES[student_name], SERVICES[teacher_name]
    say(f"joining {rows.num_rows} samples with {', '.join(table.name for table in student)}")
    asked = rows.append_column(ITEM_PROFILE.entity, rows["ad_item"].fill_null(_NO_ITEM))
    features = point_in_time(asked, "bid_time", tables, student)
    missing = missing_share(features, student)
    with atomic_folder(observables) as folder:
        columns = {name: rows[name] for name in rows.column_names}
        columns |= {name: features[name] for name in features.column_names}
        _write(pa.table(columns), folder / OBSERVABLES_FILE)
        ServiceSchema.of(student_name).require_servable().write(folder)
        shutil.copyfile(CATALOGUE.path(samples), CATALOGUE.path(folder))
    if content is not None:
        hidden = tuple(table for table in teacher if table.training_only)
        features = point_in_time(rows, "content_end", tables, hidden)
        missing |= missing_share(features, hidden)
        with atomic_folder(content) as folder:
            columns = {"sample_id": rows["sample_id"]}
            columns |= {name: features[name] for name in features.column_names}
            _write(pa.table(columns), folder / CONTENT_FILE)
            ServiceSchema.of(teacher_name).write(folder)
    return TrainingSet(rows.num_rows, missing)


def point_in_time(rows: pa.Table, time: str, folder: Path, tables: Iterable[FeatureTable]) -> pa.Table:
    """The features of `tables` as they were known at column `time` of each row, N rows in the same order.

    Where a table has no row for it that is young enough, its columns are null.

    Args:
        rows: N rows with the ids of all entities concerned and `time`, a timestamp in UTC.
        time: Name of the column with the time.
        folder: Folder with the feature tables.
        tables: Feature tables; no two may share the name of a feature.

    Raises:
        DataError: A table is missing or does not keep its contract's types, an id or a time is null, or the
            join did not give each row back once.
    """
    kept = tuple(tables)
    asked = _asked(rows, time, kept)
    references = [f"{table.name}:{column.name}" for table in kept for column in table.features]
    with conforming(folder, kept) as files, temporary_store(files, kept) as store, quiet_stores():
        if not rows.num_rows:
            return _schema(kept).empty_table()  # Feast asks an empty frame for its first time
        joined = store.get_historical_features(entity_df=asked, features=references).to_arrow()
    return _in_order(joined, rows.num_rows, kept)


def missing_share(features: pa.Table, tables: Iterable[FeatureTable]) -> dict[str, float]:
    """For each table the share of rows of a join, from 0 to 1, for which it had nothing."""
    shares = {}
    for table in tables:
        always = next(column.name for column in table.features if not column.nullable)
        shares[table.name] = features[always].null_count / max(features.num_rows, 1)
    return shares


@contextmanager
def conforming(folder: Path, tables: Iterable[FeatureTable]) -> Iterator[Path]:
    """A folder with the feature tables in their contract's types; only those of other types are copied.

    Raises:
        DataError: A table is missing, unreadable, lacks a column or has a type that does not fit.
    """
    with tempfile.TemporaryDirectory() as workplace:
        for table in tables:
            path, found = table.path(folder), Path(workplace)
            if path.is_file() and _schema_of(path).equals(table.schema):
                table.path(found).symlink_to(path.absolute())
            else:
                write_table(table, read_table(table, folder), found)
        yield Path(workplace)


@contextmanager
def quiet_stores() -> Iterator[None]:
    """No warnings of Feast's stores about themselves: how ibis uses DuckDB, that Spark is experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fetch_arrow_table", DeprecationWarning)
        warnings.filterwarnings("ignore", "The spark .* experimental feature", RuntimeWarning)
        yield


@contextmanager
def temporary_store(
    folder: Path, tables: Iterable[FeatureTable], offline: str = "duckdb"
) -> Iterator[FeatureStore]:
    """A Feast store over the feature tables in `folder`, with a registry that goes with the block."""
    from feast import FeatureStore, RepoConfig

    with tempfile.TemporaryDirectory() as registry:
        config = RepoConfig(
            project=PROJECT,
            provider="local",
            registry=str(Path(registry) / "registry.db"),
            offline_store={"type": offline},
            online_store=None,
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply(define(folder, tables).objects)
        yield store


def _asked(rows: pa.Table, time: str, tables: tuple[FeatureTable, ...]) -> pd.DataFrame:
    columns = {entity: rows[entity] for entity in dict.fromkeys(table.entity for table in tables)}
    for name in (*columns, time):
        if nulls := rows[name].null_count:
            raise DataError(f"samples, column {name}: {nulls} rows are null; fill or drop them")
    columns[_TIME] = rows[time]
    columns[_ROW] = pa.array(np.arange(rows.num_rows))
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame


def _in_order(joined: pa.Table, num_rows: int, tables: tuple[FeatureTable, ...]) -> pa.Table:
    order_N = joined[_ROW].to_numpy()
    back_N = np.argsort(order_N, kind="stable")
    if not np.array_equal(order_N[back_N], np.arange(num_rows)):
        raise DataError(f"the join gave {len(order_N)} rows back for {num_rows}; report this with the tables")
    schema = _schema(tables)
    return joined.select(schema.names).take(back_N).cast(schema)


def _schema(tables: tuple[FeatureTable, ...]) -> pa.Schema:
    return pa.schema([pa.field(c.name, c.type) for table in tables for c in table.features])


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path).remove_metadata()
    except (pa.ArrowException, OSError):
        return pa.schema([])  # reading the whole of it will tell why


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
