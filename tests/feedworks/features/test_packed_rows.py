"""Packed rows: what goes in comes out, by every way in and out; what cannot go in is named."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedworks.errors import DataError
from feedworks.features.packed_rows import RowLayout
from feedworks.features.schema import TYPES, FeatureSchema, ViewSchema

INTS = {"int32": 32, "int64": 64}
FLOATS = {"float32": 32, "float64": 64}
NAMES = [name for name in TYPES if "timestamp" not in name]  # Arrow has microseconds there, Feast seconds
LAYOUT = RowLayout("all", "user_id", [(f"f{i}", name) for i, name in enumerate(TYPES)])
TIMES = st.integers(-(2**62), 2**62)


def values(type_):
    if type_.startswith("list<"):
        return st.lists(values(type_[5:-1]), max_size=4)
    if type_ in INTS or type_ == "timestamp":
        bits = INTS.get(type_, 64)
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if type_ in FLOATS:
        return st.floats(width=FLOATS[type_])
    return {"bool": st.booleans(), "string": st.text(max_size=5), "bytes": st.binary(max_size=5)}[type_]


def rows(names):
    row = st.tuples(*(st.none() | values(name) for name in names))
    return st.lists(st.none() | st.tuples(TIMES, row), max_size=4)


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def same(found, expected):
    return repr(plain(found)) == repr(expected)


@settings(max_examples=60, deadline=None)
@given(rows(list(TYPES)))
def test_rows_come_back(given_rows):
    packed = [None if row is None else LAYOUT.encode(row[1], row[0]) for row in given_rows]
    found = LAYOUT.decode_rows(packed)
    block = LAYOUT.decode(packed)
    for i, row in enumerate(given_rows):
        if row is None:
            assert found[i] is None
            assert block.time_us[i] == 0
            assert all(null[i] for null in block.null.values())
            continue
        assert found[i] is not None
        assert found[i][0] == block.time_us[i] == row[0]
        for (name, _), back, value in zip(LAYOUT.fields, found[i][1], row[1], strict=True):
            assert same(back, value)
            assert block.null[name][i] == (value is None)
            if value is not None:
                assert same(block.columns[name][i], value)


@settings(max_examples=60, deadline=None)
@given(rows(NAMES))
def test_a_table_packs_into_the_same_bytes(given_rows):
    layout = RowLayout("all", "user_id", [(f"f{i}", name) for i, name in enumerate(NAMES)])
    kept = [row for row in given_rows if row is not None]
    columns = {f"f{i}": pa.array([row[i] for _, row in kept], TYPES[name]) for i, name in enumerate(NAMES)}
    times = np.array([time_us for time_us, _ in kept], dtype=np.int64)
    assert layout.encode_table(pa.table(columns), times) == [layout.encode(row, at) for at, row in kept]


def test_times_of_a_table_become_seconds():
    layout = RowLayout("v", "user_id", [("at", "timestamp"), ("past", "list<timestamp>")])
    microseconds = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "at": pa.array([1_500_000, None], microseconds),
            "past": pa.array([[2_000_000, 3_900_000], None], pa.list_(microseconds)),
        }
    )
    block = layout.decode(layout.encode_table(table, np.array([1, 2])))
    assert block.columns["at"].tolist() == [1, 0]
    assert [cell.tolist() for cell in block.columns["past"]] == [[2, 3], []]
    assert block.null["at"].tolist() == block.null["past"].tolist() == [False, True]


def test_lists_are_of_memory_that_torch_may_write():
    layout = RowLayout("v", "user_id", [("n", "int64"), ("items", "list<int64>")])
    block = layout.decode([layout.encode([1, [1, 2]], 5), layout.encode([2, [3]], 5)])
    assert all(cell.flags.writeable and cell.flags.aligned for cell in block.columns["items"])
    assert block.columns["n"].flags.aligned


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int32", 2**31),
        ("int64", "7"),
        ("int64", 1.5),
        ("float32", "x"),
        ("string", 3),
        ("list<int64>", [1.5]),
    ],
)
def test_a_value_of_another_type_is_named(type_, value):
    layout = RowLayout("counts", "user_id", [("fine", "int64"), ("wrong", type_)])
    with pytest.raises(DataError, match=r"^view counts: wrong = .* is no " + type_):
        layout.encode([1, value], 0)


def test_rows_of_another_version_or_length_are_missing_and_the_others_are_not():
    layout = RowLayout("v", "user_id", [("a", "int64"), ("b", "int64")])
    renamed = RowLayout("v", "user_id", [("a", "int64"), ("c", "int64")])
    good = layout.encode([1, 2], 5)
    other = renamed.encode([1, 2], 5)
    assert len(good) == len(other)
    block = layout.decode([other, good, good[:-1], None, b"", good + b"x", good])
    assert block.time_us.tolist() == [0, 5, 0, 0, 0, 0, 5]
    # Two wrong lengths that add up to two right ones.
    assert layout.decode([good[:-1], good + b"x"]).time_us.tolist() == [0, 0]
    for cut in range(len(good)):
        assert layout.decode([good[:cut]]).time_us.tolist() == [0]


def test_the_version_changes_with_all_that_a_reader_must_know():
    def digest(view="v", entity="user_id", fields=(("a", "int64"), ("b", "float32"))):
        return RowLayout(view, entity, list(fields)).digest

    others = [
        digest(view="w"),
        digest(entity="item_id"),
        digest(fields=(("b", "float32"), ("a", "int64"))),
        digest(fields=(("a", "int64"),)),
        digest(fields=(("a", "int32"), ("b", "float32"))),
    ]
    assert len({digest(), *others}) == 6
    features = (FeatureSchema(name="a", type="int64"), FeatureSchema(name="b", type="float32"))
    view = ViewSchema(name="v", entity="user_id", ttl_s=1, training_only=False, features=features)
    assert view.digest == digest()


def test_the_bytes_of_a_row_stay_as_they_are():
    """Rows outlive the program that wrote them: a change of their form needs another version."""
    layout = RowLayout(
        "v", "user_id", [("a", "int32"), ("s", "string"), ("l", "list<float32>"), ("n", "bool")]
    )
    row = layout.encode([-2, "é", [0.5], None], 1, 2)
    version = layout.version.to_bytes(8, "little")
    head = b"\x01" + bytes(7) + b"\x02" + bytes(7) + version + b"\x08"
    assert row == head + b"\xfe\xff\xff\xff\x00" + b"\x02\0\0\0\x06\0\0\0" + "é".encode() + b"\0\0\0\x3f"
