"""Benches of writing: materialisation of a large table, and a replay of live rooms."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.features import FEATURE_TABLES, FeatureTable
from feedworks.contracts.tables import Column
from feedworks.features.live_log import synthetic_log
from feedworks.features.local_redis import LocalRedis, running_redis
from feedworks.features.packed_redis import view_prefix
from feedworks.features.push import open_sink
from feedworks.features.replay import replay as run_replay
from feedworks.features.repo import STORE_VARIABLE, TABLES_VARIABLE, apply, repository
from feedworks.metrics.latency import device_label, print_rows

STORES = {
    "sqlite": "feedworks.features.ordered_store.OrderedSqliteOnlineStore",
    "redis": "redis",
    "packed": "feedworks.features.packed_store.PackedOnlineStore",
}
LIST_LENGTH = 20
_START = datetime(2024, 1, 1, tzinfo=UTC)
_DAY = timedelta(days=1)


@click.command()
@click.option("--rows", type=int, default=1_000_000, show_default=True, help="one per entity")
@click.option("--store", "stores", multiple=True, type=click.Choice(list(STORES)), default=("packed",))
@click.option("--view", default="user_profile", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def materialize(rows: int, stores: Sequence[str], view: str, seed: int) -> None:
    """Write a table of random rows into online stores, as `feedworks features materialize` does.

    `rows_per_s` is from reading the table to the last row; `total_s` has the check of every row besides.
    """
    from feedworks.features.materialize import materialize as run

    table = next((table for table in FEATURE_TABLES if table.name == view), None)
    if table is None:
        raise click.ClickException(f"no view is called {view}")
    with tempfile.TemporaryDirectory() as folder, running_redis() as server:
        _write_random(table, Path(folder) / "tables", rows, np.random.default_rng(seed))
        for name in stores:
            with _repository(Path(folder) / name, name, server) as repo:
                apply(repo)
                start_s = time.perf_counter()
                done = run(repo, _START - _DAY, _START + _DAY, [view])[view]
                total_s = time.perf_counter() - start_s
                _require_all(server, name, view, rows)
            row: dict[str, Any] = {"op": "materialize", "provider": name, "device": device_label()}
            row |= {"shape": {"rows": rows, "features": len(table.features), "view": view}}
            row |= {"rows_per_s": round(done.num_rows / done.seconds), "seconds": round(done.seconds, 1)}
            print_rows([row | {"total_s": round(total_s, 1)}])


@click.command()
@click.option("--rate", type=float, default=1000.0, show_default=True, help="events per second")
@click.option("--seconds", type=float, default=60.0, show_default=True)
@click.option("--rooms", type=int, default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def replay(rate: float, seconds: float, rooms: int, seed: int) -> None:
    """Push live rows into packed rows while another process reads all rooms; count lost events."""
    log = synthetic_log(int(rate * seconds), rooms, seed)
    with running_redis() as server:
        url = f"packed+{server.url}"
        sink = open_sink(url)
        done = run_replay(sink, url, log, rate, seconds, seed=seed)
        sink.close()
    row: dict[str, Any] = {"op": "replay", "provider": "packed", "device": device_label()}
    row |= {"shape": {"rate": rate, "seconds": seconds, "rooms": rooms}}
    for name, value in done._asdict().items():
        seconds_of = name.endswith("_s")
        row[name.removesuffix("_s") + "_ms" if seconds_of else name] = (
            round(1000 * value, 2) if seconds_of else value
        )
    print_rows([row])


@contextmanager
def _repository(folder: Path, store: str, server: LocalRedis) -> Iterator[Path]:
    """A copy of the feature repository with this online store, in force while the context is open."""
    shutil.copytree(repository(), folder, ignore=shutil.ignore_patterns("data"))
    (folder / "data").mkdir()
    place = (
        f"path: {folder}/data/online.db"
        if store == "sqlite"
        else f"connection_string: 127.0.0.1:{server.port}"
    )
    settings = [
        "project: feedworks",
        "provider: local",
        f"registry: {folder}/data/registry.db",
        "online_store:",
        f"    type: {STORES[store]}",
        f"    {place}",
        "offline_store:",
        "    type: duckdb",
        "entity_key_serialization_version: 3",
    ]
    (folder / "bench.yaml").write_text("\n".join(settings) + "\n")
    before = {name: os.environ.get(name) for name in (STORE_VARIABLE, TABLES_VARIABLE)}
    os.environ[STORE_VARIABLE] = str(folder / "bench.yaml")
    os.environ[TABLES_VARIABLE] = str(folder.parent / "tables")
    try:
        yield folder
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _require_all(server: LocalRedis, store: str, view: str, num_rows: int) -> None:
    """Raise if Redis does not hold as many rows as were written."""
    import redis

    if store == "sqlite":
        return
    with redis.Redis(port=server.port) as client:
        found = client.dbsize()
        if store == "packed":
            assert (
                next(client.scan_iter(view_prefix("feedworks", view) + b"*", count=10_000), None) is not None
            )
        client.flushdb()
    if found != num_rows:
        raise click.ClickException(f"{store} holds {found} rows, {num_rows} were written")


def _write_random(table: FeatureTable, folder: Path, num_rows: int, rng: np.random.Generator) -> None:
    """One row per entity, in order, of the contract."""
    folder.mkdir(parents=True)
    columns: dict[str, Any] = {
        table.entity: np.arange(num_rows),
        "event_time": pa.array(np.full(num_rows, int(_START.timestamp()) * 1_000_000)).cast(
            pa.timestamp("us", tz="UTC")
        ),
    }
    for column in table.features:
        columns[column.name] = _random(column, num_rows, rng)
    pq.write_table(pa.table(columns).cast(table.schema), table.path(folder))


def _random(column: Column, num_rows: int, rng: np.random.Generator) -> Any:
    high = int(column.maximum) + 1 if column.maximum is not None else 1_000_000

    def numbers(count: int, type_: pa.DataType) -> pa.Array:
        found: npt.NDArray[Any] = rng.integers(0, high, count)
        return pa.array(rng.random(count) if pa.types.is_floating(type_) else found).cast(type_)

    if not column.is_vector:
        return numbers(num_rows, column.type)
    offsets = np.arange(num_rows + 1, dtype=np.int32) * LIST_LENGTH
    return pa.ListArray.from_arrays(offsets, numbers(num_rows * LIST_LENGTH, column.type.value_type))
