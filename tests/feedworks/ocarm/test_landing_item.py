"""The landing item of the ad: as of the bid, the same in training and serving, only where there is one."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from feedworks.contracts.features import ITEM_PROFILE, STUDENT_ITEM_SERVICE, STUDENT_SERVICE
from feedworks.contracts.files import read_table
from feedworks.contracts.retention import EVENTS
from feedworks.errors import DataError
from feedworks.features.reading import open_source
from feedworks.features.refresh import refresh
from feedworks.features.schema import FEATURES_FILE, ServiceSchema
from feedworks.features.training_set import build_training_set
from feedworks.ocarm.answering import Answer, Answering
from feedworks.ocarm.config import Architecture, SamplesConfig, Sizes, resolve
from feedworks.ocarm.data import ItemTable, number_names, observables, without_views
from feedworks.ocarm.known import put_rows, unknown
from feedworks.ocarm.model import Student
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.request import query_type
from feedworks.ocarm.samples import build_samples
from feedworks.ocarm.time_audit import audit_times

from . import served, toy
from .logs import random_log

CFG = resolve("tiny", ["samples.landing_item=true"])
ITEM = ITEM_PROFILE.name
BID_US = toy.START_US + 40 * toy.DAY_US
ROW_US = BID_US - 3600 * 1_000_000
USERS, AD = range(100, 106), 5
COLUMNS = toy.columns(len(USERS), toy.catalogue())
ROWS = served.rows_of(COLUMNS, USERS)
ITEM_ROW = {
    "item_category": 3,
    "item_author_id": 9,
    "item_num_events_7d": 40,
    "item_mean_engagement_7d": 0.25,
    "item_counted_time": ROW_US,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log/, samples/, tables/, observables/ and content/ of a small log whose samples have landing items."""
    folder = tmp_path_factory.mktemp("landing")
    build_samples(random_log(folder / "log", seed=3), folder / "samples", folder / "tables", CFG.samples)
    build_training_set(*(folder / name for name in ("samples", "tables", "observables", "content")))
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("item") / "model"
    return Predictor.load(served.write_model_package(folder, schema=served.ITEM_SCHEMA))


def test_the_item_is_counted_up_to_the_bid_and_without_the_event_that_it_led_to(made: Path) -> None:
    log = read_table(EVENTS, made / "log").to_pandas()
    rows = pq.read_table(made / "observables" / "observables.parquet").to_pandas()
    missing = 0
    for row in rows.itertuples():
        earlier = log[(log.item_id == row.ad_item) & (log.event_time < row.bid_time.floor("D"))]
        end = None if earlier.empty else earlier.event_time.max().floor("D") + timedelta(days=1)
        if end is None or row.bid_time - end > timedelta(seconds=ITEM_PROFILE.ttl_s):
            assert np.isnan([row.item_num_events_7d, row.item_counted_time, row.item_category]).all()
            missing += 1
            continue
        week = earlier[earlier.event_time >= end - timedelta(days=7)]
        assert row.item_num_events_7d == len(week)
        assert row.item_mean_engagement_7d == pytest.approx(week.engagement.mean(), abs=1e-6)
        assert pd.Timestamp(row.item_counted_time, unit="us", tz="UTC") == end <= row.bid_time
    assert 0 < missing < len(rows) / 2
    schema = ServiceSchema.read(made / "observables" / FEATURES_FILE)
    assert schema == ServiceSchema.of(STUDENT_ITEM_SERVICE)


def test_the_times_of_the_item_are_audited(made: Path, tmp_path: Path) -> None:
    audit_times(made / "observables", made / "content", CFG.samples).require_clean()
    table = pq.read_table(made / "observables" / "observables.parquet")
    place = table.column_names.index("item_counted_time")
    late = pc.add(table["bid_time"].cast(pa.int64()), 1_000_000)
    for values, said in (
        (late, "item_counted_time <= bid_time"),
        (pa.nulls(len(table), late.type), "is there"),
    ):
        pq.write_table(table.set_column(place, "item_counted_time", values), tmp_path / "observables.parquet")
        with pytest.raises(DataError, match=said):
            audit_times(tmp_path, None, CFG.samples).require_clean()
    pq.write_table(table.drop_columns(["item_counted_time"]), tmp_path / "observables.parquet")
    with pytest.raises(DataError, match="lacks columns item_counted_time"):
        audit_times(tmp_path, None, CFG.samples)
    with pytest.raises(DataError, match=f"no column besides those of the samples and of {STUDENT_SERVICE}"):
        audit_times(made / "observables", made / "content", SamplesConfig()).require_clean()


