"""Feast's online store interface over packed rows in Redis.

    online_store:
      type: feedworks.features.packed_store.PackedOnlineStore
      connection_string: "127.0.0.1:6379"

The same values as Feast's own Redis store, with three differences: a row that is not there is NOT_FOUND, not
PRESENT; of two writers at the same time the newer event wins (Feast compares first and writes later); and a
row as old as the stored one replaces it unless it was created earlier, so that corrections arrive.
A service that reads in numpy takes `feedworks.features.reading.PackedSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import redis
import redis.asyncio as redis_asyncio
from feast import Entity, FeatureView, RepoConfig
from feast.feature_service import FeatureService
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from feedworks.errors import ConfigError, DataError
from feedworks.features.feast_values import layout_of_view, message_of, values_of
from feedworks.features.packed_redis import (
    ROWS_PER_CALL,
    WRITE_NEWER,
    entity_keys,
    key_prefix,
    project_prefix,
    scan_pattern,
    view_prefix,
    write_newer,
)
from feedworks.features.packed_response import plan
from feedworks.features.packed_rows import RowLayout

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Read = tuple[datetime | None, dict[str, Value] | None]
CONNECT_WITHIN_S = 5.0
ANSWER_WITHIN_S = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PackedOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of the store in feature_store.yaml."""

    type: Literal["feedworks.features.packed_store.PackedOnlineStore"] = (
        "feedworks.features.packed_store.PackedOnlineStore"
    )
    """Selects the store."""

    connection_string: str = "localhost:6379"
    """HOST:PORT,name=value,...: the form that Feast's Redis store takes; one server, no cluster."""

    key_ttl_seconds: int | None = None
    """Redis forgets a row this long after it was written; never if not set."""

    old_version_seconds: int = 7 * 24 * 3600
    """After `apply` changed a view, models of before may read rows of the old version for so long."""


