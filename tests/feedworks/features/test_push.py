"""Pushes of live rows: what is refused and named, what is late or repeated, a store that comes and goes."""

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from feedworks.contracts.features import LIVE_SERVICE, LIVE_STREAM
from feedworks.errors import ConfigError, DataError, StoreError
from feedworks.features.live_log import arrivals, synthetic_log
from feedworks.features.local_redis import running_redis
from feedworks.features.push import FeastSink, PackedSink, open_sink, push, stream_table
from feedworks.features.reading import FRESH, MISSING, open_source
from feedworks.features.replay import replay
from feedworks.features.schema import ServiceSchema

from .feast_stores import ONLINE, open_store

NOW = datetime.now(UTC).replace(microsecond=0)
NOW_US = int(NOW.timestamp()) * 1_000_000
SCHEMA = ServiceSchema.of(LIVE_SERVICE)


@pytest.fixture(scope="module")
def server():
    with running_redis() as server:
        yield server


def event(room, viewers=5, at=NOW, **changes):
    return {
        "room_id": room,
        "event_time": at,
        "author_id": 7,
        "num_viewers": viewers,
        "num_comments_1m": 1,
        "num_comments_5m": 2,
        "num_gifts_5m": 3,
        "gift_value_5m": 1.5,
        "num_follows_5m": 0,
        "watch_share_5m": None,
        "started_time": 1_700_000_000_000_000,
        "anchor_version": 2**60 + 1,
        "anchor_codes": [1, 2, 3],
        **changes,
    }


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


def read(url, rooms):
    async def once():
        source = open_source(url, SCHEMA)
        try:
            return await source.read(rooms, NOW_US + 1_000_000)
        finally:
            await source.close()

    return asyncio.run(once())


def feast_sink(kind, folder, server):
    from feedworks.features.definitions import define

    return FeastSink(
        open_store(kind, folder, server.port, define(folder, [LIVE_STREAM]).objects, f"push_{kind}")
    )


def viewers(sink, rooms):
    """What Feast reads of the sink's store."""
    names = [f"live_stream:{c.name}" for c in LIVE_STREAM.features]
    return sink._store.get_online_features(names, {"room_id": rooms}).to_dict()


BAD = {
    "is missing": without(event(2), "num_gifts_5m"),
    "is not of view live_stream": event(3, surprise=1),
    "num_viewers = 'many' is no int64": event(4, viewers="many"),
    "num_viewers = 1.5 is no int64": event(5, viewers=1.5),
    "num_viewers = True is no int64": event(6, viewers=True),
    "gift_value_5m holds NaN": event(7, gift_value_5m=float("nan")),
    r"watch_share_5m is outside \[0, 1\]": event(8, watch_share_5m=1.5),
    "num_viewers is null": event(9, viewers=None),
    r"anchor_codes = \['a'\] is no list<int64>": event(10, anchor_codes=["a"]),
    "event_time = 'yesterday' is no time": event(11, at="yesterday"),
    "num_viewers is outside": event(12, viewers=-1),
    "anchor_codes holds a null": event(13, anchor_codes=[1, None]),
}


def test_a_bad_row_is_named_and_the_others_are_written(server):
    url = f"packed+{server.url}?project=bad"
    sink = open_sink(url)
    rows = [event(1, viewers=11), *BAD.values(), event(20, viewers=12, at=NOW.isoformat())]
    done = push(sink, LIVE_STREAM, rows)
    assert done.num_accepted == 2
    assert [rejected.row for rejected in done.rejected] == list(range(1, len(BAD) + 1))
    for rejected, (reason, row) in zip(done.rejected, BAD.items(), strict=True):
        assert rejected.entity == f"room_id={row['room_id']}"
        assert re.search(reason, str(rejected))
    found = read(url, [1, 20, *range(2, 14)])
    assert found.columns["num_viewers"].tolist()[:2] == [11, 12]
    assert found.columns["anchor_version"].tolist()[:2] == [2**60 + 1] * 2
    assert found.status["live_stream"].tolist() == [FRESH] * 2 + [MISSING] * len(BAD)
    sink.close()


def test_a_table_without_a_column_is_refused_row_by_row(server):
    sink = PackedSink(server.url, "columns")
    log = synthetic_log(3)
    done = push(sink, LIVE_STREAM, log.drop_columns(["author_id"]))
    assert (done.num_accepted, len(done.rejected)) == (0, 3)
    assert "column author_id is missing" in done.rejected[2].reason
    text = log.set_column(0, "room_id", pa.array(["a", "b", "c"]))
    assert "room_id" in push(sink, LIVE_STREAM, text).rejected[0].reason
    sink.close()


def test_a_table_without_rows_still_needs_its_columns(server):
    sink = PackedSink(server.url, "empty")
    assert push(sink, LIVE_STREAM, LIVE_STREAM.schema.empty_table()).num_accepted == 0
    few = LIVE_STREAM.schema.empty_table().drop_columns(["author_id", "num_viewers"])
    with pytest.raises(
        DataError, match="column author_id, num_viewers is missing; expected a table of live_stream"
    ):
        push(sink, LIVE_STREAM, few)
    sink.close()