def test_a_store_gives_what_training_was_given(made: Path, tmp_path: Path) -> None:
    """The rows that stand online when a bid comes, read by user and item, make the same tensors."""
    rows = pq.read_table(made / "observables" / "observables.parquet")
    order = np.argsort(rows["bid_time"].to_numpy())
    chosen = rows.take(order[[len(order) // 3, len(order) // 2, -1]])
    catalogue, schema = ItemTable.read(made / "observables"), ServiceSchema.of(STUDENT_ITEM_SERVICE)
    sizes = Sizes(num_items=len(catalogue.item_id_I) + 1, vector_width=catalogue.vector_IV.shape[1])
    architecture = Architecture(model=CFG.model, samples=CFG.samples, sizes=sizes)
    for place, row in enumerate(chosen.select(["user_id", "ad_item", "bid_time", "surface"]).to_pylist()):
        store = tmp_path / str(place)
        store.mkdir()
        _online(made / "tables", store, row["bid_time"])
        bid_us = np.array([round(row["bid_time"].timestamp() * 1e6)])
        source = open_source(f"feast://{store}", schema, timeout_s=30)
        keys = {"user_id": [row["user_id"]], "item_id": [row["ad_item"]]}
        known = unknown(schema, 1)
        put_rows(known, schema, np.array([0]), asyncio.run(source.read(keys, int(bid_us[0]))), bid_us)
        request = {name: np.array([row[name]]) for name in ("user_id", "ad_item", "surface")}
        online = observables({**request, "bid_time": bid_us, **known.columns}, catalogue, architecture)
        part = chosen.slice(place, 1)
        offline = observables({c: part[c] for c in part.column_names}, catalogue, architecture)
        for name, one, other in zip(offline._fields, offline, online, strict=True):
            torch.testing.assert_close(other, one, msg=name)


def _online(tables: Path, repo: Path, at: datetime) -> None:
    """A feature repository in which what was known at a time is online."""
    cut = repo / "tables"
    cut.mkdir()
    for path in tables.iterdir():
        rows = pq.read_table(path)
        pq.write_table(rows.filter(pc.less_equal(rows["event_time"], at)), cut / path.name)
    refresh(cut, repo)


def test_a_model_without_landing_items_is_as_if_there_were_none() -> None:
    items, columns = toy.catalogue(), toy.columns(64, toy.catalogue())
    plain, with_item = toy.settings().samples, served.WITH_ITEM.samples
    bare = {name: values for name, values in columns.items() if not name.startswith("item_")}
    found, other = (observables(given, items, toy.architecture()) for given in (columns, bare))
    assert all(torch.equal(one, two) for one, two in zip(found, other, strict=True))
    assert found.number_BP.shape[1] == 2 * len(number_names(plain)) == 2 * 10
    assert number_names(with_item)[:10] == number_names(plain)
    shapes = []
    for architecture in (toy.architecture(), toy.architecture(served.WITH_ITEM)):
        shapes.append({name: x.shape for name, x in Student(architecture).state_dict().items()})
    assert shapes[0].keys() == shapes[1].keys()
    assert shapes[0]["retention.layers.0.0.0.weight"][1] + 6 == shapes[1]["retention.layers.0.0.0.weight"][1]
    torch.manual_seed(0)
    torch.rand(64), torch.randint(3, (64,))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    without_views(found, 0.5, plain)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(DataError, match="column item_counted_time is missing"):
        observables(bare, items, toy.architecture(served.WITH_ITEM))


def ask(predictor: Predictor, source: served.MemorySource | None, **more: Any) -> Answer:
    body = {"user_id": 100, "surface": 3, "ad_item": AD, "bid_time": BID_US, **more}
    query = query_type(predictor.schema).model_validate({"users": [body]})

    async def run() -> Answer:
        answering = Answering(predictor, source)
        try:
            return (await answering.answer(query.users))[0]
        finally:
            await answering.close()

    return asyncio.run(run())


def memory(rows: Any = ROWS, item: Any = ITEM_ROW, time_us: int = ROW_US) -> served.MemorySource:
    return served.MemorySource(rows, time_us, items={AD: {ITEM: item}}, schema=served.ITEM_SCHEMA)


def expected(predictor: Predictor, item: dict[str, Any] | None, ad_item: int | None = AD) -> float:
    features = {f.name: [None] for v in served.ITEM_SCHEMA.views for f in v.features}
    features |= {name: [value] for row in ROWS[100].values() for name, value in row.items()}
    features |= {name: [value] for name, value in (item or {}).items()}
    request = {"user_id": [100], "bid_time": np.array([BID_US]), "surface": [3], "ad_item": [ad_item]}
    return float(predictor.predict(request | features)[0, 0])


def test_user_and_item_come_by_one_read(predictor: Predictor) -> None:
    source = memory()
    answer = ask(predictor, source)
    assert (answer.source, answer.reasons, source.reads) == ("model", [], 1)
    assert answer.views[ITEM] == ("fresh", 3600.0)
    assert answer.probability["lt1"] == pytest.approx(expected(predictor, ITEM_ROW), abs=1e-6)
    assert expected(predictor, ITEM_ROW) != expected(predictor, ITEM_ROW | {"item_num_events_7d": 1})


@pytest.mark.parametrize(
    ("state", "source", "ad_item"),
    [
        ("missing", memory(), 6),
        ("missing", memory(), None),
        ("stale", memory(time_us=BID_US - ITEM_PROFILE.ttl_s * 1_000_000 - 1), AD),
        ("ahead", memory(time_us=BID_US + 61_000_000), AD),
        ("incomplete", memory(item=ITEM_ROW | {"item_num_events_7d": None}), AD),
    ],
)
def test_an_item_that_may_not_be_used_is_told(
    predictor: Predictor, state: str, source: served.MemorySource, ad_item: int | None
) -> None:
    answer = ask(predictor, source, ad_item=ad_item)
    assert f"{ITEM}:{state}" in answer.reasons
    assert answer.degraded
    if state in ("missing", "stale"):  # users' rows live longer
        assert answer.reasons == [f"{ITEM}:{state}"]
        assert answer.probability["lt1"] == pytest.approx(expected(predictor, None, ad_item), abs=1e-6)


def test_features_of_the_item_may_come_with_the_request(predictor: Predictor) -> None:
    features = served.as_json(ROWS[100])
    answer = ask(predictor, None, features=features | served.as_json({ITEM: ITEM_ROW}))
    assert (answer.reasons, answer.views[ITEM].state) == ([], "given")
    assert answer.probability["lt1"] == pytest.approx(expected(predictor, ITEM_ROW), abs=1e-6)
    assert ask(predictor, None, features=features).reasons == [f"{ITEM}:missing"]
    with pytest.raises(ValueError, match="item_mean_engagement_7d"):
        ask(predictor, None, features={"item_mean_engagement_7d": 2.0})
