"""The packed store behind Feast's interface: the values of Feast's own stores, and the order of events."""

import asyncio
import itertools
import struct
import threading
from datetime import datetime, timedelta

import numpy as np
import pytest
import redis

from feedworks.errors import DataError
from feedworks.features.feast_source import MAX_WAITING, FeastSource
from feedworks.features.feast_values import layout_of_view
from feedworks.features.local_redis import running_redis
from feedworks.features.packed_redis import write_newer
from feedworks.features.reading import FRESH, MISSING, STALE
from feedworks.features.schema import FeatureSchema, ServiceSchema, ViewSchema

from .feast_stores import NOW, ONLINE, make_view, open_store, write

pytest.importorskip("feast")
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def port():
    with running_redis() as server:
        yield server.port


def all_types():
    from feast import types as t

    scalars = [t.Int32, t.Int64, t.Float32, t.Float64, t.Bool, t.String, t.Bytes, t.UnixTimestamp]
    fields = {str(scalar).lower(): scalar for scalar in scalars}
    fields |= {f"{name}_list": t.Array(scalar) for name, scalar in list(fields.items())}
    sets = [t.Int32, t.Int64, t.String, t.Bool]
    return fields | {
        **{f"{str(scalar).lower()}_set": t.Set(scalar) for scalar in sets},
        "map": t.Map,
        "json": t.Json,
        "uuid": t.Uuid,
        "decimal": t.Decimal,
        "struct": t.Struct({"a": t.Int64, "b": t.String}),
        "nested": t.Array(t.Array(t.Int64)),
    }


def full_row():
    import decimal
    import uuid

    when = datetime(2021, 3, 4, 5, 6, 7, tzinfo=NOW.tzinfo)
    row = {
        "int32": -(2**31),
        "int64": 2**63 - 1,
        "float32": 0.1,
        "float64": 1e-300,
        "bool": True,
        "string": "Ærø\x00",
        "bytes": b"\x00\xff",
        "unixtimestamp": when,
    }
    return {
        **row,
        **{f"{name}_list": [value, value] for name, value in row.items()},
        "int32_set": {1, 2},
        "int64_set": {2**40},
        "string_set": {"a"},
        "bool_set": {True},
        "map": {"a": "b"},
        "json": {"a": [1, None]},
        "uuid": uuid.UUID(int=7),
        "decimal": decimal.Decimal("1.50"),
        "struct": {"a": 1, "b": "x"},
        "nested": [[1, 2], [3]],
    }


@pytest.fixture(scope="module")
def typed(tmp_path_factory, port):
    """The same five rows in Feast's Redis store and in the packed one."""
    folder = tmp_path_factory.mktemp("typed")
    entity, view = make_view("typed", all_types())
    other_entity, other = make_view("other", {"plain": all_types()["int64"]})
    rows = {
        1: full_row(),
        2: dict.fromkeys(all_types()),
        3: {name: ([] if name.endswith("_list") else None) for name in all_types()},
        4: {
            **full_row(),
            "float32": float("nan"),
            "float64": float("inf"),
            "string": "",
            "bytes": b"",
            "int64": 0,
        },
    }
    stores = {}
    for kind in ("redis", "packed"):
        store = open_store(kind, folder, port, [entity, view, other], project=f"typed_{kind}")
        for key, row in rows.items():
            write(store, view, key, row, NOW)
        write(store, other, 2, {"plain": 5}, NOW - HOUR)
        stores[kind] = store
    del other_entity
    return stores


FEATURES = [*(f"typed:{name}" for name in full_row()), "other:plain"]


@pytest.mark.parametrize("full_names", [False, True])
def test_every_type_reads_as_from_feasts_redis(typed, full_names):
    keys = {"user_id": [2, 1, 99, 3, 4, 1]}
    answers = [
        typed[kind].get_online_features(FEATURES, keys, full_feature_names=full_names) for kind in typed
    ]
    theirs, ours = (repr(answer.to_dict()) for answer in answers)
    assert ours == theirs
    assert repr(answers[1].to_df().to_dict()) == repr(answers[0].to_df().to_dict())
    # The message that `feast serve` sends: the same but for rows that are not there: Feast says PRESENT.
    theirs, ours = (answer.proto for answer in answers)
    assert list(ours.metadata.feature_names.val) == list(theirs.metadata.feature_names.val)
    for our, their in zip(ours.results, theirs.results, strict=True):
        assert [str(value) for value in our.values] == [str(value) for value in their.values]
        assert our.event_timestamps[0] == their.event_timestamps[0]
    missing = [result.statuses[2] for result in ours.results]
    assert missing == [1] + [3] * len(FEATURES)  # PRESENT is the key's own, NOT_FOUND


def test_the_general_way_gives_the_same(typed):
    """Requests that the quick way leaves to Feast: here by asking for metadata."""
    keys = {"user_id": [2, 1, 99]}
    store = typed["packed"]
    quick = store.get_online_features(FEATURES, keys)
    general = store.get_online_features(FEATURES, keys, include_feature_view_version_metadata=True)
    assert type(quick) is not type(general)
    assert repr(quick.to_dict(True)) == repr(general.to_dict(True))
    rows = store.get_online_features(FEATURES, [{"user_id": key} for key in (2, 1, 99)])
    assert repr(rows.to_dict()) == repr(quick.to_dict())


