"""Contract tables to numbered sequences."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from feedworks.contracts.files import write_table
from feedworks.contracts.tables import EVENT_TIME, INTERACTIONS, ITEMS, USERS
from feedworks.errors import DataError
from feedworks.recochain.config import tiny
from feedworks.recochain.preparation import prepare_data, read_segments

HISTORIES = {7: [30, 30, 10, 20, 30], 8: [10, 20, 10, 40], 9: [20, 20, 20]}


def folder(path, histories=HISTORIES, item_ids=(40, 30, 20, 10, 50)):
    pairs = [(user, item) for user, items in histories.items() for item in items]
    times = pa.array(range(len(pairs)), pa.int64()).cast(EVENT_TIME)
    events = {"user_id": [u for u, _ in pairs], "item_id": [i for _, i in pairs], "event_time": times}
    write_table(INTERACTIONS, pa.table(events), path)
    vectors = [[float(item), 1.0] for item in item_ids]
    width = pa.list_(pa.float32(), 2)
    items = {
        "item_id": pa.array(item_ids),
        "vector": pa.array(vectors, width),
        "text": [f"text {item}" for item in item_ids],
        "external_id": [str(item) for item in item_ids],
    }
    write_table(ITEMS, pa.table(items), path)
    return path


def test_items_are_numbered_by_training_count_and_then_by_id(tmp_path):
    data = prepare_data(folder(tmp_path), replace(tiny(), dedup_consecutive=False))
    # Training events: 30, 30, 10 | 10, 20 | 20.
    assert data.items["item_id"].to_pylist() == [10, 20, 30, 40, 50]
    assert data.count_N.tolist() == [2, 2, 2, 0, 0]
    assert data.sequences.user_id.tolist() == [7, 8, 9]
    rows = [data.sequences.row(user).tolist() for user in range(3)]
    assert rows == [[2, 2, 0, 1, 2], [0, 1, 0, 3], [1, 1, 1]]
    assert data.items["text"].to_pylist()[2] == "text 30"


def test_repeats_in_a_row_collapse_within_a_user_and_short_users_go(tmp_path):
    data = prepare_data(folder(tmp_path), tiny())
    ids = data.items["item_id"].to_numpy()
    rows = [ids[data.sequences.row(user)].tolist() for user in range(2)]
    assert rows == [[30, 10, 20, 30], [10, 20, 10, 40]]
    assert data.sequences.user_id.tolist() == [7, 8]
    # The first item of a user may be the last of the user before.
    data = prepare_data(folder(tmp_path, {1: [10, 20, 30], 2: [30, 10, 20]}), tiny())
    assert [len(data.sequences.row(user)) for user in range(2)] == [3, 3]


def test_a_fraction_of_the_users_is_the_same_each_time(tmp_path):
    many = {user: [10, 20, 30, 40] for user in range(200)}
    half = replace(tiny(), user_fraction=0.5)
    kept = [prepare_data(folder(tmp_path, many), half).sequences.user_id.tolist() for _ in range(2)]
    assert kept[0] == kept[1]
    assert 70 < len(kept[0]) < 130
    other = prepare_data(folder(tmp_path, many), replace(half, seed=1)).sequences.user_id.tolist()
    assert other != kept[0]


def test_too_few_users_and_unknown_items_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 of 3 users have min_events=5"):
        prepare_data(folder(tmp_path), replace(tiny(), min_events=5, dedup_consecutive=False))
    with pytest.raises(DataError, match=r"min_events=3 events or more once repeats in a row are collapsed;"):
        prepare_data(folder(tmp_path, {1: [10] * 9, 2: [20] * 9}), tiny())
    with pytest.raises(DataError, match=r"and fall into user_fraction=0.001; bring more data"):
        prepare_data(folder(tmp_path), replace(tiny(), user_fraction=0.001))
    with pytest.raises(DataError, match=r"column item_id: 3 rows name items that items lacks.*\[10\]"):
        prepare_data(folder(tmp_path, item_ids=(20, 30, 40)), tiny())


def test_segments_follow_the_users_and_may_be_absent(tmp_path):
    folder(tmp_path)
    data = prepare_data(tmp_path, tiny())
    assert read_segments(tmp_path, data.sequences.user_id) is None
    write_table(USERS, pa.table({"user_id": [8, 9], "segment": ["b", "c"]}), tmp_path)
    assert read_segments(tmp_path, data.sequences.user_id) == ["unknown", "b"]
