"""Feast's SQLite store, with the one rule that it lacks: an older event never overwrites a newer one.

    online_store:
      type: feedworks.features.ordered_store.OrderedSqliteOnlineStore
      path: data/online.db

Event times are kept in microseconds; Feast's own store cuts them to seconds. Of two rows with the same event
time the one stays that was created later, or came later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from feast import FeatureView, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feedworks.errors import ConfigError

# SQLite takes 32,766 parameters in a statement.
KEYS_PER_QUERY = 10_000
WAIT_MS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UPSERT = """
INSERT INTO {table} (entity_key, feature_name, value, event_ts, created_ts) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (entity_key, feature_name) DO UPDATE
SET value = excluded.value, event_ts = excluded.event_ts, created_ts = excluded.created_ts
WHERE excluded.event_ts > event_ts OR (excluded.event_ts = event_ts AND excluded.created_ts >= created_ts)
"""
# The casts keep the driver from reading the numbers as seconds.
_SELECT = """
SELECT entity_key, feature_name, value, CAST(event_ts AS INTEGER) FROM {table} WHERE entity_key IN ({keys})
"""


class OrderedSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Settings of the store in feature_store.yaml; those of Feast's SQLite store."""

    type: Literal["feedworks.features.ordered_store.OrderedSqliteOnlineStore"] = (
        "feedworks.features.ordered_store.OrderedSqliteOnlineStore"  # type: ignore[assignment]
    )
    """Selects the store."""


class OrderedSqliteOnlineStore(SqliteOnlineStore):
    """SQLite that keeps the newest event; see the module."""

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows in one transaction, each only where it is not older than the stored one."""
        version = config.entity_key_serialization_version
        rows = (
            (key, name, value.SerializeToString(), event_us, created_us)
            for key, values, event_us, created_us in (
                (serialize_entity_key(entity, version), values, _microseconds(event), _microseconds(created))
                for entity, values, event, created in data
            )
            for name, value in values.items()
        )
        with self._connection(config) as connection:
            connection.executemany(_UPSERT.format(table=_quoted(config, table)), rows)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Read the rows of some entities: (event time, values), (None, None) where there is none."""
        version = config.entity_key_serialization_version
        keys = [serialize_entity_key(entity, version) for entity in entity_keys]
        found: dict[bytes, tuple[datetime, dict[str, Value]]] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            query = _SELECT.format(table=_quoted(config, table), keys=",".join("?" * len(some)))
            for key, name, value, event_us in self._connection(config).execute(query, some):
                if key not in found:
                    found[key] = (_EPOCH + timedelta(microseconds=event_us), {})
                found[key][1][name] = Value.FromString(value)
        return [found.get(key, (None, None)) for key in keys]

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        opened = self._conn is not None
        connection: sqlite3.Connection = self._get_conn(config)
        if not opened:
            connection.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
            # Readers and one writer do not wait for each other.
            connection.execute("PRAGMA journal_mode = WAL")
        return connection


def _quoted(config: RepoConfig, table: FeatureView) -> str:
    if not table.online:
        raise ConfigError(f"view {table.name} is for training only; no online store holds it")
    name = compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
    return '"' + name.replace('"', '""') + '"'


def _microseconds(time: datetime | None) -> int:
    """Microseconds since 1970; 0 where there is no time. A time without a zone is UTC, as in all of Feast."""
    if time is None:
        return 0
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
