from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from feedworks.contracts import files
from feedworks.contracts.ranking import FIELDS_FILE, Field, RankingFields, read_fields
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.errors import DataError
from feedworks.mari import data
from feedworks.mari.data import Rows, read_rows, schema_of, shuffled, without_contradictions
from feedworks.mari.schema import ModelInput, RankerSchema


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranking")
    return write_synthetic_ranking(out, num_users=40, num_items=30, num_rows=500)


def test_the_schema_has_the_sides_fields_and_sizes_of_the_folder(folder):
    fields = read_fields(folder)
    schema = schema_of(fields, history=True, max_candidates=77)
    user, item, history = schema.inputs
    assert schema.sides == {"user": "user", "item": "item", "history": "user"}
    assert (user.fields, user.sizes) == (("user", "segment", "hour", "device"), (40, 2, 24, 3))
    assert (item.fields, item.sizes) == (("item", "category", "price"), (30, 12, 5))
    assert (history.shape, set(history.sizes)) == ((8,), {31})
    assert {each.dtype for each in schema.inputs} == {"int64"}
    assert schema.max_candidates == 77
    assert list(schema_of(fields, history=False).sides) == ["user", "item"]


def test_a_history_of_another_field_than_the_first_is_refused():
    fields = RankingFields(
        fields=(
            Field(name="user", side="user", size=3),
            Field(name="item", side="item", size=3),
            Field(name="shop", side="item", size=3),
            Field(name="last", side="user", size=4, history_of="shop"),
        )
    )
    with pytest.raises(DataError, match="field last: a history must be of the item's first field item"):
        schema_of(fields, history=True)
    assert list(schema_of(fields, history=False).sides) == ["user", "item"]


def test_rows_are_those_of_the_file(folder):
    rows, fields = read_rows(folder, "train"), read_fields(folder)
    schema = schema_of(fields, history=True)
    assert rows.num_rows == 500
    assert rows.label_B.dtype == torch.float32
    assert set(rows.label_B.tolist()) == {0, 1}
    for tensor, each in zip(rows.inputs(schema), schema.inputs, strict=True):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (500, *each.shape)
        assert (tensor < torch.tensor(each.sizes)).all()
    assert read_rows(folder, "test").num_rows == 100


@pytest.mark.parametrize("row_group_size", [1, 7, 1000])
def test_rows_that_are_mapped_are_those_that_are_held(folder, tmp_path, monkeypatch, row_group_size):
    held = read_rows(folder, "train")
    (tmp_path / FIELDS_FILE).write_bytes((folder / FIELDS_FILE).read_bytes())
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=row_group_size)
    monkeypatch.setattr(data, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(data, "BLOCK_ROWS", 9)
    monkeypatch.setattr(files, "ROW_GROUP_ROWS", 11)
    mapped = read_rows(tmp_path, "train", tmp_path)
    pairs = zip(
        (*held, *without_contradictions(held)), (*mapped, *without_contradictions(mapped)), strict=True
    )
    for one, other in pairs:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FIELDS_FILE, "train.parquet"]


def test_an_input_that_the_data_lack_is_refused(folder):
    rows = read_rows(folder, "valid")
    price = ModelInput(name="price", side="item")
    with pytest.raises(DataError, match="the data have no input 'price'; they give user, item, history"):
        rows.inputs(RankerSchema(inputs=(price,)))
    plain = Rows(rows.label_B, rows.user_BU, rows.item_BI, None)
    with pytest.raises(DataError, match="no input 'history'"):
        plain.inputs(schema_of(read_fields(folder), history=True))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own(folder):
    rows = read_rows(folder, "train")
    numbered = Rows(torch.arange(500.0), rows.user_BU, rows.item_BI, rows.history_BL)
    batches = shuffled(numbered, 64, seed=3)
    epochs = [torch.cat([batch.label_B for batch in batches(epoch)]).int().tolist() for epoch in (0, 0, 1)]
    assert all(sorted(seen) == list(range(500)) for seen in epochs)
    assert epochs[0] == epochs[1] != epochs[2]
    assert [batch.num_rows for batch in batches(0)] == [64] * 7 + [52]
    one = batches(0)[2]
    picked = one.label_B.long()
    assert torch.equal(one.user_BU, rows.user_BU[picked])
    assert torch.equal(one.history_BL, rows.history_BL[picked])
    with pytest.raises(IndexError):
        batches(0)[8]


def test_negatives_that_are_positives_elsewhere_can_be_dropped(folder):
    rows = Rows(
        label_B=torch.tensor([1.0, 0, 0, 0, 1, 0]),
        user_BU=torch.tensor([[1, 0], [1, 1], [1, 0], [2, 0], [2, 0], [3, 0]]),
        item_BI=torch.tensor([[4], [4], [5], [4], [0], [0]]),  # user 1 took item 4, user 2 item 0
        history_BL=None,
    )
    kept = without_contradictions(rows)
    assert kept.label_B.tolist() == [1, 0, 0, 1, 0]
    assert kept.user_BU[:, 0].tolist() == [1, 1, 2, 2, 3]
    many = read_rows(folder, "train")
    keys = list(zip(many.user_BU[:, 0].tolist(), many.item_BI[:, 0].tolist(), strict=True))
    labels = many.label_B.tolist()
    taken = {key for key, label in zip(keys, labels, strict=True) if label}
    expected = sum(label == 1 or key not in taken for key, label in zip(keys, labels, strict=True))
    assert without_contradictions(many).num_rows == expected < many.num_rows
