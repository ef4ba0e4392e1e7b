"""OCARM (arXiv 2604.25839): what is known of the users of one request, as the columns that the model reads.

A value that is not known is NaN or an empty list, as it is in a training set, never a number that means
something. Beside the values stands why they are not known.

Shape legend: N users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from feedworks.contracts.features import FEATURE_TABLES
from feedworks.features.schema import ServiceSchema, ViewSchema

if TYPE_CHECKING:
    from feedworks.features.reading import OnlineRows

# The states of a view; the first three are those of `feedworks.features.reading`.
FRESH, STALE, MISSING, AHEAD, GIVEN, INCOMPLETE, UNREAD = range(7)
STATES = ("fresh", "stale", "missing", "ahead", "given", "incomplete", "unread")
USABLE = (FRESH, GIVEN, INCOMPLETE)
# Clocks of the pushers and of this machine differ by less.
CLOCKS_US = 60_000_000

Array = npt.NDArray[Any]
Columns = dict[str, Array | list[Array]]
_NOTHING: Array = np.empty(0, np.float64)


class Known(NamedTuple):
    """Features of N users.

    Attributes:
        columns: feature -> (N,) float64 with NaN for what is not known, or N arrays.
        state: view -> (N,) one of the states.
        age_s: view -> (N,) seconds between the row and the bid; NaN where there is no row.
    """

    columns: Columns
    state: dict[str, npt.NDArray[np.uint8]]
    age_s: dict[str, npt.NDArray[np.float64]]

    @property
    def usable(self) -> npt.NDArray[np.bool_]:
        """(N,) whether anything is known of a user."""
        states_VN = np.array(list(self.state.values()))
        return np.asarray(np.isin(states_VN, USABLE).any(axis=0))


def unknown(schema: ServiceSchema, num_users: int) -> Known:
    """Nothing is known of anybody; all views are unread."""
    return Known(
        {
            feature.name: [_NOTHING] * num_users if feature.is_list else np.full(num_users, np.nan)
            for view in schema.views
            for feature in view.features
        },
        {view.name: np.full(num_users, UNREAD, np.uint8) for view in schema.views},
        {view.name: np.full(num_users, np.nan) for view in schema.views},
    )


def put_rows(
    known: Known, schema: ServiceSchema, at_N: npt.NDArray[np.int64], rows: OnlineRows, bid_us_N: Array
) -> None:
    """Put in what the store holds about some users, as of their bids.

    The store is read as of the earliest bid of a request, so that here nothing is null that a later bid may
    use; a row that is too old for a bid, or newer than a bid in the past, is left out. A row without a value
    that its contract demands is used and called incomplete.

    Args:
        known: filled in place.
        schema: its views.
        at_N: places of the users in `known`.
        rows: of these users.
        bid_us_N: their times.
    """
    for view in schema.views:
        time_us = rows.time_us[view.name]
        state = np.where(rows.status[view.name] == MISSING, MISSING, _state(view, time_us, bid_us_N))
        state[(rows.status[view.name] == STALE) & (state == FRESH)] = STALE
        is_fresh = state == FRESH
        for name in required(view):
            state[is_fresh & rows.null[name]] = INCOMPLETE
        known.state[view.name][at_N] = state
        known.age_s[view.name][at_N] = np.where(state == MISSING, np.nan, (bid_us_N - time_us) / 1e6)
        _put_values(known, view, at_N, rows, is_fresh)


def put_given(known: Known, schema: ServiceSchema, at: int, features: Mapping[str, Any], bid_us: int) -> None:
    """Put in the features that came with a user; a view of which none came is missing, or some incomplete.

    As of a stored row, a view with a time after the bid is ahead of it and left out; its age is negative.

    Args:
        known: filled in place.
        schema: its views.
        at: place of the user.
        features: column -> number, list, or None.
        bid_us: time of the bid.
    """
    for view in schema.views:
        values = {each.name: features.get(each.name) for each in view.features}
        if all(value is None for value in values.values()):
            known.state[view.name][at] = MISSING
            continue
        if (newest_us := _newest(values)) - bid_us > CLOCKS_US:
            known.state[view.name][at] = AHEAD
            known.age_s[view.name][at] = (bid_us - newest_us) / 1e6
            continue
        lacking = any(values[name] is None for name in required(view))
        known.state[view.name][at] = INCOMPLETE if lacking else GIVEN
        for each in view.features:
            value = values[each.name]
            if value is not None:
                column = known.columns[each.name]
                column[at] = np.asarray(value) if each.is_list else value


def join(parts: Sequence[Columns]) -> Columns:
    """The rows of several requests, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: [row for part in parts for row in part[name]]
        if isinstance(first, list)
        else np.concatenate([part[name] for part in parts])
        for name, first in parts[0].items()
    }


@lru_cache
def required(view: ViewSchema) -> tuple[str, ...]:
    """The columns of a view that its contract does not allow to be null."""
    columns = {c.name: c for table in FEATURE_TABLES if table.name == view.name for c in table.features}
    return tuple(f.name for f in view.features if f.name in columns and not columns[f.name].nullable)


def _newest(values: Mapping[str, Any]) -> int:
    """The latest of all times in a view, 0 where there is none."""
    times = (value for name, value in values.items() if name.endswith("_time") and value is not None)
    return max((int(np.max(time, initial=0)) for time in times), default=0)


def _state(view: ViewSchema, time_us: Array, bid_us_N: Array) -> npt.NDArray[np.uint8]:
    age_us = bid_us_N - time_us
    state = np.where(age_us > view.ttl_s * 1_000_000, STALE, FRESH)
    return np.where(age_us < -CLOCKS_US, AHEAD, state).astype(np.uint8)


def _put_values(known: Known, view: ViewSchema, at_N: Array, rows: OnlineRows, fresh_N: Array) -> None:
    places, sources = at_N[fresh_N], np.flatnonzero(fresh_N)
    for each in view.features:
        values, column = rows.columns[each.name], known.columns[each.name]
        if isinstance(column, list):
            for place, source in zip(places.tolist(), sources.tolist(), strict=True):
                column[place] = values[source]
        else:
            column[places] = np.where(rows.null[each.name], np.nan, np.asarray(values, np.float64))[sources]
