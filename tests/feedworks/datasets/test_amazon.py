import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedworks.contracts.files import read_table
from feedworks.contracts.tables import INTERACTIONS, ITEMS
from feedworks.datasets import amazon
from feedworks.errors import DataError


@pytest.fixture
def s3rec(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "Toys.txt").write_text("2 10 11\n1 11 12 10\n")
    (folder / "Toys_item2attributes.json").write_text(json.dumps({"10": [3, 1], "11": [2], "13": [3]}))
    (folder / "datamaps.json").write_text(json.dumps({"id2item": {"10": "B0A", "11": "B0B"}}))
    (folder / "item_text_ids.txt").write_text("B0A red toy\nB0B \n")
    return folder


def test_s3rec_files_become_a_data_folder(s3rec, tmp_path):
    assert amazon.s3rec_name(s3rec) == "Toys"
    folder = amazon.convert_s3rec(s3rec, tmp_path / "data")
    events = read_table(INTERACTIONS, folder).to_pylist()
    assert [(e["user_id"], e["item_id"], e["event_time"].isoformat()) for e in events] == [
        (1, 11, "2000-01-01T00:00:00+00:00"),
        (1, 12, "2000-01-01T00:00:01+00:00"),
        (1, 10, "2000-01-01T00:00:02+00:00"),
        (2, 10, "2000-01-01T00:00:00+00:00"),
        (2, 11, "2000-01-01T00:00:01+00:00"),
    ]
    items = read_table(ITEMS, folder).to_pylist()
    assert [(i["item_id"], i["text"], i["external_id"]) for i in items] == [
        (10, "red toy attr_3 attr_1", "B0A"),
        (11, "attr_2", "B0B"),
        (12, None, None),
        (13, "attr_3", None),
    ]


def test_s3rec_works_without_the_optional_files(s3rec, tmp_path):
    (s3rec / "datamaps.json").unlink()
    (s3rec / "item_text_ids.txt").unlink()
    items = read_table(ITEMS, amazon.convert_s3rec(s3rec, tmp_path / "data")).to_pylist()
    assert items[0]["text"] == "attr_3 attr_1"


@pytest.mark.parametrize(
    "text", ["1 2 x\n", "1\n", "1 2\n1 3\n", "1 -2\n", "1 2.5\n", "1 99999999999999999999\n"]
)
def test_a_bad_line_is_named_and_nothing_is_written(s3rec, tmp_path, text):
    (s3rec / "Toys.txt").write_text("7 1 2 3\n" + text)
    with pytest.raises(DataError, match=r"Toys.txt, line [23]: expected"):
        amazon.convert_s3rec(s3rec, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_unreadable_s3rec_files_are_named(s3rec, tmp_path):
    (s3rec / "datamaps.json").write_text('{"id2item": ')
    with pytest.raises(DataError, match=r"datamaps.json: not valid JSON"):
        amazon.convert_s3rec(s3rec, tmp_path / "data")
    (s3rec / "datamaps.json").write_text("[]")
    with pytest.raises(DataError, match=r"datamaps.json: expected a JSON object, found list"):
        amazon.convert_s3rec(s3rec, tmp_path / "data")
    (s3rec / "Toys.txt").write_text("\n")
    with pytest.raises(DataError, match=r"Toys.txt: no lines"):
        amazon.convert_s3rec(s3rec, tmp_path / "data")
    (s3rec / "Toys.txt").unlink()
    with pytest.raises(DataError, match=r"expected just one <Name>.txt"):
        amazon.convert_s3rec(s3rec, tmp_path / "data")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    histories=st.dictionaries(
        st.integers(0, 2**40), st.lists(st.integers(0, 2**40), min_size=1, max_size=6), min_size=1, max_size=6
    )
)
def test_every_history_comes_back_in_its_order(tmp_path, histories):
    lines = [" ".join(map(str, [user, *items])) for user, items in histories.items()]
    (tmp_path / "Any.txt").write_text("\n".join(lines))
    (tmp_path / "Any_item2attributes.json").write_text("{}")
    folder = amazon.convert_s3rec(tmp_path, tmp_path / "data")
    back: dict[int, list[int]] = {}
    events = read_table(INTERACTIONS, folder)
    for event in events.sort_by([("event_time", "ascending")]).to_pylist():
        back.setdefault(event["user_id"], []).append(event["item_id"])
    assert back == histories
    assert events.sort_by([("user_id", "ascending"), ("event_time", "ascending")]).equals(events)
    known = read_table(ITEMS, folder)["item_id"].to_pylist()
    assert known == sorted({item for items in histories.values() for item in items})


DAY = 86_400
REVIEWS = [
    {"reviewerID": "B", "asin": "y", "unixReviewTime": 2 * DAY},
    {"reviewerID": "A", "asin": "x", "unixReviewTime": 3 * DAY},
    {"reviewerID": "A", "asin": "z", "unixReviewTime": 1 * DAY},
    {"reviewerID": "A", "asin": "y", "unixReviewTime": 1 * DAY},
    {"reviewerID": "A", "asin": "z", "unixReviewTime": 1 * DAY},
]


def write_gzip(path, rows):
    path.write_bytes(gzip.compress("".join(f"{row}\n" for row in rows).encode(), mtime=0))


@pytest.fixture
def reviews(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    write_gzip(folder / "reviews_Beauty_5.json.gz", map(json.dumps, REVIEWS))
    # The metadata of 2014 are Python literals, not JSON.
    meta = [
        {"asin": "x", "title": "Soap", "brand": "Q", "categories": [["Beauty", "Bath"], ["Beauty", "Gift"]]},
        {"asin": "unwanted", "title": "Other"},
        {"asin": "y"},
    ]
    write_gzip(folder / "meta_Beauty.json.gz", map(repr, meta))
    return folder


def test_reviews_become_a_data_folder_in_time_order(reviews, tmp_path):
    folder = amazon.convert_reviews(reviews, tmp_path / "data", category="Beauty")
    events = read_table(INTERACTIONS, folder).to_pylist()
    assert [(e["user_id"], e["item_id"], e["event_time"].isoformat()) for e in events] == [
        (1, 3, "1970-01-02T00:00:00+00:00"),
        (1, 2, "1970-01-02T00:00:00.000001+00:00"),
        (1, 3, "1970-01-02T00:00:00.000002+00:00"),
        (1, 1, "1970-01-04T00:00:00+00:00"),
        (2, 2, "1970-01-03T00:00:00+00:00"),
    ]
    items = read_table(ITEMS, folder).to_pylist()
    assert [(i["item_id"], i["external_id"], i["text"]) for i in items] == [
        (1, "x", "Soap Q Beauty Bath Gift"),
        (2, "y", None),
        (3, "z", None),
    ]


def test_broken_reviews_are_named_and_nothing_is_written(reviews, tmp_path):
    path = reviews / "reviews_Beauty_5.json.gz"
    whole = path.read_bytes()
    for content, message in [
        (whole[: len(whole) // 2], "cannot read past line"),
        (gzip.compress(b"", mtime=0), "no reviews"),
        (gzip.compress(b'{"asin": "x"}\n', mtime=0), "line 1: expected an object with reviewerID"),
        (gzip.compress(b"not json\n", mtime=0), "line 1: expected an object"),
        (b"plain text", "cannot read past line 0"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            amazon.convert_reviews(reviews, tmp_path / "data", category="Beauty")
    path.unlink()
    with pytest.raises(DataError, match="is missing; fetch the data set"):
        amazon.convert_reviews(reviews, tmp_path / "data", category="Beauty")
    assert not (tmp_path / "data").exists()
