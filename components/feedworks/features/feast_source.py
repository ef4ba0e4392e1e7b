"""Reading features through Feast, whatever its online store: for development and small services.

Feast takes some hundred times as long as `PackedSource` for the same rows, and its import 4 s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from feedworks.errors import StoreError
from feedworks.features.feast_values import ATTRIBUTES
from feedworks.features.packed_cells import NUMBERS, Bools, Column, is_list, objects
from feedworks.features.packed_rows import Block
from feedworks.features.reading import Keys, OnlineRows, add_view, keys_of_views
from feedworks.features.repo import repository, store_file
from feedworks.features.schema import ServiceSchema, ViewSchema

if TYPE_CHECKING:
    from feast import FeatureStore

MAX_WAITING = 64
_SECOND_US = 1_000_000


class FeastSource:
    """Reads a service's views through the feature repository in a folder, in one thread of its own.

    Args:
        repo: folder of feature_store.yaml, or of the file that FEAST_FS_YAML_FILE_PATH names.
        schema: what is read; Feast's registry must have its views.
        timeout_s: limit of one read. Feast cannot be interrupted: a read that was given up goes on in its
            thread and the next ones wait for it, each within its own limit, some dozens of them at most.

    Raises:
        ConfigError: the folder holds no repository.
    """

    def __init__(self, repo: Path, schema: ServiceSchema, *, timeout_s: float = 0.25) -> None:
        folder = repository(repo)
        from feast import FeatureStore

        store = FeatureStore(repo_path=str(folder), fs_yaml_file=store_file(folder))
        self._open(store, schema, timeout_s)

    @classmethod
    def over(cls, store: FeatureStore, schema: ServiceSchema, *, timeout_s: float = 0.25) -> FeastSource:
        """A source over a store that is open already."""
        source = cls.__new__(cls)
        source._open(store, schema, timeout_s)
        return source

    def _open(self, store: FeatureStore, schema: ServiceSchema, timeout_s: float) -> None:
        self._views = schema.views
        self._names = [f"{view.name}:{feature.name}" for view in schema.views for feature in view.features]
        self._store = store
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="feast")
        self._places = BoundedSemaphore(MAX_WAITING)

    async def read(self, keys: Keys, now_us: int) -> OnlineRows:
        """As `FeatureSource.read`."""
        if not self._places.acquire(blocking=False):
            raise StoreError(f"feature store: {MAX_WAITING} reads wait already")
        future = self._thread.submit(self.read_now, keys, now_us)
        future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout_s)
        except TimeoutError:
            raise StoreError(f"feature store: no answer within {self._timeout_s:g} s") from None

    def read_now(self, keys: Keys, now_us: int) -> OnlineRows:
        """Read in the calling thread, without a limit.

        Raises:
            StoreError: Feast or its store failed.
            ConfigError: as `FeatureSource.read`.
        """
        of_views = keys_of_views(keys, self._views)
        rows_of = {view.entity: key_N.tolist() for view, key_N in zip(self._views, of_views, strict=True)}
        try:
            answer = self._store.get_online_features(features=self._names, entity_rows=rows_of).proto
        except Exception as error:  # each store has errors of its own
            reason = next(iter(str(error).splitlines()), "")
            raise StoreError(f"feature store: {type(error).__name__}: {reason}") from error
        vectors = dict(zip(answer.metadata.feature_names.val, answer.results, strict=True))
        rows = OnlineRows({}, {}, {}, {})
        for view in self._views:
            oldest_us = now_us - view.ttl_s * _SECOND_US
            add_view(rows, view.name, _block(view, vectors, len(of_views[0]), oldest_us), oldest_us)
        return rows

    async def close(self) -> None:
        """Stop the thread, after the read that it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _block(view: ViewSchema, vectors: dict[str, Any], num_rows: int, oldest_us: int) -> Block:
    times = vectors[view.features[0].name].event_timestamps
    time_us = np.fromiter((t.seconds * _SECOND_US + t.nanos // 1000 for t in times), np.int64, num_rows)
    usable = (time_us != 0) & (time_us >= oldest_us)
    null: dict[str, Bools] = {}
    columns: dict[str, Column] = {}
    for feature in view.features:
        null[feature.name], columns[feature.name] = _column(
            feature.type, vectors[feature.name].values, usable
        )
    return Block(time_us, null, columns)


def _column(type_: str, values: Sequence[Any], usable: Bools) -> tuple[Bools, Column]:
    """Nulls and values of one feature from Feast's `Value` messages.

    Feast's statuses are not asked: Redis says PRESENT of rows that it does not have.
    """
    attribute = ATTRIBUTES[type_]
    there = np.fromiter((value.WhichOneof("val") == attribute for value in values), bool, len(values))
    there &= usable
    inner = type_.removeprefix("list<").removesuffix(">")
    dtype: Any = NUMBERS[inner][0] if inner in NUMBERS else object
    if is_list(type_):
        cells = [getattr(v, attribute).val if use else () for v, use in zip(values, there, strict=True)]
        if dtype is object:
            return ~there, [objects(list(cell)) for cell in cells]
        return ~there, [np.array(cell, dtype=dtype) for cell in cells]
    if dtype is object:
        found = [getattr(v, attribute) if use else None for v, use in zip(values, there, strict=True)]
        return ~there, objects(found)
    column: npt.NDArray[Any] = np.fromiter(
        (getattr(value, attribute) for value in values), dtype, len(values)
    )
    column[~there] = np.nan if column.dtype.kind == "f" else 0
    return ~there, column
