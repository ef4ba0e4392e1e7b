"""Benches of the feature store, `python -m feedworks.features.bench reads | materialize | replay`.

Every command prints one JSON object per line and starts its own Redis on loopback. Providers must return
equal values before they are timed.

Shape letters: N entities.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.features import FeatureTable, feature_table
from feedworks.contracts.fields import entity_of, source_of, view_of
from feedworks.contracts.tables import Column
from feedworks.features.bench_writes import materialize, replay
from feedworks.features.local_redis import running_redis
from feedworks.features.reading import PackedSource
from feedworks.features.schema import ServiceSchema, ViewSchema
from feedworks.metrics.latency import device_label, print_rows
from feedworks.progress import progress

if TYPE_CHECKING:
    from feast import FeatureStore

NUM_VIEWS, PER_VIEW = 5, 10
SERVICE = "bench"
SQLITE, REDIS, FEAST_PACKED, PACKED = "feast_sqlite", "feast_redis", "feast_packed", "packed"
FEAST = {
    SQLITE: {"type": "sqlite"},
    REDIS: {"type": "redis"},
    FEAST_PACKED: {"type": "feedworks.features.packed_store.PackedOnlineStore"},
}
Ids = npt.NDArray[np.int64]


@click.group()
def main() -> None:
    """Measure reads, materialisation and pushes; one JSON object per line."""


@main.command()
@click.option("--entities", type=int, multiple=True, default=(1, 100, 500), help="N; may be repeated")
@click.option("--stored", type=int, default=5000, show_default=True, help="entities in the store")
@click.option("--repeats", type=int, default=200, show_default=True, help="timed reads of each provider")
@click.option("--rounds", type=int, default=4, show_default=True, help="slices that the repeats are cut into")
@click.option("--seed", type=int, default=0, show_default=True)
def reads(entities: Sequence[int], stored: int, repeats: int, rounds: int, seed: int) -> None:
    """Read 50 features of N entities: Feast on SQLite, its Redis store and packed rows; packed directly.

    Feast's reads end in Python lists (`to_dict`), the direct one in numpy. `speedup` compares p50.
    """
    rng = np.random.default_rng(seed)
    with _providers(stored, rng) as calls:
        for count in entities:
            keys = [rng.choice(stored, count, replace=False) for _ in range(repeats + rounds)]
            _compare(calls, keys[0])
            seconds = _timed(calls, keys, rounds)
            shape = {"entities": count, "features": NUM_VIEWS * PER_VIEW, "views": NUM_VIEWS}
            print_rows(_rows("feature_reads", shape, seconds))


class _Call(NamedTuple):
    read: Callable[[Ids], Any]
    columns: Callable[[Any], Mapping[str, Any]]


@contextmanager
def _providers(stored: int, rng: np.random.Generator) -> Iterator[dict[str, _Call]]:
    """All providers over the same rows."""
    tables = [_table(view) for view in range(NUM_VIEWS)]
    schema = ServiceSchema(service=SERVICE, views=tuple(ViewSchema.of(table) for table in tables))
    now_us = time.time_ns() // 1000
    with running_redis() as server, tempfile.TemporaryDirectory() as folder:
        calls: dict[str, _Call] = {}
        stores = {name: _store(name, Path(folder), server.port, tables) for name in FEAST}
        for number, table in enumerate(tables):
            rows = _random_rows(table, stored, now_us - 1_000_000, rng)
            for name, store in stores.items():
                _ingest(store, table, rows, f"{name}, view {number + 1}/{NUM_VIEWS}")
        for name, store in stores.items():
            calls[name] = _feast_call(store, schema)
        loop = asyncio.new_event_loop()
        source = PackedSource(server.url, schema, _project(FEAST_PACKED), timeout_s=10.0)
        calls[PACKED] = _Call(
            lambda key_N: loop.run_until_complete(source.read(key_N, now_us)),  # type: ignore[arg-type]
            lambda rows: rows.columns,
        )
        gc.collect()
        gc.freeze()  # Feast's modules are 400,000 objects: a full collection in mid-read takes 0.2 s
        try:
            yield calls
        finally:
            gc.unfreeze()
            loop.run_until_complete(source.close())
            loop.close()


def _feast_call(store: FeatureStore, schema: ServiceSchema) -> _Call:
    names = [f"{view.name}:{feature.name}" for view in schema.views for feature in view.features]
    return _Call(
        lambda key_N: store.get_online_features(names, {"user_id": key_N.tolist()}).to_dict(),
        lambda answer: answer,
    )


def _compare(calls: Mapping[str, _Call], key_N: Ids) -> None:
    """Raise if any provider returns other values than the first."""
    found = {name: call.columns(call.read(key_N)) for name, call in calls.items()}
    expected = found[SQLITE]
    for name, columns in found.items():
        for feature in (key for key in expected if key != "user_id"):
            if not np.array_equal(np.asarray(columns[feature]), np.asarray(expected[feature])):
                raise click.ClickException(f"{name} reads other values of {feature} than {SQLITE}")


def _timed(calls: Mapping[str, _Call], keys: Sequence[Ids], rounds: int) -> dict[str, list[float]]:
    """Seconds of every read, in slices of one provider: Feast forgets a view when another store is asked."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    slices = np.array_split(np.arange(len(keys)), rounds)
    for some in progress(slices, label=f"reads of {len(keys[0])} entities"):
        for name, call in calls.items():
            for number, i in enumerate(some):
                start_s = time.perf_counter()
                call.read(keys[i])
                if number:  # the first of a slice warms up
                    seconds[name].append(time.perf_counter() - start_s)
    return seconds


