"""What a model would read of a few entities, for people: values, and how old they are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from feedworks.errors import ConfigError
from feedworks.features.reading import STATUS, Keys, OnlineRows, open_source
from feedworks.features.schema import ServiceSchema

# Feast opens its store at the first read.
PATIENCE_S = 30.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lookup(
    url: str, schema: ServiceSchema, keys: Sequence[Sequence[int]], at: datetime
) -> Iterator[dict[str, Any]]:
    """Yield what a source has of each key: its ids, and for each view status, age and values.

    Args:
        url: As `feedworks.features.reading.open_source` takes it.
        schema: What is read.
        keys: For each one id of every entity of the schema, in the order in which its views first name them.
        at: As of when, with a time zone.

    Raises:
        ModelError: The schema has columns that are known only after the decision.
        ConfigError: A key has fewer or more ids.
        StoreError: The store is down or slow.
    """
    schema.require_servable()
    entities = list(dict.fromkeys(view.entity for view in schema.views))
    if wrong := [key for key in keys if len(key) != len(entities)]:
        raise ConfigError(
            f"key {':'.join(map(str, wrong[0]))}: {schema.service} reads by {':'.join(entities)}"
        )
    by_entity = {entity: [key[i] for key in keys] for i, entity in enumerate(entities)}
    now_us = (at - _EPOCH) // timedelta(microseconds=1)
    rows = asyncio.run(_read(url, schema, by_entity, now_us))
    for i in range(len(keys)):
        views = {}
        for view in schema.views:
            told: dict[str, Any] = {"status": STATUS[rows.status[view.name][i]]}
            if rows.time_us[view.name][i]:
                told["age_s"] = (now_us - int(rows.time_us[view.name][i])) / 1e6
            if told["status"] == "fresh":
                told["values"] = {f.name: _plain(rows, f.name, i) for f in view.features}
            views[view.name] = told
        yield {entity: ids[i] for entity, ids in by_entity.items()} | {"views": views}


async def _read(url: str, schema: ServiceSchema, keys: Keys, now_us: int) -> OnlineRows:
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
