"""Pushing rows to the stream views, each row checked against its contract before any store sees it.

A row that breaks the contract is named and left out; the others are written. Writing goes by event time: a
late or repeated push changes nothing where the store has a newer row, so that a push may be tried again.

Shape letters: N rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from feedworks.contracts.features import FEATURE_TABLES, FeatureTable
from feedworks.contracts.tables import Column
from feedworks.errors import ConfigError, DataError, StoreError
from feedworks.features.packed_redis import entity_keys, write_newer
from feedworks.features.reading import layout_of, packed_address
from feedworks.features.schema import ViewSchema, type_name
from feedworks.features.validate import check_rows

if TYPE_CHECKING:
    import redis
    from feast import FeatureStore

TRIES = 4
FIRST_PAUSE_S = 0.05
TIMEOUT_S = 2.0
STREAMS = {table.name: table for table in FEATURE_TABLES if table.stream}


class Rejected(NamedTuple):
    """A row that was not written: its place among the pushed ones, its entity and what is wrong."""

    row: int
    entity: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row} ({self.entity}): {self.reason}"


class Pushed(NamedTuple):
    """What became of N rows: accepted by the store, which keeps the newer ones, or rejected."""

    num_accepted: int
    rejected: list[Rejected]


class Sink(Protocol):
    """An online store that rows are pushed to."""

    def write(self, table: FeatureTable, rows: pa.Table) -> None:
        """Write rows of the contract; raises what its client raises."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def stream_table(name: str) -> FeatureTable:
    """The contract of a stream view.

    Raises:
        DataError: there is no such stream view.
    """
    if name not in STREAMS:
        raise DataError(f"view {name!r} takes no pushes; those that do: {', '.join(STREAMS)}")
    return STREAMS[name]


def push(
    sink: Sink, table: FeatureTable, rows: pa.Table | Sequence[Mapping[str, Any]], *, tries: int = TRIES
) -> Pushed:
    """Check rows and write those that keep the contract.

    Args:
        sink: from `open_sink`.
        table: from `stream_table`.
        rows: a table, or mappings. A row that lacks a column of the contract, or has another, is a bad one.
            Times are datetimes, or text in ISO 8601; without a zone they are UTC.
        tries: how often a write is tried that the store does not answer, with longer and longer pauses.

    Raises:
        DataError: a table without rows has other columns than the contract.
        StoreError: the store did not answer; nothing of this push may be there, or all of it. Push it again.
    """
    found, places, rejected = _tabled(table, rows)
    checked = check_rows(table, found)
    for i in np.flatnonzero(checked.bad_N).tolist():
        reasons = check_rows(table, found.slice(i, 1), first_row=places[i]).breaches
        reason = "; ".join(f"column {breach.column} {_said(breach.problem)}" for breach in reasons)
        rejected.append(Rejected(places[i], _entity(table, found[table.entity][i].as_py()), reason))
    kept = found.filter(pa.array(~checked.bad_N)) if checked.bad_N.any() else found
    if kept.num_rows:
        _retried(lambda: sink.write(table, kept.cast(table.schema)), tries)
    return Pushed(kept.num_rows, sorted(rejected))


def open_sink(url: str) -> Sink:
    """Open a store for pushes by the address that `feedworks.features.reading.open_source` takes.

    Raises:
        ConfigError: no such kind of address.
    """
    parts = urlsplit(url)
    if parts.scheme in ("packed+redis", "packed+rediss"):
        return PackedSink(*packed_address(url))
    if parts.scheme == "feast":
        return FeastSink.of(Path(parts.path))
    raise ConfigError(f"store {url!r}: expected packed+redis://HOST:PORT/DB?project=NAME or feast:///FOLDER")


class PackedSink:
    """Packed rows in Redis, without Feast.

    Args:
        url: redis://HOST:PORT/DB.
        project: of the feature store.
    """

    def __init__(self, url: str, project: str) -> None:
        import redis

        self._client: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._project = project

    def write(self, table: FeatureTable, rows: pa.Table) -> None:
        """As `Sink.write`."""
        assert table.event_time is not None
        layout = layout_of(ViewSchema.of(table))
        keys = entity_keys(self._project, layout, rows[table.entity].to_numpy())
        event_us = rows[table.event_time].cast(pa.int64()).to_numpy()
        write_newer(self._client, keys, layout.encode_table(rows, event_us))

    def close(self) -> None:
        """As `Sink.close`."""
        self._client.close()


