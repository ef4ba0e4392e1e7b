"""OCARM (arXiv 2604.25839): columns to tensors, for training and serving alike.

`observables` reads what is known at bid time and `content` what only the teacher may see; neither reads a
column of the other. What is relative to the request (idle time, ages) is computed here from absolute times.
Missing values are allowed everywhere, and a view without a row is a state that the model knows.

Shape legend: B rows, P numbers and their flags, C codes, T events, A earlier returns, D content days,
N items of a day, I items of the catalogue, V width of their vectors, H horizons, K values of all lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from feedworks.contracts.files import read_table, write_table
from feedworks.contracts.retention import CATALOGUE, NUM_CATEGORIES, NUM_SURFACES, PROFILES, label_of
from feedworks.ocarm.columns import (
    Columns,
    FloatArray,
    IntArray,
    Lists,
    codes,
    ids,
    latest,
    lists,
    moved_codes,
    numbers,
    parallel,
    times,
)
from feedworks.ocarm.config import Architecture, SamplesConfig
from feedworks.training.whole import draw_rows

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
# 1970-01-01 was a Thursday.
FIRST_WEEKDAY = 3

# What each view gives to the row of numbers and to the row of codes, in this order.
VIEW_NUMBERS: dict[str, tuple[str, ...]] = {
    "user_profile": ("tenure_days",),
    "interaction_aggregates": (
        "idle_h",
        "num_events_1d",
        "num_events_7d",
        "num_events_28d",
        "num_days_7d",
        "num_days_28d",
        "mean_engagement_7d",
    ),
    "ad_context": ("num_returns", "last_return_h"),
}
# The landing item of the ad, read only where samples have one.
ITEM_NUMBERS: dict[str, tuple[str, ...]] = {
    "item_profile": ("item_age_h", "item_num_events_7d", "item_mean_engagement_7d"),
}
PROFILE_CODES = {
    column.name: int(column.maximum) + 1
    for column in PROFILES.columns
    if column.maximum is not None and column.type == pa.int64()
}
REQUEST_CODES = {"surface": NUM_SURFACES, "hour": 24, "weekday": 7}
VIEW_CODES: dict[str, tuple[str, ...]] = {"user_profile": tuple(PROFILE_CODES)}
CODES = REQUEST_CODES | PROFILE_CODES
# Already between 0 and 1; the other numbers are counts, hours and days, of which the logarithm is taken.
SHARES = ("mean_engagement_7d", "item_mean_engagement_7d")
HISTORY_NUMBERS, RETURN_NUMBERS, CONTENT_NUMBERS = 3, 2, 2


class ItemTable(NamedTuple):
    """The catalogue. Row 0 of every item tensor is an unknown item, row i + 1 that of `item_id_I[i]`."""

    item_id_I: IntArray
    category_I: IntArray
    vector_IV: npt.NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path) -> ItemTable:
        """Read `catalogue.parquet` of a folder.

        Raises:
            DataError: the file is missing or damaged.
        """
        rows = read_table(CATALOGUE, folder, ["item_id", "category", "vector"])
        vector = rows["vector"].combine_chunks()
        flat = vector.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        width = len(flat) // max(len(rows), 1)
        return cls(rows["item_id"].to_numpy(), rows["category"].to_numpy(), flat.reshape(len(rows), width))

    def write(self, folder: Path) -> Path:
        """Write it as `catalogue.parquet`; authors, which no model reads, become 0."""
        width = self.vector_IV.shape[1]
        flat = pa.array(self.vector_IV.reshape(-1))
        vector = pa.ListArray.from_arrays(np.arange(len(self.item_id_I) + 1, dtype=np.int32) * width, flat)
        author = np.zeros_like(self.item_id_I)
        columns = {"item_id": self.item_id_I, "author_id": author, "category": self.category_I}
        return write_table(CATALOGUE, pa.table(columns | {"vector": vector}), folder)

    def rows(self, item_id: npt.NDArray[np.int64]) -> IntArray:
        """Row of each id, of any shape; 0 for one that the catalogue lacks."""
        if not len(self.item_id_I):
            return np.zeros(item_id.shape, dtype=np.int64)
        place = np.searchsorted(self.item_id_I, item_id).clip(max=len(self.item_id_I) - 1)
        return np.where(self.item_id_I[place] == item_id, place + 1, 0).astype(np.int64)


class Observable(NamedTuple):
    """What is known at bid time.

    Attributes:
        number_BP: numbers of `number_names`, 0 where missing, then as many flags that are 1 where missing.
        code_BC: codes of `CODES` moved up by one; 0 where missing.
        ad_item_B: row of the ad's item.
        history_code_BT3: row of the item, category and surface moved up by one; oldest first, padding right.
        history_number_BT3: engagement, and logarithms of the hours until the request and the latest event.
        history_length_B: real events.
        return_code_BA1: surface moved up by one.
        return_number_BA2: logarithms of idle time before it and of its age, in hours.
        return_length_B: real returns.
    """

    number_BP: Tensor
    code_BC: Tensor
    ad_item_B: Tensor
    history_code_BT3: Tensor
    history_number_BT3: Tensor
    history_length_B: Tensor
    return_code_BA1: Tensor
    return_number_BA2: Tensor
    return_length_B: Tensor


class Content(NamedTuple):
    """What users met after they came back; training only.

    Attributes:
        code_BDN2: row of the item, and category moved up by one; the first N of each day, padding right.
        number_BDN2: engagement, and days since the conversion.
        length_BD: items among the first N.
        count_BD: logarithm of one plus all items of the day.
        seen_BD: whether the day ends before labels are counted.
    """

    code_BDN2: Tensor
    number_BDN2: Tensor
    length_BD: Tensor
    count_BD: Tensor
    seen_BD: Tensor


def view_numbers(samples: SamplesConfig) -> dict[str, tuple[str, ...]]:
    """What each view that a model reads gives to the row of numbers."""
    return VIEW_NUMBERS | (ITEM_NUMBERS if samples.landing_item else {})


def number_names(samples: SamplesConfig) -> tuple[str, ...]:
    """The row of numbers."""
    return tuple(name for names in view_numbers(samples).values() for name in names)


def observables(columns: Columns, catalogue: ItemTable, architecture: Architecture) -> Observable:
    """Tensors of what is known at bid time.

    Args:
        columns: user_id and bid_time, surface, ad_item of the samples (`feedworks.contracts.retention`) and
            the features of the student's service, each with B values (Arrow, NumPy or a sequence); nulls are
            allowed in all but the time.
        catalogue: the items that the model knows.
        architecture: lengths of the sequences.

    Raises:
        DataError: a column is missing or holds other values; it is named.
    """
    bid_B = times(columns, "bid_time")
    samples = architecture.samples
    number_BP, flag_BP = _profile_numbers(columns, bid_B, samples)
    history_code, history_number, history_length = _history(columns, bid_B, catalogue, samples.max_history)
    return_code, return_number, return_length = _returns(columns, bid_B, samples.max_returns)
    return Observable(
        number_BP=_float(np.concatenate([number_BP, flag_BP], axis=1)),
        code_BC=torch.from_numpy(_profile_codes(columns, bid_B)),
        ad_item_B=torch.from_numpy(catalogue.rows(ids(columns, "ad_item"))),
        history_code_BT3=torch.from_numpy(history_code),
        history_number_BT3=_float(history_number),
        history_length_B=torch.from_numpy(history_length),
        return_code_BA1=torch.from_numpy(return_code),
        return_number_BA2=_float(return_number),
        return_length_B=torch.from_numpy(return_length),
    )


def content(columns: Columns, catalogue: ItemTable, architecture: Architecture) -> Content:
    """Tensors of what users met in the content window.

    Args:
        columns: content_start and label_start of the samples and the features of the onboarding view.
        catalogue: the items that the model knows.
        architecture: days, and items of a day.

    Raises:
        DataError: a column is missing or holds other values; it is named.
    """
    start_B, label_B = times(columns, "content_start"), times(columns, "label_start")
    days, most = architecture.samples.content_days, architecture.model.items_per_day
    found = parallel(
        columns,
        {"content_item": np.int64, "content_category": np.int64, "content_engagement": np.float64,
         "content_time": np.int64},
    )  # fmt: skip
    length_B = found["content_item"].length_B
    row_K = np.repeat(np.arange(len(length_B)), length_B)
    since_K = found["content_time"].value_K - start_B[row_K]
    kept = (since_K >= 0) & (since_K < days * DAY_US)
    day_K = row_K[kept] * days + since_K[kept] // DAY_US
    order = np.argsort(day_K, kind="stable")
    place_K = np.flatnonzero(kept)[order]
    count = np.bincount(day_K, minlength=len(length_B) * days)
    by_day = Lists(place_K, np.cumsum(count) - count, count)
    index, length = _first(by_day, most)
    item_K = catalogue.rows(found["content_item"].value_K)
    category_K = moved_codes(found["content_category"].value_K, NUM_CATEGORIES)
    engagement_K = np.nan_to_num(found["content_engagement"].value_K)
    shape = (len(length_B), days, most)
    ends_BD = start_B[:, None] + (1 + np.arange(days)) * DAY_US
    seen_BD = np.full(ends_BD.shape, True) if architecture.samples.overlap else ends_BD <= label_B[:, None]
    return Content(
        code_BDN2=torch.from_numpy(_padded((item_K, category_K), index, length).reshape(*shape, 2)),
        number_BDN2=_float(_padded((engagement_K, since_K / DAY_US), index, length).reshape(*shape, 2)),
        length_BD=torch.from_numpy(length.reshape(shape[:2])),
        count_BD=_float(np.log1p(count).reshape(shape[:2])),
        seen_BD=torch.from_numpy(seen_BD),
    )


def labels(columns: Columns, horizons: tuple[int, ...]) -> Tensor:
    """Revisit frequencies `(B, H)`; NaN where the log ends before the window does."""
    return _float(np.stack([numbers(columns, label_of(days)) for days in horizons], axis=1))


def without_views(observable: Observable, share: float, samples: SamplesConfig) -> Observable:
    """The same with one view missing in about `share` of the rows, drawn from torch's global stream."""
    views = tuple(view_numbers(samples))
    number_B = observable.ad_item_B
    shape, device = tuple(number_B.shape), number_B.device
    drop_B = draw_rows(lambda shape: torch.rand(shape, device=device), shape) < share
    view_B = draw_rows(lambda shape: torch.randint(len(views), shape, device=device), shape)
    for place, view in enumerate(views):
        observable = _without(observable, view, drop_B & (view_B == place), samples)
    return observable


