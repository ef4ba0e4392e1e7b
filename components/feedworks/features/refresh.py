"""Feature tables into an online store, from nothing: definitions, the newest rows, and how fresh they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from feedworks.contracts.features import FEATURE_TABLES, STUDENT_SERVICE, FeatureTable
from feedworks.contracts.files import read_table
from feedworks.errors import DataError
from feedworks.features.definitions import define
from feedworks.features.freshness import report_on
from feedworks.features.materialize import materialize
from feedworks.features.repo import STORE_FILE, TABLES_VARIABLE, apply, open_store
from feedworks.features.schema import ServiceSchema, ViewSchema
from feedworks.features.training_set import PROJECT

PAGE = "freshness.html"
USER = "user_id"
EMBEDDED = f"""\
project: {PROJECT}
provider: local
registry: registry.db
online_store:
    type: feedworks.features.ordered_store.OrderedSqliteOnlineStore
    path: online.db
offline_store:
    type: duckdb
entity_key_serialization_version: 3
"""


class Refreshed(NamedTuple):
    """Rows written to the online store, and the times from and to which they were taken."""

    num_rows: int
    start: str
    end: str


def refresh(tables: Path, out_dir: Path, *, repo: Path | None = None) -> Refreshed:
    """Define the views of the feature tables and bring each entity's latest row online.

    Tables that the folder lacks are left out, and so are those for training only.

    Args:
        tables: folder with the feature tables.
        out_dir: an existing folder that gets freshness.html, of what users have online; without `repo` it
            becomes a feature repository with a store of its own.
        repo: the feature repository whose store is refreshed, in the form in force.

    Raises:
        DataError: there are no tables to serve, or a row breaks its contract; nothing was written.
        ConfigError: there is no such repository.
        StoreError: the store does not answer.
    """
    served = [t for t in FEATURE_TABLES if not t.training_only and t.path(tables).is_file()]
    times = [bounds for table in served if (bounds := _bounds(table, tables)) is not None]
    if not times:
        raise DataError(f"{tables} holds no feature table with rows that may be served; build the tables")
    start, end = min(low for low, _ in times), max(high for _, high in times)
    target = out_dir if repo is None else repo
    if repo is None:
        (out_dir / STORE_FILE).write_text(EMBEDDED)
        with open_store(out_dir) as store:
            store.apply(define(tables.absolute(), served).objects)
    else:
        with _tables_at(tables):
            apply(repo)
    done = materialize(target, start, end, [table.name for table in served])
    users = tuple(ViewSchema.of(table) for table in served if table.entity == USER)
    if users:
        schema = ServiceSchema(service=STUDENT_SERVICE, views=users)
        report_on(f"feast://{target.absolute()}", schema, tables, out_dir / PAGE)
    return Refreshed(sum(each.num_rows for each in done.values()), start.isoformat(), end.isoformat())


def _bounds(table: FeatureTable, folder: Path) -> tuple[datetime, datetime] | None:
    found = pc.min_max(read_table(table, folder, ["event_time"])["event_time"])
    if not found["min"].is_valid:
        return None
    # Stores keep microseconds; Python's times are as fine.
    low, high = (found[name].as_py().astimezone(UTC) for name in ("min", "max"))
    return low, high + timedelta(microseconds=1)


@contextmanager
def _tables_at(folder: Path) -> Iterator[None]:
    before = os.environ.get(TABLES_VARIABLE)
    os.environ[TABLES_VARIABLE] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[TABLES_VARIABLE]
        else:
            os.environ[TABLES_VARIABLE] = before
