"""From the offline tables to the online store: the latest row of each entity between two times.

Feast's own `materialize` turns all rows into messages at once and checks none of them. This checks whole
tables first, writes batch by batch, shows how far it is, and tells Feast's registry, as Feast does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from feedworks.contracts.features import FEATURE_TABLES, FeatureTable
from feedworks.errors import ConfigError, FeedworksError, StoreError
from feedworks.features.feast_values import ATTRIBUTES
from feedworks.features.repo import open_store
from feedworks.features.schema import ViewSchema, type_name
from feedworks.features.training_set import quiet_stores
from feedworks.features.validate import require_tables
from feedworks.progress import Progress

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

BATCH_ROWS = 10_000


class Materialised(NamedTuple):
    """Rows written for one view, and the seconds from reading the table to the last row."""

    num_rows: int
    seconds: float


def materialize(
    repo: Path, start: datetime, end: datetime, views: Sequence[str] = ()
) -> dict[str, Materialised]:
    """Writes the latest row of each entity with start <= event_time <= end into the online store.

    All tables are checked against their contracts before the first row is written. A row that is older than
    what the store has already changes nothing, so a killed run is mended by running it again.

    Args:
        repo: A feature repository that was applied.
        start: First event time, with a time zone. Feast's incremental form would guess it from the clock and
            write nothing of a table of last year.
        end: Last event time, with a time zone.
        views: Names; where empty, all that are served and have a table. Live rooms, which are pushed, may
            have none.

    Raises:
        ConfigError: The times are in the wrong order or have no zone, a view is unknown, not served or not
            applied as the contracts say it.
        DataError: A row breaks its contract; table, column and row are named and nothing was written. Or a
            named view has no table, or none has one.
        StoreError: The store did not answer; the message says how far it came.
    """
    if start.tzinfo is None or end.tzinfo is None or start > end:
        raise ConfigError(f"materialise from {start} to {end}: give two times with zones, the earlier first")
    tables = _served(views)
    done: dict[str, Materialised] = {}
    with open_store(repo) as store, quiet_stores():
        registered = {table.name: registered_view(store, table) for table in tables}
        folders = {name: Path(_path(view)).parent for name, view in registered.items()}
        there = [table for table in tables if views or table.path(folders[table.name]).exists()]
        for table in there or tables:
            require_tables(folders[table.name], [table])
        for table in there:
            start_s = time.monotonic()
            num_rows = _write_view(store, registered[table.name], table, start, end)
            done[table.name] = Materialised(num_rows, time.monotonic() - start_s)
    return done


def _path(view: FeatureView) -> str:
    source: Any = view.batch_source
    return str(source.path)


def _served(names: Sequence[str]) -> tuple[FeatureTable, ...]:
    served = {table.name: table for table in FEATURE_TABLES if not table.training_only}
    for name in names:
        if name not in served:
            raise ConfigError(f"view {name!r} is not served; known: {', '.join(served)}")
    return tuple(served[name] for name in names or served)


def registered_view(store: FeatureStore, table: FeatureTable) -> FeatureView:
    """The view of a feature table as it was applied.

    Raises:
        ConfigError: it was not, or the contract has changed since.
    """
    from feast.errors import FeatureViewNotFoundException

    from feedworks.contracts.fields import field_of

    try:
        view = store.get_feature_view(table.name)
    except FeatureViewNotFoundException:
        raise ConfigError(f"view {table.name} is not applied; run `feedworks features apply`") from None
    if list(view.features) != [field_of(table, column.name) for column in table.features]:
        raise ConfigError(
            f"view {table.name} was applied with other features than the contract has now; "
            "run `feedworks features apply`"
        )
    return view


def _write_view(
    store: FeatureStore, view: FeatureView, table: FeatureTable, start: datetime, end: datetime
) -> int:
    rows = _latest(store, view, table, start, end)
    write = row_writer(store, view, table)
    with Progress(f"writing {table.name}", total=rows.num_rows) as shown:
        for batch in rows.to_batches(max_chunksize=BATCH_ROWS):
            try:
                write(batch)
            except FeedworksError:
                raise
            except Exception as error:  # each store has errors of its own
                raise StoreError(
                    f"view {table.name}: {shown.count} of {rows.num_rows} rows are written, then "
                    f"{type(error).__name__}: {error}; run it again, it goes over what is there"
                ) from error
            shown.advance(batch.num_rows)
    store.registry.apply_materialization(view, store.project, start, end)
    return int(rows.num_rows)


def _latest(
    store: FeatureStore, view: FeatureView, table: FeatureTable, start: datetime, end: datetime
) -> pa.Table:
    """The rows to write, in the contract's types."""
    provider: Any = store._get_provider()
    assert view.batch_source is not None
    job = provider.offline_store.pull_latest_from_table_or_query(
        config=store.config,
        data_source=view.batch_source,
        join_key_columns=[table.entity],
        feature_name_columns=[column.name for column in table.features],
        timestamp_field=table.event_time,
        created_timestamp_column=None,
        start_date=start.astimezone(UTC),
        end_date=end.astimezone(UTC),
    )
    found: pa.Table = job.to_arrow()
    return found.select(table.schema.names).cast(table.schema)


def row_writer(
    store: FeatureStore, view: FeatureView, table: FeatureTable
) -> Callable[[pa.RecordBatch], None]:
    """Writes a batch: as Arrow where the store takes it so, else as Feast's messages."""
    provider: Any = store._get_provider()
    write_table = getattr(provider.online_store, "write_table", None)
    if write_table is not None:
        return lambda batch: write_table(store.config, view, pa.Table.from_batches([batch]))
    return lambda batch: provider.online_write_batch(
        store.config, view, list(_messages(ViewSchema.of(table), table, batch)), None
    )


def _messages(schema: ViewSchema, table: FeatureTable, batch: pa.RecordBatch) -> Iterator[Any]:
    """Rows as Feast's online stores take them.

    Feast's own conversion goes over numpy, where a whole number beside a null becomes a float.
    """
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

    names = [feature.name for feature in schema.features]
    cells = [_cells(feature.type, batch.column(feature.name)) for feature in schema.features]
    ids = _cells(type_name(table.column(table.entity).type), batch.column(table.entity))
    times = batch.column(table.event_time).to_pylist()
    for entity, at, *values in zip(ids, times, *cells, strict=True):
        key = EntityKey(join_keys=[table.entity], entity_values=[entity])
        yield key, dict(zip(names, values, strict=True)), at, None


def _cells(type_: str, column: pa.Array) -> list[Any]:
    """One of Feast's messages per row; an empty one for a null."""
    from feast.protos.feast.types import Value_pb2

    attribute = ATTRIBUTES[type_]
    null = Value_pb2.Value()
    values = column.to_pylist()
    if not type_.startswith("list<"):
        return [null if value is None else Value_pb2.Value(**{attribute: value}) for value in values]
    kind = type(getattr(null, attribute))
    return [null if value is None else Value_pb2.Value(**{attribute: kind(val=value)}) for value in values]