class FeastSink:
    """The online store of a feature repository, whichever it is.

    Args:
        store: to which the views were applied.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._writers: dict[str, Callable[[pa.RecordBatch], None]] = {}

    @classmethod
    def of(cls, repo: Path) -> FeastSink:
        """The sink of the repository in a folder."""
        from feast import FeatureStore

        from feedworks.features.repo import repository, store_file

        folder = repository(repo)
        return cls(FeatureStore(repo_path=str(folder), fs_yaml_file=store_file(folder)))

    def write(self, table: FeatureTable, rows: pa.Table) -> None:
        """As `Sink.write`."""
        from feedworks.features.materialize import registered_view, row_writer

        if table.name not in self._writers:
            view = registered_view(self._store, table)
            self._writers[table.name] = row_writer(self._store, view, table)
        for batch in rows.combine_chunks().to_batches():
            self._writers[table.name](batch)

    def close(self) -> None:
        """As `Sink.close`."""


def _retried(write: Callable[[], None], tries: int) -> None:
    for attempt in range(tries):
        try:
            return write()
        except (DataError, ConfigError):
            raise
        except Exception as error:  # each store has errors of its own
            if attempt + 1 == tries:
                reason = f"{type(error).__name__}: {error}"
                raise StoreError(f"pushed {tries} times without an answer, the last time {reason}") from error
            time.sleep(FIRST_PAUSE_S * 2**attempt)
    return None


def _tabled(
    table: FeatureTable, rows: pa.Table | Sequence[Mapping[str, Any]]
) -> tuple[pa.Table, list[int], list[Rejected]]:
    """Rows as a table of the contract's columns, their places, and those that cannot stand in one."""
    if isinstance(rows, pa.Table):
        wrong = _wrong_columns(table, rows.column_names)
        if wrong and not rows.num_rows:  # no row would tell
            raise DataError(f"{wrong}; expected a table of {table.name}")
        if wrong:
            entities = rows[table.entity].to_pylist() if table.entity in rows.column_names else []
            names = [_entity(table, e) for e in entities] or ["?"] * rows.num_rows
            return table.schema.empty_table(), [], [Rejected(i, n, wrong) for i, n in enumerate(names)]
        return rows.select(table.schema.names), list(range(rows.num_rows)), []
    rejected: list[Rejected] = []
    good: list[tuple[int, Mapping[str, Any]]] = []
    for i, row in enumerate(rows):
        wrong = _wrong_columns(table, row) or _wrong_value(table, row)
        if wrong:
            rejected.append(Rejected(i, _entity(table, row.get(table.entity)), wrong))
        else:
            good.append((i, row))
    columns = {
        column.name: pa.array([_read(column, row[column.name]) for _, row in good], column.type)
        for column in table.columns
    }
    return (
        pa.table(columns, schema=pa.schema([(c.name, c.type) for c in table.columns])),
        [i for i, _ in good],
        rejected,
    )


def _wrong_columns(table: FeatureTable, names: Sequence[str] | Mapping[str, Any]) -> str:
    missing = [name for name in table.schema.names if name not in names]
    unknown = [name for name in names if name not in table.schema.names]
    parts = [f"column {', '.join(missing)} is missing"] if missing else []
    parts += [f"column {', '.join(unknown)} is not of view {table.name}"] if unknown else []
    return "; ".join(parts)


def _wrong_value(table: FeatureTable, row: Mapping[str, Any]) -> str:
    """The first value that is not of its column's type."""
    for column in table.columns:
        try:
            pa.array([_read(column, row[column.name])], column.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            type_ = "time" if pa.types.is_timestamp(column.type) else type_name(column.type)
            return f"column {column.name} = {row[column.name]!r:.60} is no {type_}"
    return ""


def _read(column: Column, value: Any) -> Any:
    """A value as Arrow takes it; text is read where it is a time."""
    if pa.types.is_timestamp(column.type) and value is not None:
        time_ = datetime.fromisoformat(value) if isinstance(value, str) else value
        return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)
    type_ = column.type.value_type if column.is_vector else column.type
    cells = value if column.is_vector and value is not None else [value]
    if pa.types.is_integer(type_) and any(isinstance(cell, float) and cell % 1 for cell in cells):
        raise ValueError("a fraction, which Arrow would cut off")
    return value


def _entity(table: FeatureTable, value: Any) -> str:
    return f"{table.entity}={value!r:.40}"


def _said(problem: str) -> str:
    """A problem of several rows, said of one."""
    return problem.replace("are ", "is ", 1).replace("hold ", "holds ", 1)