def _rows(op: str, shape: Mapping[str, Any], seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    p50 = {name: float(np.quantile(values, 0.5)) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        row: dict[str, Any] = {"op": op, "provider": name, "shape": dict(shape), "device": device_label()}
        row |= {"num": len(values), "p50_ms": _ms(p50[name]), "p99_ms": _ms(float(np.quantile(values, 0.99)))}
        if name in (FEAST_PACKED, PACKED):
            row["speedup"] = {peer: float(f"{p50[peer] / p50[name]:.3g}") for peer in (SQLITE, REDIS)}
        rows.append(row)
    return rows


def _ms(seconds: float) -> float:
    return float(f"{seconds * 1000:.4g}")


def _table(number: int) -> FeatureTable:
    types = (pa.float32(), pa.int64())
    columns = (
        Column(name=f"v{number}_{i}", type=types[i % 2], side="user", description="Random.")
        for i in range(PER_VIEW)
    )
    return feature_table(
        f"view_{number}",
        *columns,
        entity="user_id",
        description="Random numbers.",
        ttl_s=24 * 3600,
        owner="bench",
        domain="bench",
    )


def _random_rows(table: FeatureTable, count: int, time_us: int, rng: np.random.Generator) -> pa.Table:
    """One row per entity 0..count-1, all of one event time."""
    columns: dict[str, Any] = {
        "user_id": pa.array(np.arange(count)),
        "event_time": pa.array(np.full(count, time_us), pa.timestamp("us", tz="UTC")),
    }
    for column in table.features:
        numbers = rng.integers(0, 2**62, count) if column.type == pa.int64() else rng.random(count)
        columns[column.name] = pa.array(numbers).cast(column.type)
    return pa.table(columns)


def _project(name: str) -> str:
    return f"bench_{name}"


def _store(name: str, folder: Path, port: int, tables: Sequence[FeatureTable]) -> FeatureStore:
    from feast import FeatureStore, RepoConfig

    online = dict(FEAST[name])
    online |= (
        {"path": str(folder / "online.db")} if name == SQLITE else {"connection_string": f"127.0.0.1:{port}"}
    )
    config = RepoConfig(
        project=_project(name),
        provider="local",
        registry={"path": str(folder / f"{name}.db"), "cache_ttl_seconds": 3600},
        online_store=online,
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    views = [view_of(table, source_of(table, folder)) for table in tables]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.apply([entity_of("user_id"), *views])
    return store


def _ingest(store: FeatureStore, table: FeatureTable, rows: pa.Table, label: str) -> None:
    """Write rows through Feast, by its own conversion."""
    from feast.utils import _convert_arrow_to_proto

    view = store.get_feature_view(table.name)
    keys = {field.name: field.dtype.to_value_type() for field in view.entity_columns}
    provider = store._get_provider()
    for batch in progress(rows.to_batches(max_chunksize=5000), label=f"writing {label}"):
        provider.online_write_batch(store.config, view, _convert_arrow_to_proto(batch, view, keys), None)


main.add_command(materialize)
main.add_command(replay)

if __name__ == "__main__":
    main()
