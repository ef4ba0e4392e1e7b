"""Features through Feast itself: feature tables, apply, materialise, and answers from the embedded store."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from feedworks.contracts.features import FEATURE_TABLES
from feedworks.contracts.files import write_table
from feedworks.contracts.tables import EVENT_TIME
from feedworks.ocarm.answering import Answering
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.request import query_type

from . import served, toy

ROOT = Path(__file__).resolve().parents[3]
USERS = range(100, 106)
ROWS = served.rows_of(toy.columns(len(USERS), toy.catalogue()), USERS)  # 101 has none
ROW_US = toy.START_US + 40 * toy.DAY_US
BID_US = ROW_US + 3_600_000_000


def write_tables(folder: Path) -> None:
    """The rows as feature tables, and empty ones of all other views."""
    folder.mkdir()
    for table in FEATURE_TABLES:
        found = [(user, row[table.name]) for user, row in ROWS.items() if table.name in row]
        columns = {table.entity: [user for user, _ in found], "event_time": [ROW_US] * len(found)}
        for column in table.features:
            columns[column.name] = [_plain(row.get(column.name)) for _, row in found]
        rows = {
            name: pa.array(values, pa.int64()).cast(EVENT_TIME)
            if name == "event_time"
            else pa.array(values).cast(table.column(name).type)
            for name, values in columns.items()
        }
        write_table(table, pa.table(rows), folder)


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


@pytest.mark.slow
def test_users_from_the_embedded_store(tmp_path: Path) -> None:
    from feedworks.features.materialize import materialize
    from feedworks.features.reading import open_source
    from feedworks.features.repo import apply

    repo = tmp_path / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repo, ignore=shutil.ignore_patterns("data"))
    write_tables(tmp_path / "tables")
    apply(repo, tmp_path / "tables")
    at = datetime.fromtimestamp(ROW_US / 1e6, UTC)
    views = [view.name for view in served.SCHEMA.views]
    materialize(repo, at - timedelta(days=1), at + timedelta(days=1), views)
    predictor = Predictor.load(served.write_model_package(tmp_path / "model"))
    users = [{"user_id": user, "surface": 3, "bid_time": BID_US} for user in USERS]
    query = query_type(predictor.schema).model_validate({"users": users})
    given = [
        {**user, "features": served.as_json(ROWS[user["user_id"]])}
        for user in users
        if user["user_id"] != 101
    ]

    async def run() -> None:
        answering = Answering(
            predictor, open_source(f"feast://{repo}", predictor.schema, timeout_s=10), deadline_s=10
        )
        try:
            from_store = await answering.answer(query.users)
            from_request = await answering.answer(
                query_type(predictor.schema).model_validate({"users": given}).users
            )
        finally:
            await answering.close()
        assert from_store[1].reasons == [f"{view}:missing" for view in views]
        whole = [from_store[0], *from_store[2:]]
        for stored, told in zip(whole, from_request, strict=True):
            assert stored.views == dict.fromkeys(views, ("fresh", 3600.0))
            assert (stored.source, stored.reasons) == ("model", [])
            assert stored.probability == pytest.approx(told.probability, abs=1e-6)

    asyncio.run(run())