def test_unknown_views_and_addresses():
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        open_sink("packed+redis://127.0.0.1:abc/0")
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        open_source("packed+redis://127.0.0.1:99999/0", ServiceSchema.of(LIVE_SERVICE))
    assert stream_table("live_stream") is LIVE_STREAM
    for name in ("user_profile", "nothing"):
        with pytest.raises(DataError, match=f"'{name}' takes no pushes; those that do: live_stream"):
            stream_table(name)
    with pytest.raises(ConfigError, match="packed"):
        open_sink("redis://127.0.0.1:1/0")


@pytest.mark.parametrize("kind", ONLINE)
def test_late_and_repeated_pushes_through_feast(kind, tmp_path, server):
    sink = feast_sink(kind, tmp_path, server)
    early, late = NOW - timedelta(seconds=5), NOW - timedelta(microseconds=1)
    assert push(sink, LIVE_STREAM, [event(1, 1, early), event(1, 3, NOW), event(2, 9, NOW)]).num_accepted == 3
    for _ in range(2):
        push(sink, LIVE_STREAM, [event(1, 2, late), event(1, 3, NOW), event(1, 1, early)])
    found = viewers(sink, [1, 2, 3])
    assert found["num_viewers"] == [3, 9, None]
    # A whole number beside a null stays whole, all the way.
    assert found["anchor_version"] == [2**60 + 1, 2**60 + 1, None]
    assert found["anchor_codes"] == [[1, 2, 3], [1, 2, 3], None]
    assert found["watch_share_5m"] == [None] * 3


def test_both_ways_into_packed_rows_are_the_same(tmp_path, server):
    """Rows pushed directly are read through Feast, and the other way round."""
    sink = feast_sink("packed", tmp_path, server)
    direct = PackedSink(server.url, "push_packed")
    push(sink, LIVE_STREAM, [event(31, 1)])
    push(direct, LIVE_STREAM, [event(32, 2)])
    assert viewers(sink, [31, 32])["num_viewers"] == [1, 2]
    url = f"packed+{server.url}?project=push_packed"
    assert read(url, [31, 32]).columns["num_viewers"].tolist() == [1, 2]
    direct.close()


def test_a_push_outlives_a_store_that_restarts_and_gives_up_on_one_that_is_gone():
    with running_redis() as server:
        sink = PackedSink(server.url, "restart")
        push(sink, LIVE_STREAM, [event(1)])
        server.stop()
        server.start()
        assert push(sink, LIVE_STREAM, [event(1)]).num_accepted == 1
        server.stop()
        start_s = time.perf_counter()
        with pytest.raises(StoreError, match="pushed 4 times without an answer"):
            push(sink, LIVE_STREAM, [event(1)])
        assert time.perf_counter() - start_s < 5


def test_the_log_is_of_the_contract_and_seeded():
    log = synthetic_log(2000, num_rooms=10, seed=3)
    assert log.equals(synthetic_log(2000, num_rooms=10, seed=3))
    assert not log.equals(synthetic_log(2000, num_rooms=10, seed=4))
    assert push(_Nothing(), LIVE_STREAM, log).num_accepted == 2000
    room = log.filter(pa.compute.equal(log["room_id"], 4))
    assert (np.diff(room["anchor_version"].to_numpy()) >= 0).all()


class _Nothing:
    def write(self, table, rows):
        pass


def test_arrivals_say_which_events_are_late_or_repeated():
    log = synthetic_log(5000, num_rooms=20)
    coming = arrivals(log, 1000, NOW_US, seed=1)
    rooms, times = coming.rows["room_id"].to_numpy(), coming.rows["event_time"].cast(pa.int64()).to_numpy()
    assert 50 < coming.late_N.sum() < 150
    assert 20 < coming.repeated_N.sum() < 80
    for i in np.flatnonzero(coming.late_N):
        assert (times[:i][rooms[:i] == rooms[i]] >= times[i]).any()
    for i in np.flatnonzero(coming.repeated_N):
        assert coming.rows.slice(i, 1).to_pylist()[0] in coming.rows.slice(0, i).to_pylist()
    good = ~coming.late_N & ~coming.repeated_N
    assert all((np.diff(times[good & (rooms == room)]) > 0).all() for room in range(20))


class _Faulty(PackedSink):
    """Drops what is of room 0, and writes rooms 1 and 2 as they come, older rows too."""

    def write(self, table, rows):
        room = rows["room_id"].to_numpy()
        super().write(table, rows.filter(pa.array(room != 0)))
        for key in self._client.scan_iter(b"fw:faulty:*"):
            if int.from_bytes(key[-8:], "little") in (1, 2):
                self._client.delete(key)
        super().write(table, rows.filter(pa.array(np.isin(room, (1, 2)))))


@pytest.mark.parametrize(("sink_class", "project"), [(PackedSink, "sound"), (_Faulty, "faulty")])
def test_a_replay_counts_what_is_lost(server, sink_class, project):
    sink = sink_class(server.url, project)
    log = synthetic_log(600, num_rooms=8)
    done = replay(sink, f"packed+{server.url}?project={project}", log, rate=300, seconds=2)
    sink.close()
    assert done.num_pushed == 600
    assert done.num_rejected == done.num_wrong == 0
    assert done.num_late > 0
    assert done.num_repeated > 0
    if project == "sound":
        assert (done.num_lost, done.num_backwards) == (0, 0)
        assert 0 < done.freshness_p50_s <= done.freshness_p99_s <= done.freshness_max_s < 2
    else:
        assert done.num_lost > 40
        assert done.num_backwards > 0
