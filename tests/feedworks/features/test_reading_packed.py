"""Packed rows read from a real Redis: values, time to live, missing rows, a store that is down or slow."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest
import redis

from feedworks.errors import ConfigError, StoreError
from feedworks.features.local_redis import running_redis
from feedworks.features.packed_redis import write_rows
from feedworks.features.reading import FRESH, MISSING, STALE, PackedSource, layout_of, open_source
from feedworks.features.schema import FeatureSchema, ServiceSchema, ViewSchema

NOW_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


def view(view_name, ttl_s, entity="user_id", **features):
    return ViewSchema(
        name=view_name,
        entity=entity,
        ttl_s=ttl_s,
        training_only=False,
        features=tuple(FeatureSchema(name=key, type=type_) for key, type_ in features.items()),
    )


SCHEMA = ServiceSchema(
    service="test",
    views=(
        view("short", 60, clicks="int64", share="float32", known="bool"),
        view("long", 3600, name="string", history="list<int64>", words="list<string>"),
    ),
)
SHORT, LONG = (layout_of(part) for part in SCHEMA.views)


@pytest.fixture(scope="module")
def server():
    with running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with redis.Redis(port=server.port) as client:
        yield client


def read(server, keys, now_us=NOW_US, project="feedworks", schema=SCHEMA):
    async def once():
        source = open_source(f"packed+{server.url}?project={project}", schema)
        try:
            return await source.read(keys, now_us)
        finally:
            await source.close()

    return asyncio.run(once())


def put(client, layout, key, values, age_s, project="feedworks"):
    return write_rows(client, project, layout, [key], [layout.encode(values, NOW_US - age_s * SECOND_US)])


def test_values_times_and_missing_rows(server, client):
    put(client, SHORT, 1, [7, 0.5, True], 10)
    put(client, SHORT, 2, [None, None, None], 20)
    put(client, LONG, 1, ["Ünal", [3, 2**60], ["a", ""]], 30)
    rows = read(server, [2, 1, 99, 1])
    np.testing.assert_array_equal(rows.columns["clicks"], [0, 7, 0, 7])
    np.testing.assert_array_equal(rows.columns["share"], np.float32([np.nan, 0.5, np.nan, 0.5]))
    assert rows.columns["share"].dtype == np.float32
    np.testing.assert_array_equal(rows.columns["known"], [False, True, False, True])
    np.testing.assert_array_equal(rows.null["clicks"], [True, False, True, False])
    assert rows.columns["name"].tolist() == [None, "Ünal", None, "Ünal"]
    assert [history.tolist() for history in rows.columns["history"]] == [[], [3, 2**60], [], [3, 2**60]]
    assert [words.tolist() for words in rows.columns["words"]] == [[], ["a", ""], [], ["a", ""]]
    assert rows.status["short"].tolist() == [FRESH, FRESH, MISSING, FRESH]
    assert rows.status["long"].tolist() == [MISSING, FRESH, MISSING, FRESH]
    assert rows.time_us["short"].tolist() == [
        NOW_US - 20 * SECOND_US,
        NOW_US - 10 * SECOND_US,
        0,
        NOW_US - 10 * SECOND_US,
    ]
    assert rows.degraded.tolist() == [True, False, True, False]


def test_no_keys(server):
    rows = read(server, [])
    assert rows.columns["clicks"].shape == (0,)
    assert rows.columns["history"] == []


def test_time_to_live_is_each_views_own(server, client):
    put(client, SHORT, 5, [7, 0.5, True], 60)
    put(client, LONG, 5, ["x", [1], []], 60)
    assert read(server, [5]).status["short"].tolist() == [FRESH]
    rows = read(server, [5], NOW_US + 1)
    assert (rows.status["short"].tolist(), rows.status["long"].tolist()) == ([STALE], [FRESH])
    assert rows.time_us["short"].tolist() == [NOW_US - 60 * SECOND_US]
    assert rows.null["clicks"].tolist() == [True]
    assert rows.columns["clicks"].tolist() == [0]
    assert np.isnan(rows.columns["share"]).all()
    assert rows.columns["name"].tolist() == ["x"]


def test_a_row_of_another_version_or_project_is_missing(server, client):
    before = view("short", 60, clicks="int64", share="float32")
    put(client, layout_of(before), 6, [1, 0.5], 0)
    put(client, SHORT, 6, [1, 0.5, True], 0, project="other")
    assert read(server, [6]).status["short"].tolist() == [MISSING]
    # The same key with a row of another version in it, or a damaged one.
    stored = SHORT.encode([1, 0.5, True], NOW_US)
    for row in (layout_of(before).encode([1, 0.5], NOW_US), stored[:-1], stored[:9], stored + b"x", b""):
        write_rows(client, "feedworks", SHORT, [7], [stored])
        client.set(next(iter(client.scan_iter(b"fw:feedworks:short:*" + (7).to_bytes(8, "little")))), row)
        assert read(server, [7]).status["short"].tolist() == [MISSING]


def test_an_older_row_never_overwrites(client, server):
    assert put(client, SHORT, 8, [1, 0.0, True], 10) == 1
    assert put(client, SHORT, 8, [2, 0.0, True], 11) == 0
    assert read(server, [8]).columns["clicks"].tolist() == [1]
    assert put(client, SHORT, 8, [3, 0.0, True], 10) == 1  # as old: a correction
    assert put(client, SHORT, 8, [4, 0.0, True], 9) == 1
    assert read(server, [8]).columns["clicks"].tolist() == [4]
    later = SHORT.encode([5, 0.0, True], NOW_US - 9 * SECOND_US, created_us=2)
    earlier = SHORT.encode([6, 0.0, True], NOW_US - 9 * SECOND_US, created_us=1)
    assert [write_rows(client, "feedworks", SHORT, [8], [row]) for row in (later, earlier)] == [1, 0]
    assert read(server, [8]).columns["clicks"].tolist() == [5]


@pytest.mark.parametrize(
    "times", [(-5, -4), (0, 1), (2**32 - 1, 2**32), (-1, 0), (NOW_US, NOW_US + 1), (2**53, 2**53 + 1)]
)
def test_times_are_compared_exactly(client, server, times):
    rows = [SHORT.encode([i, 0.0, True], time) for i, time in enumerate(times)]
    client.flushdb()
    assert write_rows(client, "feedworks", SHORT, [9, 9], rows) == 2
    assert write_rows(client, "feedworks", SHORT, [9, 9], rows) == 1
    assert write_rows(client, "feedworks", SHORT, [9], rows[:1]) == 0


def test_a_store_that_is_down_is_said_at_once_and_comes_back(client):
    with running_redis() as server, redis.Redis(port=server.port) as own:

        async def run():
            source = PackedSource(server.url, SCHEMA)
            assert (await source.read([1], NOW_US)).status["short"].tolist() == [MISSING]
            server.stop()
            start_s = time.perf_counter()
            with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{server.port}"):
                await source.read([1], NOW_US)
            assert time.perf_counter() - start_s < 0.5
            server.start()
            put(own, SHORT, 1, [7, 0.5, True], 10)
            rows = await source.read([1], NOW_US)
            await source.close()
            return rows

        assert asyncio.run(run()).columns["clicks"].tolist() == [7]


def test_a_store_that_hangs_is_given_up_and_its_late_answer_is_not_the_next_ones():
    with running_redis() as server, redis.Redis(port=server.port) as own:
        put(own, SHORT, 1, [7, 0.5, True], 10)

        async def run():
            source = PackedSource(server.url, SCHEMA, timeout_s=0.2)
            await source.read([1], NOW_US)
            os.kill(server._process.pid, signal.SIGSTOP)
            start_s = time.perf_counter()
            with pytest.raises(StoreError, match="no answer within 0"):
                await source.read([1, 1, 1], NOW_US)
            assert time.perf_counter() - start_s < 0.5
            os.kill(server._process.pid, signal.SIGCONT)
            rows = await source.read([2, 1], NOW_US)
            await source.close()
            return rows

        assert asyncio.run(run()).columns["clicks"].tolist() == [0, 7]


def test_many_reads_at_once_share_the_connections(server, client):
    for key in range(20, 40):
        put(client, SHORT, key, [key, 0.5, True], 0)

    async def run():
        source = PackedSource(server.url, SCHEMA, max_connections=4, timeout_s=5.0)
        found = await asyncio.gather(*(source.read([key], NOW_US) for key in range(20, 40)))
        await source.close()
        return [int(rows.columns["clicks"][0]) for rows in found]

    assert asyncio.run(run()) == list(range(20, 40))


def test_addresses_and_schemas_that_cannot_be_served():
    with pytest.raises(ConfigError, match=r"http://x.*packed\+redis"):
        open_source("http://x", SCHEMA)


TWO = ServiceSchema(
    service="two", views=(view("a", 60, x="int64"), view("b", 60, entity="item_id", y="int64"))
)


def test_rows_of_two_entities_come_by_one_command(server, client):
    put(client, layout_of(TWO.views[0]), 1, [10], 5)
    put(client, layout_of(TWO.views[1]), 1, [20], 5)
    put(client, layout_of(TWO.views[1]), 7, [70], 61)
    before = client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
    rows = read(server, {"user_id": [1, 1, 2], "item_id": [7, -1, 1]}, schema=TWO)
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == before + 1
    assert rows.columns["x"].tolist() == [10, 10, 0]
    assert rows.columns["y"].tolist() == [0, 0, 20]
    assert rows.status["b"].tolist() == [STALE, MISSING, FRESH]


@pytest.mark.parametrize("keys", [[1], {"user_id": [1]}, {"user_id": [1, 2], "item_id": [1]}])
def test_ids_of_every_entity_are_needed(keys):
    source = open_source("packed+redis://127.0.0.1:1/0", TWO)
    with pytest.raises(ConfigError, match="read by user_id and item_id; give as many ids of each"):
        asyncio.run(source.read(keys, NOW_US))
