"""Event logs to the feature tables of users: what was known about a user, and since when.

One row of aggregates per user and active day, known with the day's last event; one row of the ad context per
return, known with it; one row of content per conversion, known when its window has passed. All times are
absolute. Shapes: E events of a block, R rows.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import PROFILES
from feedworks.contracts.tables import EVENT_TIME
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.event_log import (
    DAY_US,
    HOUR_US,
    Categories,
    Events,
    FloatArray,
    IntArray,
    Span,
    first_at_least,
    ranges,
)

# A bot's day must not become a list of a million items; no model reads more of a day.
MAX_CONTENT_PER_DAY = 100


class Conversions(NamedTuple):
    """Where users come back: row of the event, and the time without events before it.

    `idle_us_R` is 0 where there is no event before it: the conversion is the user's first event.
    """

    event_R: IntArray
    idle_us_R: IntArray


def find_conversions(events: Events, cfg: SamplesConfig) -> Conversions:
    """Events after `idle_days` or more without one, and first events where `first_is_conversion`."""
    first_E = np.arange(len(events.user_E)) == events.start_E
    gap_E = np.diff(events.time_E, prepend=events.time_E[:1])
    gap_E[first_E] = 0
    back_E = gap_E >= round(cfg.idle_days * DAY_US)
    event_R = np.flatnonzero(back_E & ~first_E | (first_E & cfg.first_is_conversion))
    return Conversions(event_R, gap_E[event_R])


def aggregates(events: Events, categories: Categories, cfg: SamplesConfig) -> pa.Table:
    """INTERACTION_AGGREGATES: counts up to the last event of each day (UTC), and the latest events."""
    day_E = events.time_E // DAY_US
    last_R = np.flatnonzero((np.diff(events.user_E) != 0) | (np.diff(day_E) != 0))
    last_R = np.append(last_R, len(events.user_E) - 1)
    time_R, start_R = events.time_E[last_R], events.start_E[last_R]
    # begins[k]: first event of the k 24-hour periods that end with the row's last event.
    begins = [last_R + 1]
    for k in range(1, 29):
        begins.append(first_at_least(events.time_E, start_R, begins[-1], time_R - k * DAY_US + 1))
    active_RK = np.stack([after > before for after, before in itertools.pairwise(begins)], 1)
    count_7_R = last_R + 1 - begins[7]
    running = np.append(0.0, np.cumsum(events.engagement_E))
    length_R = np.minimum(last_R + 1 - start_R, cfg.max_history)
    flat = ranges(last_R + 1 - length_R, length_R)
    return pa.table(
        {
            "user_id": events.user_E[last_R],
            "event_time": times(time_R),
            "num_events_1d": last_R + 1 - begins[1],
            "num_events_7d": count_7_R,
            "num_events_28d": last_R + 1 - begins[28],
            "num_days_7d": active_RK[:, :7].sum(1),
            "num_days_28d": active_RK.sum(1),
            "mean_engagement_7d": ((running[last_R + 1] - running[begins[7]]) / count_7_R).clip(0, 1),
            "history_item": lists(length_R, events.item_E[flat]),
            "history_category": lists(length_R, categories.of(events.item_E[flat])),
            "history_surface": lists(length_R, events.surface_E[flat]),
            "history_engagement": lists(length_R, events.engagement_E[flat].astype(np.float32)),
            "history_time": lists(length_R, events.time_E[flat]),
            "aggregated_time": time_R,
        }
    )


def ad_context(events: Events, conversions: Conversions, cfg: SamplesConfig) -> pa.Table:
    """AD_CONTEXT: each return with those before it; a user's first event is no return."""
    returned_R = conversions.idle_us_R > 0
    event_R, idle_us_R = conversions.event_R[returned_R], conversions.idle_us_R[returned_R]
    user_R = events.user_E[event_R]
    number_R = np.arange(len(user_R)) - np.searchsorted(user_R, user_R) + 1
    length_R = np.minimum(number_R, cfg.max_returns)
    flat = ranges(np.arange(len(user_R)) + 1 - length_R, length_R)
    return pa.table(
        {
            "user_id": user_R,
            "event_time": times(events.time_E[event_R]),
            "num_returns": number_R,
            "return_surface": lists(length_R, events.surface_E[event_R][flat]),
            "return_idle_h": lists(length_R, (idle_us_R[flat] / HOUR_US).astype(np.float32)),
            "return_time": lists(length_R, events.time_E[event_R][flat]),
        }
    )


def onboarding(
    events: Events, conversions: Conversions, categories: Categories, span: Span, cfg: SamplesConfig
) -> pa.Table:
    """ONBOARDING: the first events of each day of the content window, if the log does not end before it."""
    time_R = events.time_E[conversions.event_R]
    event_R = conversions.event_R[time_R + cfg.content_days * DAY_US <= span.end_us]
    time_R, end_R = events.time_E[event_R], events.end_E[event_R]
    begins = [event_R]
    for day in range(1, cfg.content_days + 1):
        begins.append(first_at_least(events.time_E, begins[-1], end_R, time_R + day * DAY_US))
    begin_RD = np.stack(begins, axis=1)
    length_RD = np.diff(begin_RD, axis=1).clip(max=MAX_CONTENT_PER_DAY)
    flat, length_R = ranges(begin_RD[:, :-1].ravel(), length_RD.ravel()), length_RD.sum(1)
    return pa.table(
        {
            "user_id": events.user_E[event_R],
            "event_time": times(time_R + cfg.content_days * DAY_US),
            "content_item": lists(length_R, events.item_E[flat]),
            "content_category": lists(length_R, categories.of(events.item_E[flat])),
            "content_engagement": lists(length_R, events.engagement_E[flat].astype(np.float32)),
            "content_time": lists(length_R, events.time_E[flat]),
        }
    )


def user_profiles(data_dir: Path, events: Events, span: Span) -> pa.Table:
    """USER_PROFILE of the block's users, as of the day before the log begins: profiles carry no time.

    Without a table of profiles every user gets the codes 0, which mean "not known".
    """
    read_us = span.start_us // DAY_US * DAY_US - DAY_US
    users = np.unique(events.user_E)
    if PROFILES.path(data_dir).is_file():
        rows = read_table(PROFILES, data_dir)
        rows = rows.filter(pa.array(np.isin(rows["user_id"].to_numpy(), users)))
    else:
        codes = {c.name: np.zeros(len(users), np.int64) for c in PROFILES.columns if not c.nullable}
        rows = pa.table({**codes, "user_id": users, "tenure_days": pa.nulls(len(users), pa.float32())})
    read = pa.array(np.full(len(rows), read_us))
    return rows.append_column("event_time", read.cast(EVENT_TIME)).append_column("profile_time", read)


def times(time_us_R: IntArray) -> pa.Array:
    """Microseconds since 1970 UTC as times."""
    return pa.array(time_us_R).cast(EVENT_TIME)


def lists(length_R: IntArray, values: IntArray | FloatArray | npt.NDArray[np.float32]) -> pa.Array:
    """Lists of the given lengths over values that stand one after the other."""
    return pa.ListArray.from_arrays(pa.array(np.append(0, np.cumsum(length_R)), pa.int32()), pa.array(values))
