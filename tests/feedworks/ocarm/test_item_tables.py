"""Tables of items and authors against a count of every event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from feedworks.contracts.features import AUTHOR_PROFILE, ITEM_PROFILE
from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.ocarm import event_log, item_tables
from feedworks.ocarm.event_log import read_blocks
from feedworks.ocarm.item_tables import ItemTables


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_retention(tmp_path_factory.mktemp("log"), num_users=60, num_items=300, seed=2)


@pytest.mark.parametrize("block_events", [100, 10**9])
def test_every_row_counts_the_week_before_it(
    data: Path, tmp_path: Path, block_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "BLOCK_EVENTS", block_events)
    monkeypatch.setattr(event_log, "BATCH_EVENTS", block_events)
    tables = ItemTables(data)
    for events in read_blocks(data):
        tables.add(events)
    tables.write(tmp_path)
    items = read_table(CATALOGUE, data, ["item_id", "author_id", "category"]).to_pandas()
    log = read_table(EVENTS, data).to_pandas().merge(items, on="item_id")
    for table, entity, prefix in ((ITEM_PROFILE, "item_id", "item_"), (AUTHOR_PROFILE, "author_id", "")):
        rows = read_table(table, tmp_path).to_pandas()
        days = log[[entity]].assign(day=log.event_time.dt.floor("D")).drop_duplicates()
        assert len(rows) == len(days)
        assert rows.sort_values([entity, "event_time"]).equals(rows)
        for row in rows.iloc[:: max(1, len(rows) // 150)].itertuples():
            known = log[(log[entity] == getattr(row, entity)) & (log.event_time < row.event_time)]
            week = known[known.event_time >= row.event_time - timedelta(days=7)]
            count, liked = f"{prefix}num_events_7d", f"{prefix}mean_engagement_7d"
            assert getattr(row, count) == len(week) > 0
            assert getattr(row, liked) == pytest.approx(week.engagement.mean(), abs=1e-6)
            if entity == "author_id":
                assert row.num_items == known.item_id.nunique()
                continue
            assert (row.item_author_id, row.item_category) == (week.author_id.iloc[0], week.category.iloc[0])
            assert row.item_counted_time == row.event_time.value // 1000
    assert rows.event_time.min() > pd.Timestamp(datetime(2000, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("merge_rows", [0, 500, 10**9])
def test_blocks_that_are_merged_on_the_way_give_the_same_bytes(
    data: Path, tmp_path: Path, merge_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(block_events: int, name: str) -> list[bytes]:
        monkeypatch.setattr(event_log, "BLOCK_EVENTS", block_events)
        monkeypatch.setattr(event_log, "BATCH_EVENTS", block_events)
        tables, most = ItemTables(data), 0
        for events in read_blocks(data):
            tables.add(events)
            most = max(most, len(tables._parts))
        tables.write(tmp_path / name)
        assert (most > 30) == (block_events == 100 and merge_rows == 10**9), "they are merged on the way"
        return [table.path(tmp_path / name).read_bytes() for table in (ITEM_PROFILE, AUTHOR_PROFILE)]

    monkeypatch.setattr(item_tables, "MERGE_ROWS", merge_rows)
    assert written(100, "blocks") == written(10**9, "one")
