"""Columns to tensors: ages from absolute times, missing values, content days, and views that are dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from feedworks.contracts.features import (
    AD_CONTEXT,
    INTERACTION_AGGREGATES,
    ITEM_PROFILE,
    USER_PROFILE,
)
from feedworks.errors import DataError
from feedworks.ocarm import data
from feedworks.ocarm.data import (
    CODES,
    DAY_US,
    HOUR_US,
    content,
    labels,
    number_names,
    observables,
    view_numbers,
)

from . import toy

VIEWS = {table.name: table for table in (USER_PROFILE, INTERACTION_AGGREGATES, AD_CONTEXT, ITEM_PROFILE)}
WITH_ITEM = toy.settings("samples.landing_item=true")


def test_arrow_numpy_and_plain_columns_are_the_same() -> None:
    items = toy.catalogue()
    plain = toy.columns(6, items)
    arrow = {name: pa.chunked_array([values[:2], values[2:]]) for name, values in plain.items()}
    times = np.array(plain["bid_time"]).astype("datetime64[us]")
    for given in (
        arrow,
        plain | {"bid_time": times},
        arrow | {"bid_time": pa.array(times).cast(pa.timestamp("us", tz="UTC"))},
    ):
        for one, other in zip(
            observables(given, items, toy.architecture()),
            observables(plain, items, toy.architecture()),
            strict=True,
        ):
            assert torch.equal(one, other)
        for one, other in zip(
            content(given, items, toy.architecture()), content(plain, items, toy.architecture()), strict=True
        ):
            assert torch.equal(one, other)


def test_what_is_relative_to_the_request_is_computed_from_bid_time() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(4, items)
    bid = 20_000 * DAY_US + 5 * HOUR_US  # 2024-10-04, a Friday, 05:00
    columns["bid_time"] = [bid] * 4
    columns["aggregated_time"] = [bid - 48 * HOUR_US] * 4
    columns["history_time"] = [[bid - 7 * HOUR_US], [], None, [bid + HOUR_US]]
    for name in ("item", "category", "surface", "engagement"):
        columns[f"history_{name}"] = [[1], [], None, [1]]
    found = observables(columns, items, architecture)
    assert found.code_BC[0, :3].tolist()[1:] == [5 + 1, 4 + 1]
    idle = number_names(architecture.samples).index("idle_h")
    torch.testing.assert_close(found.number_BP[:, idle], torch.full((4,), 48.0).log1p())
    assert found.history_length_B.tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(found.history_number_BT3[:, 0, 1], torch.tensor([7.0, 0, 0, 0]).log1p())
    assert not found.history_number_BT3[:, 0, 2].any()


def test_the_latest_events_are_kept_oldest_first() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(3, items)
    most = architecture.samples.max_history
    long = items.item_id_I[:30]
    bid = columns["bid_time"][2]
    for name, values in (
        ("item", long),
        ("category", long % 8),
        ("surface", long % 16),
        ("engagement", long / 1000),
    ):
        columns[f"history_{name}"][2] = values
    columns["history_time"][2] = bid - np.arange(30, 0, -1) * HOUR_US
    found = observables(columns, items, architecture)
    assert found.history_length_B[2] == most
    assert found.history_code_BT3[2, :, 0].tolist() == list(range(31 - most, 31))
    ages = found.history_number_BT3[2, :, 1].expm1()
    torch.testing.assert_close(ages, torch.arange(most, 0, -1).float(), rtol=1e-4, atol=1e-4)
    before = found.history_number_BT3[2, :, 2].expm1()
    torch.testing.assert_close(before, torch.arange(most - 1, -1, -1).float(), rtol=1e-4, atol=1e-4)


def test_unknown_items_and_codes_are_row_0() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(3, items)
    columns["ad_item"] = [int(items.item_id_I[3]), 10**15, None]
    columns["surface"] = [15, 16, -1]
    found = observables(columns, items, architecture)
    assert found.ad_item_B.tolist() == [4, 0, 0]
    assert found.code_BC[:, 0].tolist() == [16, 0, 0]


@pytest.mark.parametrize("view", VIEWS)
def test_a_dropped_view_is_a_view_of_nulls(view: str) -> None:
    items, architecture = toy.catalogue(), toy.architecture(WITH_ITEM)
    columns = toy.columns(8, items)
    blank = columns | {column.name: [None] * 8 for column in VIEWS[view].features if column.name in columns}
    before, after = (observables(given, items, architecture) for given in (columns, blank))
    dropped = data.without_view(before, view, WITH_ITEM.samples)
    assert torch.equal(dropped.number_BP, after.number_BP)
    assert torch.equal(dropped.code_BC, after.code_BC)
    assert torch.equal(dropped.history_length_B, after.history_length_B)
    assert torch.equal(dropped.return_length_B, after.return_length_B)
    assert not all(torch.equal(one, other) for one, other in zip(before, dropped, strict=True))


def test_every_column_of_the_service_is_read_or_known_to_be_left_out() -> None:
    items, architecture = toy.catalogue(), toy.architecture(WITH_ITEM)
    columns = toy.columns(4, items)
    left_out = ("profile_time", "item_category", "item_author_id")  # the catalogue knows the item's category
    columns |= {name: [None] * 4 for name in left_out}
    for table in VIEWS.values():
        for column in table.features:
            del (given := dict(columns))[column.name]
            if column.name in left_out:
                observables(given, items, architecture)
                continue
            with pytest.raises(DataError, match=f"column {column.name} is missing"):
                observables(given, items, architecture)


def test_views_are_dropped_in_a_share_of_the_rows() -> None:
    items, samples = toy.catalogue(), WITH_ITEM.samples
    before = observables(toy.columns(4000, items), items, toy.architecture(WITH_ITEM))
    torch.manual_seed(0)
    after = data.without_views(before, 0.3, samples)
    lost = ((after.number_BP != before.number_BP).any(dim=1)).float().mean()
    assert 0.27 < lost < 0.33
    assert all(
        torch.equal(a, b) for a, b in zip(before, data.without_views(before, 0.0, samples), strict=True)
    )
    assert set(view_numbers(samples)) == set(VIEWS)


def test_content_is_cut_into_days_and_the_first_of_each_are_kept() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(3, items)
    start, label = columns["content_start"][2], columns["label_start"][2]
    day = [0] * 25 + [2] * 2 + [3]  # day 1 is empty, day 3 lies outside the window
    columns["content_item"][2] = items.item_id_I[: len(day)]
    columns["content_category"][2] = np.zeros(len(day), dtype=np.int64)
    columns["content_engagement"][2] = np.full(len(day), 0.5)
    columns["content_time"][2] = np.sort(start + np.array(day) * DAY_US + np.arange(len(day)) * 1000)
    found = content(columns, items, architecture)
    assert found.length_BD[2].tolist() == [20, 0, 2]
    torch.testing.assert_close(found.count_BD[2], torch.tensor([25.0, 0, 2]).log1p())
    assert found.code_BDN2[2, 0, :, 0].tolist() == list(range(1, 21))
    assert found.code_BDN2[2, 2, :3, 0].tolist() == [26, 27, 0]
    assert found.length_BD[0].tolist() == [0, 0, 0]
    assert found.seen_BD[2].tolist() == [True] * 3
    columns["label_start"][2] = label - DAY_US
    assert content(columns, items, architecture).seen_BD[2].tolist() == [True, True, False]


def test_labels_keep_what_is_not_known() -> None:
    found = labels({"lt1": [1.0, None, 0.0], "lt7": pa.array([0.5, 0.25, None])}, (1, 7))
    assert found.isnan().tolist() == [[False, False], [True, False], [False, True]]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("bid_time", [None, 1, 1], "row 0 has no time"),
        ("surface", ["a", "b", "c"], "surface: expected numbers"),
        ("ad_item", [1.5, 2, 3], "ad_item: expected whole numbers"),
        ("history_item", [["x"], [], []], "history_item: expected lists of numbers"),
        ("history_item", [[1, 2], [], []], "differ in length"),
        ("return_time", 3 * [[None]], "return_time"),
    ],
)
def test_columns_of_other_values_are_refused_by_name(name: str, values: list[object], said: str) -> None:
    items = toy.catalogue()
    columns = toy.columns(3, items) | {name: values}
    if name == "history_item":
        columns |= {n: [[], [], []] for n in columns if n.startswith("history_") and n != name}
    with pytest.raises(DataError, match=said):
        observables(columns, items, toy.architecture())


def test_the_catalogue_round_trips(tmp_path: Path) -> None:
    items = toy.catalogue()
    items.write(tmp_path)
    found = data.ItemTable.read(tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(items, found, strict=True))
    assert found.rows(np.array([items.item_id_I[0], 10**9])).tolist() == [1, 0]


def test_the_codes_are_those_of_the_contract() -> None:
    assert list(CODES) == ["surface", "hour", "weekday", "activity", "segment", "follows", "fans", "friends"]