def test_asynchronous_reads_and_writes(typed):
    async def read():
        store = typed["packed"]
        quick = await store.get_online_features_async(FEATURES, {"user_id": [1, 99]})
        general = await store.get_online_features_async(
            FEATURES, {"user_id": [1, 99]}, include_feature_view_version_metadata=True
        )
        client = store._get_provider().online_store._client_async
        await client.aclose()
        store._get_provider().online_store._client_async = None
        return quick, general

    quick, general = asyncio.run(read())
    expected = typed["redis"].get_online_features(FEATURES, {"user_id": [1, 99]}).to_dict()
    assert repr(quick.to_dict()) == repr(general.to_dict()) == repr(expected)


def test_keys_of_text_take_the_general_way(tmp_path, port):
    from feast import ValueType
    from feast.types import Int64

    entity, view = make_view("texts", {"n": Int64}, entity="word_id", value_type=ValueType.STRING)
    store = open_store("packed", tmp_path, port, [entity, view])
    write(store, view, "é", {"n": 3}, NOW)
    assert store.get_online_features(["texts:n"], {"word_id": ["é", "x"]}).to_dict()["n"] == [3, None]


def small(kind, folder, port, project="small"):
    from feast.types import Array, Float32, Int64

    entity, view = make_view("counts", {"n": Int64, "share": Float32, "items": Array(Int64)}, ttl_s=60)
    return open_store(kind, folder, port, [entity, view], project=f"{project}_{kind}"), view


SCHEMA = ServiceSchema(
    service="counts",
    views=(
        ViewSchema(
            name="counts",
            entity="user_id",
            ttl_s=60,
            training_only=False,
            features=tuple(
                FeatureSchema(name=name, type=type_)
                for name, type_ in {"n": "int64", "share": "float32", "items": "list<int64>"}.items()
            ),
        ),
    ),
)


@pytest.mark.parametrize("kind", ONLINE)
def test_an_older_event_never_overwrites_a_newer_one(kind, tmp_path, port):
    store, view = small(kind, tmp_path, port)

    def value():
        return store.get_online_features(["counts:n"], {"user_id": [1]}).to_dict()["n"]

    millisecond = timedelta(milliseconds=1)
    write(store, view, 1, {"n": 1, "share": 0.5, "items": [1]}, NOW)
    write(store, view, 1, {"n": 2, "share": 0.5, "items": [1]}, NOW - millisecond)
    assert value() == [1]
    write(store, view, 1, {"n": 3, "share": 0.5, "items": [1]}, NOW + millisecond)
    assert value() == [3]
    if kind != "redis":  # Feast's store drops corrections, ours keep the one that was created last
        write(store, view, 1, {"n": 4, "share": 0.5, "items": [1]}, NOW + millisecond)
        assert value() == [4]
        write(store, view, 1, {"n": 5, "share": 0.5, "items": [1]}, NOW + millisecond, created=NOW + HOUR)
        write(store, view, 1, {"n": 6, "share": 0.5, "items": [1]}, NOW + millisecond, created=NOW)
        assert value() == [5]


def test_times_are_compared_in_all_their_64_bits(port):
    """In Redis by halves: every pair of an old and a new row, times on both sides of where halves change."""
    event_us = [-(2**32) - 1, -1, 0, 5, 2**32 - 1, 2**32, 2**33 + 1, 1_750_000_000_000_000]
    times = [(event, created) for event in event_us for created in event_us]
    pairs = list(itertools.product(times, times))
    keys = [b"halves:%d" % number for number in range(len(pairs))]
    old, new = ([struct.pack("<qq", *pair[which]) for pair in pairs] for which in (0, 1))
    with redis.Redis(port=port) as client:
        assert write_newer(client, keys, old) == len(pairs)
        assert write_newer(client, keys, new) == sum(after >= before for before, after in pairs)
        found = [struct.unpack("<qq", row) for row in client.mget(keys)]
    assert found == [max(pair) for pair in pairs]


def test_feasts_own_sqlite_store_does_overwrite(tmp_path, port):
    """Why there is another one: if this fails, Feast has mended it."""
    store, view = small("sqlite", tmp_path, port)
    write(store, view, 1, {"n": 1, "share": 0.5, "items": [1]}, NOW)
    write(store, view, 1, {"n": 2, "share": 0.5, "items": [1]}, NOW - HOUR)
    assert store.get_online_features(["counts:n"], {"user_id": [1]}).to_dict()["n"] == [2]