def without_view(observable: Observable, view: str, samples: SamplesConfig) -> Observable:
    """The same as if the store had no row of this view for anybody."""
    everybody_B = torch.ones_like(observable.ad_item_B, dtype=torch.bool)
    return _without(observable, view, everybody_B, samples)


def _without(observable: Observable, view: str, drop_B: Tensor, samples: SamplesConfig) -> Observable:
    number_BP, code_BC = observable.number_BP.clone(), observable.code_BC.clone()
    names = number_names(samples)
    for name in view_numbers(samples)[view]:
        place = names.index(name)
        number_BP[:, place] = number_BP[:, place].masked_fill(drop_B, 0)
        number_BP[:, place + len(names)] = number_BP[:, place + len(names)].masked_fill(drop_B, 1)
    for name in VIEW_CODES.get(view, ()):
        place = tuple(CODES).index(name)
        code_BC[:, place] = code_BC[:, place].masked_fill(drop_B, 0)
    changed = observable._replace(number_BP=number_BP, code_BC=code_BC)
    if view == "interaction_aggregates":
        return changed._replace(history_length_B=changed.history_length_B.masked_fill(drop_B, 0))
    if view == "ad_context":
        return changed._replace(return_length_B=changed.return_length_B.masked_fill(drop_B, 0))
    return changed


