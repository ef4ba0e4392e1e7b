"""Reading features for a service: values, when they became known, and whether they may still be used.

Neither of Feast's stores keeps to a view's time to live when it is read, and Redis calls a row that it does
not have PRESENT. Both are decided here, the same for every store: a view's values are null where its row is
missing or older than `ttl_s`, and `status` says which.

Shape letters: N entities.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt

from feedworks.errors import ConfigError, StoreError
from feedworks.features.packed_cells import Bools, Column, Ints
from feedworks.features.packed_redis import MGet
from feedworks.features.packed_rows import Block, RowLayout
from feedworks.features.schema import ServiceSchema, ViewSchema

if TYPE_CHECKING:
    import redis.asyncio as redis_asyncio

# Ids of N entities, which may repeat: plain where all views are of one entity, else by the entity's column.
Keys = Sequence[int] | Mapping[str, Sequence[int]]
FRESH, STALE, MISSING = 0, 1, 2
STATUS = ("fresh", "stale", "missing")
PROJECT = "feedworks"
_SECOND_US = 1_000_000


class OnlineRows(NamedTuple):
    """The features of N entities.

    Attributes:
        columns: feature -> (N,) numbers, (N,) objects for strings and bytes, or N arrays for lists. Where
            there is no value: NaN, 0 or False, None, an empty array.
        null: feature -> (N,) True where there is no value: the view's row is missing or stale, or holds none.
        time_us: view -> (N,) when the row became known, microseconds since 1970 UTC; 0 where it is missing.
        status: view -> (N,) uint8: FRESH, STALE or MISSING.
    """

    columns: dict[str, Column]
    null: dict[str, Bools]
    time_us: dict[str, Ints]
    status: dict[str, npt.NDArray[np.uint8]]

    @property
    def degraded(self) -> Bools:
        """(N,) True where any view is stale or missing."""
        late: Bools = np.logical_or.reduce([status != FRESH for status in self.status.values()])
        return late


class FeatureSource(Protocol):
    """Where a service reads its features."""

    async def read(self, keys: Keys, now_us: int) -> OnlineRows:
        """Read the rows of N entities, which may repeat, as of `now_us` (microseconds since 1970 UTC).

        Where views are of several entities, such as users and the items that they are to see, a row of the
        answer is about one of each.

        Raises:
            ConfigError: ids of an entity are missing, or there are more of one than of another.
            StoreError: the store is down, or has not answered within the time limit.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def open_source(url: str, schema: ServiceSchema, *, timeout_s: float = 0.25) -> FeatureSource:
    """Open a source by its address.

    Args:
        url: `packed+redis://HOST:PORT/DB?project=NAME` for packed rows, or `feast:///FOLDER` for the feature
            repository in that folder, whatever its store.
        schema: what is read.
        timeout_s: limit of one read with all its tries.

    Raises:
        ConfigError: no such kind of address, or the source cannot serve the schema.
        ModelError: the schema has columns that are known only after the decision.
    """
    schema.require_servable()
    parts = urlsplit(url)
    if parts.scheme in ("packed+redis", "packed+rediss"):
        address, project = packed_address(url)
        return PackedSource(address, schema, project, timeout_s=timeout_s)
    if parts.scheme == "feast":
        from feedworks.features.feast_source import FeastSource

        return FeastSource(Path(parts.path), schema, timeout_s=timeout_s)
    raise ConfigError(
        f"feature source {url!r}: expected packed+redis://HOST:PORT/DB?project=NAME or feast:///FOLDER"
    )


def packed_address(url: str) -> tuple[str, str]:
    """The address of Redis, and the project, of `packed+redis://HOST:PORT/DB?project=NAME`.

    Raises:
        ConfigError: the port is none.
    """
    parts = urlsplit(url)
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"feature store {url!r}: {error}; expected HOST:PORT") from None
    project = parse_qs(parts.query).get("project", [PROJECT])[0]
    return parts._replace(scheme=parts.scheme.removeprefix("packed+"), query="").geturl(), project


