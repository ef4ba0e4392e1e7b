"""Feast stores on a file registry for tests: the same views on SQLite, Feast's Redis and the packed store."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta

NOW = datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
PACKED = "feedworks.features.packed_store.PackedOnlineStore"
ORDERED = "feedworks.features.ordered_store.OrderedSqliteOnlineStore"
ONLINE = ("ordered", "redis", "packed")


def online_config(kind, folder, port):
    if kind in ("sqlite", "ordered"):
        return {"type": ORDERED if kind == "ordered" else "sqlite", "path": str(folder / f"{kind}.db")}
    return {"type": PACKED if kind == "packed" else "redis", "connection_string": f"127.0.0.1:{port}"}


def open_store(kind, folder, port, objects, project="test"):
    from feast import FeatureStore, RepoConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = RepoConfig(
        project=project,
        provider="local",
        registry=str(folder / f"{kind}-registry.db"),
        online_store=online_config(kind, folder, port),
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    store.apply(objects)
    return store


def make_view(name, schema, ttl_s=3600, entity="user_id", value_type=None):
    """A view with a push source, and its entity."""
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Int64, from_value_type

    value_type = value_type or ValueType.INT64
    key = Entity(name=entity.removesuffix("_id"), join_keys=[entity], value_type=value_type)
    dtype = Int64 if value_type is ValueType.INT64 else from_value_type(value_type)
    batch = FileSource(name=f"{name}_file", path=f"/nowhere/{name}.parquet", timestamp_field="event_time")
    view = FeatureView(
        name=name,
        entities=[key],
        ttl=timedelta(seconds=ttl_s),
        schema=[Field(name=entity, dtype=dtype), *(Field(name=n, dtype=t) for n, t in schema.items())],
        source=PushSource(name=f"{name}_push", batch_source=batch),
    )
    return key, view


def write(store, view, entity_id, values, time, created=None):
    """Write one row of Python values through the online store's own interface."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values

    types = {field.name: field.dtype.to_value_type() for field in view.features}
    row = {name: python_values_to_proto_values([value], types[name])[0] for name, value in values.items()}
    entity_type = view.entity_columns[0].dtype.to_value_type()
    key = EntityKey(
        join_keys=view.join_keys, entity_values=python_values_to_proto_values([entity_id], entity_type)
    )
    store._get_provider().online_write_batch(store.config, view, [(key, row, time, created)], None)


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)
