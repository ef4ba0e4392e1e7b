"""Feature tables as Feast objects: the columns of a contract are the fields of its view.

Feast compares objects by what they hold, so the same contract gives an equal object every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from feedworks.contracts.features import FeatureTable
from feedworks.errors import ConfigError

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureView, Field
    from feast.data_source import DataSource, PushSource

# What reads the parquet files: DuckDB, which comes with Feast, or Spark.
Offline = Literal["duckdb", "spark"]
# Names of the entities by their columns.
ENTITIES = {"user_id": "user", "author_id": "author", "room_id": "live_room", "item_id": "item"}
_ENTITY_DESCRIPTIONS = {
    "user_id": "Who uses the product.",
    "author_id": "Who makes items and streams.",
    "room_id": "A live stream, from its start to its end.",
    "item_id": "What is recommended.",
}
PLATFORM_OWNER = "platform"


def entity_of(column: str) -> Entity:
    """The Feast entity whose id stands in `column`.

    Raises:
        ConfigError: No entity has such a column.
    """
    from feast import Entity, ValueType

    if column not in ENTITIES:
        raise ConfigError(f"no entity has the column {column!r}; known: {', '.join(ENTITIES)}")
    return Entity(
        name=ENTITIES[column],
        join_keys=[column],
        value_type=ValueType.INT64,
        description=_ENTITY_DESCRIPTIONS[column],
        owner=PLATFORM_OWNER,
    )


def source_of(table: FeatureTable, folder: Path, offline: Offline = "duckdb") -> DataSource:
    """Where the rows of a feature table lie: its parquet file in `folder`, by its absolute path.

    Feast's stores take a relative path from different folders: Dask from the repository, DuckDB from the
    process.
    """
    named: dict[str, Any] = {
        "name": f"{table.name}_file",
        "path": str(table.path(folder).absolute()),
        "timestamp_field": table.event_time,
        "description": table.description,
        "owner": table.owner,
        "tags": dict(table.tags),
    }
    if offline == "duckdb":
        from feast import FileSource
        from feast.data_format import ParquetFormat

        return FileSource(file_format=ParquetFormat(), **named)
    import warnings

    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "experimental", since its first release
        return SparkSource(file_format="parquet", **named)


def push_source_of(table: FeatureTable, batch_source: DataSource) -> PushSource:
    """Where the rows of a stream table are pushed to; `batch_source` holds those of the past."""
    from feast import PushSource

    return PushSource(
        name=f"{table.name}_push",
        batch_source=batch_source,
        description=table.description,
        owner=table.owner,
        tags=dict(table.tags),
    )


def view_of(table: FeatureTable, source: DataSource) -> FeatureView:
    """The view of a feature table; `source` is its file, or for a stream table its push source.

    The entity is named in the schema, so that Feast opens no file to learn its type. A view that holds what
    is known only after the decision is not served: it can not be materialised.
    """
    from feast import FeatureView

    return FeatureView(
        name=table.name,
        entities=[entity_of(table.entity)],
        schema=[field_of(table, name) for name in (table.entity, *(c.name for c in table.features))],
        source=source,
        ttl=timedelta(seconds=table.ttl_s),
        online=not table.training_only,
        description=table.description,
        tags=dict(table.tags),
        owner=table.owner,
    )


def service_of(
    name: str, services: Mapping[str, Sequence[FeatureTable]], views: Mapping[str, FeatureView]
) -> FeatureService:
    """The feature service `name` of the contracts; `views` are known by the names of their tables."""
    from feast import FeatureService

    tables = services[name]
    use = "training-only" if any(table.training_only for table in tables) else "serving"
    return FeatureService(
        name=name,
        features=[views[table.name] for table in tables],
        description=f"Reads {', '.join(table.name for table in tables)}.",
        tags={"use": use},
        owner=tables[0].owner,
    )


def field_of(table: FeatureTable, name: str) -> Field:
    """One column as a Feast field."""
    from feast import Field

    column = table.column(name)
    return Field(name=name, dtype=feast_type(column.type), description=column.description)


def feast_type(type_: pa.DataType) -> Any:
    """Feast's type for values of an Arrow type.

    Raises:
        ConfigError: Feast has none that would give the values back unchanged.
    """
    from feast import types

    if pa.types.is_list(type_):
        return types.Array(feast_type(type_.value_type))
    known = {
        pa.int32(): types.Int32,
        pa.int64(): types.Int64,
        pa.float32(): types.Float32,
        pa.float64(): types.Float64,
        pa.bool_(): types.Bool,
        pa.string(): types.String,
        pa.binary(): types.Bytes,
        pa.timestamp("us", tz="UTC"): types.UnixTimestamp,
    }
    if type_ not in known:
        raise ConfigError(f"no feature can be of the type {type_}; known: {', '.join(map(str, known))}")
    return known[type_]