class PackedSource:
    """Reads packed rows from Redis, all views of a service by one MGET, straight into numpy.

    Args:
        url: redis://HOST:PORT/DB, with user and password if need be.
        schema: whole views, as they were applied.
        project: of the feature store.
        timeout_s: limit of one read with all its tries.
        tries: how often a read is tried where the connection breaks or Redis is still loading.
        max_connections: held open at most; a read waits for a free one within its time limit.
    """

    def __init__(
        self,
        url: str,
        schema: ServiceSchema,
        project: str = PROJECT,
        *,
        timeout_s: float = 0.25,
        tries: int = 2,
        max_connections: int = 32,
    ) -> None:
        self._views = schema.views
        self._layouts = [layout_of(view) for view in schema.views]
        self._mget = MGet(project, self._layouts)
        self._url, self._timeout_s, self._tries = url, timeout_s, tries
        self._max_connections = max_connections
        self._pool: redis_asyncio.BlockingConnectionPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def read(self, keys: Keys, now_us: int) -> OnlineRows:
        """As `FeatureSource.read`."""
        key_N = keys_of_views(keys, self._views)
        if not len(key_N[0]):
            return self.decode([], 0, now_us)
        return self.decode(await self.fetch(*key_N), len(key_N[0]), now_us)

    async def fetch(self, *key_N: Ints) -> list[bytes | None]:
        """The packed rows of keys `(N,)`, the same for all views or one array per view, view after view.

        Raises:
            StoreError: as in `read`.
        """
        from redis.exceptions import BusyLoadingError, RedisError
        from redis.exceptions import ConnectionError as RedisConnectionError

        command = self._mget.command(*key_N)
        error: Exception | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                for attempt in range(self._tries):
                    if attempt:
                        await asyncio.sleep(0.01 * attempt)
                    try:
                        return await self._ask(command)
                    except (RedisConnectionError, BusyLoadingError, OSError) as failed:
                        error = failed
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s" + (f" ({error})" if error else "")
            raise StoreError(f"feature store {self._place}: {reason}") from None
        except RedisError as failed:
            error = failed
        raise StoreError(f"feature store {self._place}: {error}") from error

    def decode(self, rows: Sequence[bytes | None], num_keys: int, now_us: int) -> OnlineRows:
        """Unpack what `fetch` returned for N keys."""
        found = OnlineRows({}, {}, {}, {})
        for i, (view, layout) in enumerate(zip(self._views, self._layouts, strict=True)):
            oldest_us = now_us - view.ttl_s * _SECOND_US
            block = layout.decode(rows[i * num_keys : (i + 1) * num_keys], oldest_us)
            add_view(found, view.name, block, oldest_us)
        return found

    async def close(self) -> None:
        """Close all connections."""
        pool, self._pool = self._pool, None
        if pool is not None and self._loop is asyncio.get_running_loop():
            await pool.disconnect()

    async def _ask(self, command: bytes) -> list[bytes | None]:
        pool = self._connections()
        connection = await pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.send_packed_command(command)
            rows: list[bytes | None] = await connection.read_response()
            return rows
        except BaseException:
            # Also where the caller gave up: the answer that is under way is not for the next one.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    def _connections(self) -> redis_asyncio.BlockingConnectionPool:
        import redis.asyncio as redis_asyncio

        loop = asyncio.get_running_loop()
        if self._pool is None or self._loop is not loop:
            self._loop = loop
            self._pool = redis_asyncio.BlockingConnectionPool.from_url(
                self._url, max_connections=self._max_connections, timeout=self._timeout_s, protocol=2
            )
        return self._pool

    @property
    def _place(self) -> str:
        parts = urlsplit(self._url)
        return f"{parts.hostname}:{parts.port or 6379}"


def keys_of_views(keys: Keys, views: Sequence[ViewSchema]) -> list[Ints]:
    """The keys `(N,)` of each view.

    Raises:
        ConfigError: ids of an entity are missing, or there are more of one than of another.
    """
    entities = list(dict.fromkeys(view.entity for view in views))
    by_entity = keys if isinstance(keys, Mapping) else {entities[0]: keys}
    counts = {entity: len(by_entity[entity]) for entity in entities if entity in by_entity}
    if len(counts) < len(entities) or len(set(counts.values())) > 1:
        raise ConfigError(
            f"rows are read by {' and '.join(entities)}; give as many ids of each, got {counts}"
        )
    key_N = {entity: np.asarray(by_entity[entity], dtype=np.int64) for entity in entities}
    return [key_N[view.entity] for view in views]


def layout_of(view: ViewSchema) -> RowLayout:
    """The packed layout of a view."""
    return RowLayout(view.name, view.entity, [(feature.name, feature.type) for feature in view.features])


def add_view(rows: OnlineRows, view: str, block: Block, oldest_us: int) -> None:
    """Add one view's block, which was decoded with `oldest_us`, to `rows`."""
    status = np.where(block.time_us < oldest_us, STALE, FRESH).astype(np.uint8)
    status[block.time_us == 0] = MISSING
    rows.status[view], rows.time_us[view] = status, block.time_us
    rows.null.update(block.null)
    rows.columns.update(block.columns)