class PackedOnlineStore(OnlineStore):
    """Packed rows in Redis; see the module."""

    def __init__(self) -> None:
        self._client: redis.Redis | None = None
        self._client_async: redis_asyncio.Redis | None = None
        self._layouts: dict[Any, RowLayout] = {}

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes both have an asynchronous form."""
        return SupportedAsyncMethods(read=True, write=True)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; one that is older than the stored one is left out.

        Raises:
            DataError: a value is not of its feature's type; it names the row, and no row is written.
        """
        keys, rows = self._packed(config, table, data)
        write_newer(self._redis(config), keys, rows, config.online_store.key_ttl_seconds or 0)
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As `online_write_batch`."""
        keys, rows = self._packed(config, table, data)
        script = self._redis_async(config).register_script(WRITE_NEWER)
        expire = str(config.online_store.key_ttl_seconds or 0)
        for start in range(0, len(keys), ROWS_PER_CALL):
            some = slice(start, start + ROWS_PER_CALL)
            await script(keys=keys[some], args=[*rows[some], expire])
        if progress:
            progress(len(data))

    def write_table(self, config: RepoConfig, view: FeatureView, rows: pa.Table) -> int:
        """Write N rows that are an Arrow table, without making messages of them.

        Args:
            config: of the feature store.
            view: of one int64 join key.
            rows: the join key, the event time in microseconds, and all features in their Arrow types.

        Returns:
            How many were written; the others are older than what is stored.
        """
        layout = self.layout(view)
        assert view.batch_source is not None
        event_us = rows[view.batch_source.timestamp_field].cast(pa.int64()).to_numpy()
        keys = entity_keys(config.project, layout, rows[layout.entity].to_numpy())
        expire_s = config.online_store.key_ttl_seconds or 0
        return write_newer(self._redis(config), keys, layout.encode_table(rows, event_us), expire_s)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Read]:
        """Read the rows of some entities: (event time, values), (None, None) where there is none."""
        layout, keys = self._keys(config, table, entity_keys)
        rows: Any = self._redis(config).mget(keys) if keys else []
        return _messages(layout, rows, requested_features)

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Read]:
        """As `online_read`."""
        layout, keys = self._keys(config, table, entity_keys)
        rows = await self._redis_async(config).mget(keys) if keys else []
        return _messages(layout, rows, requested_features)

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: list[dict[str, Any]] | Mapping[str, Any],
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """As Feast's, by one MGET for all views; requests of unusual form take Feast's own way."""
        asked = plan(self.layout, registry, project, features, entity_rows, full_feature_names)
        if asked is None or include_feature_view_version_metadata:
            return super().get_online_features(
                config,
                features,
                entity_rows,
                registry,
                project,
                full_feature_names,
                include_feature_view_version_metadata,
            )
        pool = self._redis(config).connection_pool
        connection: Any = pool.get_connection()
        try:
            connection.send_packed_command([asked.command])
            return asked.answer(connection.read_response())
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    async def get_online_features_async(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: list[dict[str, Any]] | Mapping[str, Any],
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """As `get_online_features`."""
        asked = plan(self.layout, registry, project, features, entity_rows, full_feature_names)
        if asked is None or include_feature_view_version_metadata:
            return await super().get_online_features_async(
                config,
                features,
                entity_rows,
                registry,
                project,
                full_feature_names,
                include_feature_view_version_metadata,
            )
        pool: Any = self._redis_async(config).connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(asked.command)
            return asked.answer(await connection.read_response())
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Delete the rows of views that are gone; let rows of old versions expire."""
        client = self._redis(config)
        for view in tables_to_delete:
            _delete(client, view_prefix(config.project, view.name))
        kept = {
            view_prefix(config.project, view.name): key_prefix(config.project, self.layout(view))
            for view in tables_to_keep
        }
        pattern = scan_pattern(project_prefix(config.project))
        keys = client.scan_iter(pattern, count=ROWS_PER_CALL)
        old = (key for key in keys if any(_is_old(key, *prefixes) for prefixes in kept.items()))
        for some in _chunks(old):
            with client.pipeline(transaction=False) as pipe:
                for key in some:
                    pipe.expire(key, config.online_store.old_version_seconds, nx=True)
                pipe.execute()

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Delete the rows of these views."""
        for view in tables:
            _delete(self._redis(config), view_prefix(config.project, view.name))

    def layout(self, view: FeatureView) -> RowLayout:
        """The packed layout of a view.

        Raises:
            ConfigError: the view is not served, `online=False`: its rows are neither written nor read.
        """
        if not view.online:
            raise ConfigError(f"view {view.name} is for training only; no online store holds it")
        key = (view.name, tuple(view.join_keys), tuple((f.name, f.dtype) for f in view.features))
        if key not in self._layouts:
            self._layouts[key] = layout_of_view(view)
        return self._layouts[key]

    def _packed(
        self, config: RepoConfig, view: FeatureView, data: Sequence[Row]
    ) -> tuple[list[bytes], list[bytes]]:
        layout, keys = self._keys(config, view, [entity for entity, *_ in data])
        rows = []
        for entity, values, event_time, created_time in data:
            created_us = 0 if created_time is None else _microseconds(created_time)
            try:
                rows.append(layout.encode(values_of(layout, values), _microseconds(event_time), created_us))
            except DataError as error:
                raise DataError(f"{error} (in the row of {_name(entity)})") from None
        return keys, rows

    def _keys(
        self, config: RepoConfig, view: FeatureView, entities: Sequence[EntityKey]
    ) -> tuple[RowLayout, list[bytes]]:
        layout = self.layout(view)
        prefix = key_prefix(config.project, layout)
        version = config.entity_key_serialization_version
        return layout, [prefix + serialize_entity_key(entity, version) for entity in entities]

    def _redis(self, config: RepoConfig) -> redis.Redis:
        if self._client is None:
            self._client = redis.Redis(**_address(config))
        return self._client

    def _redis_async(self, config: RepoConfig) -> redis_asyncio.Redis:
        if self._client_async is None:
            self._client_async = redis_asyncio.Redis(**_address(config))
        return self._client_async


def _address(config: RepoConfig) -> dict[str, Any]:
    nodes, settings = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
    address = {"host": nodes[0]["host"], "port": int(nodes[0]["port"])}
    # The system's own limits, with no word: two minutes for each of several tries to connect, a quarter of an
    # hour until a connection to a machine that went away is given up.
    limits = {"socket_connect_timeout": CONNECT_WITHIN_S, "socket_timeout": ANSWER_WITHIN_S}
    return {**limits, **settings, **address}


def _messages(layout: RowLayout, rows: Sequence[bytes | None], requested: Sequence[str] | None) -> list[Read]:
    wanted = [(i, *field) for i, field in enumerate(layout.fields) if not requested or field[0] in requested]
    found: list[Read] = []
    for row in layout.decode_rows(rows):
        if row is None:
            found.append((None, None))
            continue
        time_us, values = row
        messages = {name: message_of(type_, values[i]) for i, name, type_ in wanted}
        found.append((_EPOCH + timedelta(microseconds=time_us), messages))
    return found


def _microseconds(time: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as everywhere in Feast."""
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _name(entity: EntityKey) -> str:
    values = (getattr(value, value.WhichOneof("val")) for value in entity.entity_values)
    return ", ".join(f"{key} {value}" for key, value in zip(entity.join_keys, values, strict=True))


def _delete(client: redis.Redis, prefix: bytes) -> None:
    for some in _chunks(client.scan_iter(scan_pattern(prefix), count=ROWS_PER_CALL)):
        client.unlink(*some)


def _is_old(key: bytes, of_view: bytes, of_version: bytes) -> bool:
    return key.startswith(of_view) and not key.startswith(of_version)


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    keys = iter(keys)
    while some := list(islice(keys, ROWS_PER_CALL)):
        yield some