@pytest.mark.parametrize("kind", ["ordered", "packed"])
def test_of_writers_at_once_the_newest_event_wins(kind, tmp_path, port):
    """Eight writers each push the same hundred entities at shuffled times."""
    small(kind, tmp_path, port, "race")
    start = threading.Barrier(8)
    failures = []

    def push(seed):
        try:
            store, view = opened[seed]
            times = np.random.default_rng(seed).permutation(40) * 8 + seed
            start.wait()
            for time in times.tolist():
                write(
                    store,
                    view,
                    time % 5,
                    {"n": time, "share": 0.0, "items": []},
                    NOW + timedelta(microseconds=time),
                )
        except Exception as error:
            failures.append(error)

    opened = [small(kind, tmp_path, port, "race") for _ in range(8)]
    threads = [threading.Thread(target=push, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = opened[0][0].get_online_features(["counts:n"], {"user_id": list(range(5))}).to_dict()["n"]
    assert found == [max(time for time in range(320) if time % 5 == key) for key in range(5)]


@pytest.mark.parametrize("kind", ["sqlite", *ONLINE])
def test_time_to_live_and_missing_rows_on_every_store(kind, tmp_path, port):
    """Neither of Feast's stores enforces a time to live; Redis says PRESENT of rows that it does not have."""
    store, view = small(kind, tmp_path, port, "reading")
    write(store, view, 1, {"n": 7, "share": 0.5, "items": [1, 2]}, NOW)
    write(store, view, 2, {"n": None, "share": None, "items": None}, NOW)
    write(store, view, 3, {"n": 9, "share": 0.5, "items": [3]}, NOW - timedelta(seconds=61))
    source = FeastSource.over(store, SCHEMA)
    now_us = int(NOW.timestamp()) * 1_000_000 + 900_000
    rows = source.read_now([3, 1, 99, 2], now_us)
    assert rows.status["counts"].tolist() == [STALE, FRESH, MISSING, FRESH]
    assert rows.null["n"].tolist() == [True, False, True, True]
    assert rows.columns["n"].tolist() == [0, 7, 0, 0]
    np.testing.assert_array_equal(rows.columns["share"], np.float32([np.nan, 0.5, np.nan, np.nan]))
    assert [items.tolist() for items in rows.columns["items"]] == [[], [1, 2], [], []]
    assert rows.time_us["counts"].tolist()[2] == 0
    assert source.read_now([1], now_us + 61_000_000).status["counts"].tolist() == [STALE]


def test_the_layout_is_that_of_the_schema():
    from feast.types import Array, Float32, Int64

    _, view = make_view("counts", {"n": Int64, "share": Float32, "items": Array(Int64)}, ttl_s=60)
    assert layout_of_view(view).digest == SCHEMA.views[0].digest


def test_apply_lets_rows_of_the_old_version_expire_and_deletes_dropped_views(tmp_path, port):
    from feast.types import Float64, Int64

    entity, before = make_view("changing", {"n": Int64})
    _, after = make_view("changing", {"n": Float64})
    store = open_store("packed", tmp_path, port, [entity, before], project="versions")
    with redis.Redis(port=port) as client:

        def stored():
            return sorted(client.scan_iter(b"fw:versions:*"))

        write(store, before, 1, {"n": 1}, NOW)
        (old,) = stored()
        store.apply([entity, after])
        assert store.get_online_features(["changing:n"], {"user_id": [1]}).to_dict()["n"] == [None]
        write(store, after, 1, {"n": 2.5}, NOW - HOUR)
        assert store.get_online_features(["changing:n"], {"user_id": [1]}).to_dict()["n"] == [2.5]
        assert 0 < client.ttl(old) <= 7 * 24 * 3600
        assert [client.ttl(key) for key in stored() if key != old] == [-1]
        store.apply([entity], objects_to_delete=[after], partial=False)
        assert stored() == []


def test_a_value_of_another_type_is_refused_and_names_its_row(tmp_path, port):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    store, view = small("packed", tmp_path, port, "refused")
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=12)])
    row = {"n": Value(string_val="x"), "share": Value(), "items": Value()}
    with pytest.raises(DataError, match=r"view counts: n is a string_val.*user_id 12"):
        store._get_provider().online_write_batch(store.config, view, [(key, row, NOW, None)], None)


def test_reads_through_feast_that_wait_are_counted_and_given_up(tmp_path, port, monkeypatch):
    store, view = small("packed", tmp_path, port, "waiting")
    write(store, view, 1, {"n": 7, "share": 0.5, "items": []}, NOW)
    source = FeastSource.over(store, SCHEMA, timeout_s=0.2)
    now_us = int(NOW.timestamp()) * 1_000_000
    hold = threading.Event()
    quick = source.read_now

    def slow(keys, now_us):
        hold.wait(10)
        return quick(keys, now_us)

    async def run():
        monkeypatch.setattr(source, "read_now", slow)
        reads = (source.read([1], now_us) for _ in range(MAX_WAITING + 1))
        answers = await asyncio.gather(*reads, return_exceptions=True)
        hold.set()
        monkeypatch.setattr(source, "read_now", quick)
        source._timeout_s = 5.0
        found = await source.read([1], now_us)
        await source.close()
        return [str(answer) for answer in answers], found

    answers, found = asyncio.run(run())
    assert sum("no answer within 0.2 s" in answer for answer in answers) == MAX_WAITING
    assert sum("reads wait already" in answer for answer in answers) == 1
    assert found.columns["n"].tolist() == [7]
