"""What a model would read of a few entities, for people: values, and how old they are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from feedworks.features.reading import STATUS, OnlineRows, open_source
from feedworks.features.schema import ServiceSchema

# Feast opens its store at the first read.
PATIENCE_S = 30.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lookup(url: str, schema: ServiceSchema, keys: Sequence[int], at: datetime) -> Iterator[dict[str, Any]]:
    """Yield what a source has of each entity: its id, and for each view status, age and values.

    Args:
        url: As `feedworks.features.reading.open_source` takes it.
        schema: What is read.
        keys: Ids of the entities.
        at: As of when, with a time zone.

    Raises:
        StoreError: The store is down or slow.
    """
    now_us = (at - _EPOCH) // timedelta(microseconds=1)
    rows = asyncio.run(_read(url, schema, keys, now_us))
    for i, key in enumerate(keys):
        views = {}
        for view in schema.views:
            told: dict[str, Any] = {"status": STATUS[rows.status[view.name][i]]}
            if rows.time_us[view.name][i]:
                told["age_s"] = (now_us - int(rows.time_us[view.name][i])) / 1e6
            if told["status"] == "fresh":
                told["values"] = {f.name: _plain(rows, f.name, i) for f in view.features}
            views[view.name] = told
        yield {schema.views[0].entity: key, "views": views}


async def _read(url: str, schema: ServiceSchema, keys: Sequence[int], now_us: int) -> OnlineRows:
    source = open_source(url, schema, timeout_s=PATIENCE_S)
    try:
        return await source.read(keys, now_us)
    finally:
        await source.close()


def _plain(rows: OnlineRows, name: str, i: int) -> Any:
    if rows.null[name][i]:
        return None
    value = rows.columns[name][i]
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    return None if isinstance(plain, float) and math.isnan(plain) else plain
