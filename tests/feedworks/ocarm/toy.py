"""Columns of made-up samples: what a training set holds, without a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.ocarm.config import Architecture, OcarmConfig, Sizes, resolve
from feedworks.ocarm.data import DAY_US, HOUR_US, PROFILE_CODES, ItemTable

START_US = 1_600_000_000 * 1_000_000
NUM_ITEMS, VECTOR_WIDTH = 40, 6


def catalogue(seed: int = 0) -> ItemTable:
    rng = np.random.default_rng(seed)
    item_id = np.sort(rng.choice(1000, NUM_ITEMS, replace=False)).astype(np.int64)
    vector = rng.normal(size=(NUM_ITEMS, VECTOR_WIDTH)).astype(np.float32)
    return ItemTable(item_id, rng.integers(8, size=NUM_ITEMS), vector)


def settings(*overrides: str) -> OcarmConfig:
    return resolve("tiny", ["samples.content_days=3", "samples.horizons=1,7", *overrides])


def architecture(config: OcarmConfig | None = None) -> Architecture:
    config = config or settings()
    sizes = Sizes(num_items=NUM_ITEMS + 1, vector_width=VECTOR_WIDTH)
    return Architecture(model=config.model, samples=config.samples, sizes=sizes)


def columns(num_rows: int, items: ItemTable, days: int = 3, seed: int = 0) -> dict[str, Any]:
    """Observable and content columns; row 0 has no history and no content, row 1 no row in any view."""
    rng = np.random.default_rng(seed)
    bid = START_US + rng.integers(30 * DAY_US, size=num_rows)
    found: dict[str, Any] = {
        "sample_id": np.arange(num_rows),
        "user_id": rng.integers(num_rows, size=num_rows),
        "bid_time": bid,
        "surface": rng.integers(16, size=num_rows),
        "ad_item": rng.choice(items.item_id_I, num_rows),
        "content_start": bid + 1_000_000,
        "label_start": bid + 1_000_000 + days * DAY_US,
        "tenure_days": rng.uniform(0, 900, num_rows),
        "aggregated_time": bid - rng.integers(2 * DAY_US, 9 * DAY_US, size=num_rows),
        "num_returns": rng.integers(9, size=num_rows),
        "mean_engagement_7d": rng.uniform(size=num_rows),
    }
    for name, size in PROFILE_CODES.items():
        found[name] = rng.integers(size, size=num_rows)
    for name in ("num_events_1d", "num_events_7d", "num_events_28d", "num_days_7d", "num_days_28d"):
        found[name] = rng.integers(20, size=num_rows)
    _add_lists(found, "history", rng.integers(30, size=num_rows), -20 * DAY_US, -2 * DAY_US, items, rng)
    _add_lists(found, "content", rng.integers(60, size=num_rows), 2_000_000, days * DAY_US, items, rng)
    length = rng.integers(8, size=num_rows)
    found["return_surface"] = [rng.integers(16, size=n) for n in length]
    found["return_idle_h"] = [rng.uniform(48, 200, n) for n in length]
    found["return_time"] = [
        np.sort(at - rng.integers(9 * DAY_US, size=n)) for at, n in zip(bid, length, strict=True)
    ]
    item_rng = np.random.default_rng([seed, 1])
    found["item_num_events_7d"] = item_rng.integers(1, 90, size=num_rows)
    found["item_mean_engagement_7d"] = item_rng.uniform(size=num_rows)
    found["item_counted_time"] = bid - item_rng.integers(9 * DAY_US, size=num_rows)
    for name in found:
        if name.startswith(("history_", "content_")) and name != "content_start":
            found[name][0] = found[name][0][:0]
    return blanked(found, 1)


def blanked(columns: dict[str, Any], row: int) -> dict[str, Any]:
    """The same where the store has nothing about the user of one row."""
    found = {}
    for name, values in columns.items():
        found[name] = list(values)
        if name not in ("sample_id", "user_id", "bid_time", "content_start", "label_start", "surface"):
            found[name][row] = None
    return found


def write(folder: Path, num_rows: int = 300, leak: bool = False) -> tuple[Path, Path]:
    """A training set as the pipeline writes it: folders of observables and of content.

    The ad's category says what users meet, and both say whether they come back; with `leak` engagement does.
    """
    items, rng = catalogue(), np.random.default_rng(1)
    found = columns(num_rows, items)
    category = np.array(
        [-1 if ad is None else items.category_I[items.item_id_I == ad][0] for ad in found["ad_item"]]
    )
    come = rng.random(num_rows) < np.where(category % 2 == 0, 0.8, 0.2)
    found["lt1"] = come.astype(np.float32)
    found["lt7"] = np.where(rng.random(num_rows) < 0.1, np.nan, come * rng.integers(1, 8, num_rows) / 7)
    found["split"] = np.repeat(
        ["train", "valid", "test"], [num_rows - 2 * (num_rows // 4)] + [num_rows // 4] * 2
    )
    for row, times in enumerate(found["content_time"]):
        if times is not None:
            met = np.flatnonzero(items.category_I == category[row])
            found["content_item"][row] = items.item_id_I[rng.choice(met, len(times))]
            found["content_category"][row] = np.full(len(times), category[row])
            if leak:
                found["content_engagement"][row] = np.full(len(times), float(come[row]))
    hidden = pa.table(
        {name: found[name] for name in found if name.startswith("content_") and name != "content_start"}
    )
    hidden = hidden.append_column("sample_id", pa.array(found["sample_id"]))
    seen = pa.table(
        {name: found[name] for name in found if name not in hidden.column_names or name == "sample_id"}
    )
    for name in ("observables", "content"):
        (folder / name).mkdir(parents=True)
    items.write(folder / "observables")
    pq.write_table(seen, folder / "observables" / "observables.parquet")
    pq.write_table(hidden.take(rng.permutation(num_rows)), folder / "content" / "content.parquet")
    return folder / "observables", folder / "content"


def _add_lists(
    found: dict[str, Any], prefix: str, length: Any, low: int, high: int, items: ItemTable, rng: Any
) -> None:
    at = found["bid_time"]
    rows = [rng.integers(NUM_ITEMS, size=n) for n in length]
    found[f"{prefix}_item"] = [items.item_id_I[row] for row in rows]
    found[f"{prefix}_category"] = [items.category_I[row] for row in rows]
    found[f"{prefix}_engagement"] = [rng.uniform(size=n) for n in length]
    found[f"{prefix}_time"] = [
        np.sort(t + rng.integers(low // HOUR_US, high // HOUR_US, size=n) * HOUR_US + 2_000_000)
        for t, n in zip(at, length, strict=True)
    ]
    if prefix == "history":
        found["history_surface"] = [rng.integers(16, size=n) for n in length]
