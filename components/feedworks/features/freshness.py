"""How old the features in the online store are: a report per view as one self-contained HTML file.

Shape letters: N entities.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from feedworks.errors import DataError
from feedworks.features.reading import MISSING, STALE, FeatureSource, OnlineRows, open_source
from feedworks.features.schema import ServiceSchema, ViewSchema

KEYS_PER_READ = 500
READ_WITHIN_S = 30.0
_UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


class Freshness(NamedTuple):
    """The age of one view's rows.

    Attributes:
        view: its name.
        ttl_s: for how many seconds a row may be used.
        num_rows: entities asked for.
        stale_share: of them, those whose row is too old.
        missing_share: of them, those without a row.
        age_s: ages of the rows that are there, stale ones included, in seconds.
    """

    view: str
    ttl_s: int
    num_rows: int
    stale_share: float
    missing_share: float
    age_s: npt.NDArray[np.float64]


def report_on(
    url: str, schema: ServiceSchema, tables: Path, path: Path, now_us: int | None = None
) -> list[Freshness]:
    """Measure and report the rows online of all entities that the feature tables know.

    Args:
        url: address of the store, as `feedworks.features.reading.open_source` takes it.
        schema: what is read.
        tables: folder of feature tables; entities are taken from those of the schema's views.
        path: of the HTML file.
        now_us: as of when, microseconds since 1970 UTC; now where None.

    Raises:
        DataError: none of the tables is there.
        StoreError: the store does not answer.
    """
    keys = entities(schema, tables)
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    found = asyncio.run(_measured(url, schema, keys, now_us))
    write_report(path, schema.service, found, now_us)
    return found


def entities(schema: ServiceSchema, tables: Path) -> list[int]:
    """All entities that occur in the feature tables of the schema's views.

    Raises:
        DataError: none of the tables is there.
    """
    ids = [
        pq.read_table(path, columns=[view.entity])[view.entity].unique().to_numpy()
        for view in schema.views
        if (path := tables / f"{view.name}.parquet").is_file()
    ]
    if not ids:
        raise DataError(f"{tables} holds no table of {schema.service}; build the feature tables first")
    return [int(key) for key in np.unique(np.concatenate(ids))]


async def _measured(url: str, schema: ServiceSchema, keys: Sequence[int], now_us: int) -> list[Freshness]:
    source = open_source(url, schema, timeout_s=READ_WITHIN_S)
    try:
        return await measure(source, schema, keys, now_us)
    finally:
        await source.close()


async def measure(
    source: FeatureSource, schema: ServiceSchema, keys: Sequence[int], now_us: int
) -> list[Freshness]:
    """Read the rows of N entities, some hundred at a time, and tell how old they are.

    Raises:
        StoreError: the store does not answer.
    """
    blocks = [
        await source.read(keys[start : start + KEYS_PER_READ], now_us)
        for start in range(0, len(keys), KEYS_PER_READ)
    ]
    return [_of_view(view, blocks, now_us) for view in schema.views]


def write_report(path: Path, service: str, found: Sequence[Freshness], now_us: int) -> None:
    """Write the report, by one rename.

    Args:
        path: of the HTML file.
        service: name of the feature service.
        found: from `measure`.
        now_us: as of when, microseconds since 1970 UTC.
    """
    from feedworks.reports import figures
    from feedworks.reports.html import Report

    at = datetime.fromtimestamp(now_us // 1_000_000, tz=UTC)
    report = Report(f"Freshness of {service}", f"As of {at:%Y-%m-%d %H:%M:%S} UTC")
    worst = max(found, key=lambda view: view.stale_share + view.missing_share)
    share = f"{100 * (worst.stale_share + worst.missing_share):.1f} %"
    report.add_highlights({"Not usable, worst view": (share, f"{worst.view}: stale or missing")})
    rows = [_cells(view) for view in found]
    note = "Ages are those of the rows that are there; a row older than the view's time to live is stale."
    report.add_table("Views", ["View", "Entities", "Stale", "Missing", "Age p50", "p99", "TTL"], rows, note)
    drawn = []
    for view in found:
        size_s, unit = _unit(view)
        title = f"{view.view}, time to live {_time(view.ttl_s)}"
        drawn.append(figures.histogram(title, view.age_s / size_s, x_label=f"age, {unit}", y_label="rows"))
    report.add_figure("Age of the rows", *drawn)
    report.write(path)


def _of_view(view: ViewSchema, blocks: Sequence[OnlineRows], now_us: int) -> Freshness:
    none = np.empty(0, dtype=np.int64)
    status = np.concatenate([none, *(rows.status[view.name] for rows in blocks)])
    time_us = np.concatenate([none, *(rows.time_us[view.name] for rows in blocks)])
    there = status != MISSING
    num = max(1, len(status))
    return Freshness(
        view=view.name,
        ttl_s=view.ttl_s,
        num_rows=len(status),
        stale_share=float((status == STALE).sum()) / num,
        missing_share=float((~there).sum()) / num,
        age_s=(now_us - time_us[there]) / 1e6,
    )


def _cells(view: Freshness) -> list[str | int | None]:
    ages: list[str | None] = [None, None]
    if len(view.age_s):
        ages = [_time(float(age)) for age in np.quantile(view.age_s, [0.5, 0.99])]
    shares = [f"{100 * share:.1f} %" for share in (view.stale_share, view.missing_share)]
    return [view.view, view.num_rows, *shares, *ages, _time(view.ttl_s)]


def _unit(view: Freshness) -> tuple[float, str]:
    largest = float(view.age_s.max()) if len(view.age_s) else 0.0
    return next(((size, name) for size, name in _UNITS if largest >= 2 * size), _UNITS[-1])


def _time(seconds: float) -> str:
    size, name = next(((size, name) for size, name in _UNITS if abs(seconds) >= 2 * size), _UNITS[-1])
    return f"{seconds / size:.3g} {name}"