def _profile_numbers(
    columns: Columns, bid_B: IntArray, samples: SamplesConfig
) -> tuple[FloatArray, FloatArray]:
    given = {
        "idle_h": _hours(bid_B, numbers(columns, "aggregated_time")),
        "last_return_h": _hours(bid_B, _last(lists(columns, "return_time", np.int64))),
    }
    if samples.landing_item:
        given["item_age_h"] = _hours(bid_B, numbers(columns, "item_counted_time"))
    found = []
    for name in number_names(samples):
        value_B = given[name] if name in given else numbers(columns, name)
        found.append(value_B if name in SHARES else np.log1p(np.maximum(value_B, 0)))
    number_BP = np.stack(found, axis=1)
    flag_BP = np.isnan(number_BP)
    return np.nan_to_num(number_BP), flag_BP.astype(np.float64)


def _profile_codes(columns: Columns, bid_B: IntArray) -> IntArray:
    found = [
        codes(columns, "surface", NUM_SURFACES),
        bid_B // HOUR_US % 24 + 1,
        (bid_B // DAY_US + FIRST_WEEKDAY) % 7 + 1,
        *(codes(columns, name, size) for name, size in PROFILE_CODES.items()),
    ]
    return np.stack(found, axis=1)


def _history(
    columns: Columns, bid_B: IntArray, catalogue: ItemTable, most: int
) -> tuple[IntArray, FloatArray, IntArray]:
    found = parallel(
        columns,
        {"history_item": np.int64, "history_category": np.int64, "history_surface": np.int64,
         "history_engagement": np.float64, "history_time": np.int64},
    )  # fmt: skip
    last = latest(found["history_item"], most)
    item_BT = catalogue.rows(last.take(found["history_item"].value_K, -1))
    category_BT = moved_codes(last.take(found["history_category"].value_K, -1), NUM_CATEGORIES)
    surface_BT = moved_codes(last.take(found["history_surface"].value_K, -1), NUM_SURFACES)
    engagement_BT = np.nan_to_num(last.take(found["history_engagement"].value_K))
    time_BT = last.take(found["history_time"].value_K).astype(np.float64)
    real_BT = np.arange(most) < last.length_B[:, None]
    age_BT = np.where(real_BT, np.log1p(_hours(bid_B[:, None], time_BT)), 0)
    newest_B1 = np.where(real_BT, time_BT, -np.inf).max(axis=1, keepdims=True, initial=0)
    before_BT = np.where(real_BT, np.log1p(_hours(newest_B1, time_BT)), 0)
    code = np.stack([item_BT, category_BT, surface_BT], axis=-1)
    return code, np.stack([engagement_BT, age_BT, before_BT], axis=-1), last.length_B


def _returns(columns: Columns, bid_B: IntArray, most: int) -> tuple[IntArray, FloatArray, IntArray]:
    found = parallel(
        columns, {"return_surface": np.int64, "return_idle_h": np.float64, "return_time": np.int64}
    )
    last = latest(found["return_surface"], most)
    surface_BA = moved_codes(last.take(found["return_surface"].value_K, -1), NUM_SURFACES)
    idle_BA = np.log1p(np.maximum(np.nan_to_num(last.take(found["return_idle_h"].value_K)), 0))
    time_BA = last.take(found["return_time"].value_K).astype(np.float64)
    real_BA = np.arange(most) < last.length_B[:, None]
    age_BA = np.where(real_BA, np.log1p(_hours(bid_B[:, None], time_BA)), 0)
    return surface_BA[..., None], np.stack([idle_BA, age_BA], axis=-1), last.length_B


def _hours(bid: IntArray | FloatArray, time: FloatArray) -> FloatArray:
    # Clocks differ: what lies a little after the request counts as now.
    hours: FloatArray = np.maximum((bid - time) / HOUR_US, 0)
    return hours


def _last(of: Lists) -> FloatArray:
    found = np.full(len(of.length_B), np.nan)
    some = of.length_B > 0
    found[some] = of.value_K[(of.start_B + of.length_B - 1)[some]]
    return found


def _first(by_day: Lists, most: int) -> tuple[IntArray, IntArray]:
    """Indices `(B D, N)` of the first values of each day, and how many of them are real."""
    length = np.minimum(by_day.length_B, most)
    if not len(by_day.value_K):
        return np.zeros((len(length), most), dtype=np.int64), length
    place = np.minimum(by_day.start_B[:, None] + np.arange(most), len(by_day.value_K) - 1)
    return by_day.value_K[place], length


def _padded(
    value_K: tuple[npt.NDArray[np.generic], ...], index: IntArray, length: IntArray
) -> npt.NDArray[Any]:
    real = np.arange(index.shape[1]) < length[:, None]
    if not len(value_K[0]):
        return np.stack([np.zeros(index.shape, dtype=value.dtype) for value in value_K], axis=-1)
    return np.stack([np.where(real, value[index], 0) for value in value_K], axis=-1)


def _float(value: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(value.astype(np.float32))
