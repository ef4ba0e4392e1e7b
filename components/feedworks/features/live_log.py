"""A log of live rooms as a stream would bring it: seeded, in the columns of the live_stream contract.

Shape letters: N events, R rooms.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.features import LIVE_STREAM
from feedworks.errors import DataError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
START_US = 1_714_521_600_000_000  # 2024-05-01
NUM_CODES, CODE_SIZE = 4, 256
_EVENT_US = 1000


class Arrivals(NamedTuple):
    """N events in the order in which they arrive.

    Attributes:
        rows: N rows of the contract; event times are those of the replay.
        due_us: (N,) when an event arrives, microseconds after the start.
        late_N: (N,) True where a newer event of the room arrived before.
        repeated_N: (N,) True where the same event arrived before.
    """

    rows: pa.Table
    due_us: Ints
    late_N: Bools
    repeated_N: Bools


def synthetic_log(num_events: int, num_rooms: int = 200, seed: int = 0) -> pa.Table:
    """A log of events a millisecond apart, each of a random room; counts wander, anchors change."""
    rng = np.random.default_rng(seed)
    room_N = rng.integers(0, num_rooms, num_events)
    time_us = START_US + np.arange(num_events) * _EVENT_US
    viewers_N = np.maximum(0, 500 + _walk(room_N, num_rooms, rng.integers(-20, 21, num_events)))
    version_N = _walk(room_N, num_rooms, (rng.random(num_events) < 0.1).astype(np.int64))
    comments_N = rng.poisson(viewers_N / 50)
    gifts_N = rng.poisson(viewers_N / 200)
    codes = (room_N[:, None] * 7919 + version_N[:, None] * 31 + np.arange(NUM_CODES)) % CODE_SIZE
    started_us = START_US - rng.integers(60, 7200, num_rooms) * 1_000_000
    columns = {
        "room_id": room_N,
        "event_time": pa.array(time_us).cast(pa.timestamp("us", tz="UTC")),
        "author_id": room_N + 1_000_000,
        "num_viewers": viewers_N,
        "num_comments_1m": comments_N,
        "num_comments_5m": comments_N * 5,
        "num_gifts_5m": gifts_N,
        "gift_value_5m": (gifts_N * rng.exponential(2.0, num_events)).astype(np.float32),
        "num_follows_5m": rng.poisson(viewers_N / 300),
        "watch_share_5m": rng.random(num_events).astype(np.float32),
        "started_time": started_us[room_N],
        "anchor_version": version_N,
        "anchor_codes": pa.ListArray.from_arrays(
            np.arange(num_events + 1, dtype=np.int32) * NUM_CODES, codes.ravel()
        ),
    }
    log: pa.Table = pa.table(columns).select(LIVE_STREAM.schema.names).cast(LIVE_STREAM.schema)
    return log


def read_log(path: Path) -> pa.Table:
    """A log from a parquet file of the live_stream contract, in the order of its event times.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    try:
        log = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: {str(error).splitlines()[0]}; expected a parquet file of live_stream"
        ) from None
    missing = [name for name in LIVE_STREAM.schema.names if name not in log.column_names]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; expected the columns of live_stream")
    return log.select(LIVE_STREAM.schema.names).sort_by("event_time")


def arrivals(
    log: pa.Table,
    rate: float,
    start_us: int,
    *,
    late_share: float = 0.02,
    repeated_share: float = 0.01,
    late_s: float = 5.0,
    seed: int = 0,
) -> Arrivals:
    """The events of a log at `rate` events/s from `start_us` on, some of them late and some twice.

    Args:
        log: N events in the order of their event times.
        rate: events per second.
        start_us: event time of the first, microseconds since 1970 UTC.
        late_share: of events whose event time is up to `late_s` seconds before their arrival.
        repeated_share: of events that are replaced by one that arrived before.
        late_s: in seconds.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    num = log.num_rows
    due_us = (np.arange(num) * (1_000_000 / rate)).astype(np.int64)
    delay_us = np.where(rng.random(num) < late_share, rng.integers(1, int(late_s * 1_000_000), num), 0)
    time_us = start_us + due_us - delay_us
    take_N = np.arange(num)
    repeats = np.flatnonzero(rng.random(num) < repeated_share)
    repeats = repeats[repeats > 0]
    take_N[repeats] = rng.integers(0, repeats)
    take_N = take_N[take_N]  # a repeat of a repeat is one of the first
    place = log.column_names.index("event_time")
    times = pa.array(time_us).cast(pa.timestamp("us", tz="UTC"))
    rows = log.set_column(place, log.schema.field(place), times).take(take_N)
    room_N, time_N = rows["room_id"].to_numpy(), time_us[take_N]
    repeated_N = take_N != np.arange(num)
    return Arrivals(rows, due_us, _overtaken(room_N, time_N) & ~repeated_N, repeated_N)


def _walk(room_N: Ints, num_rooms: int, step_N: Ints) -> Ints:
    """Sums of the steps so far, room by room."""
    order = np.argsort(room_N, kind="stable")
    total = np.cumsum(step_N[order])
    first = np.searchsorted(room_N[order], np.arange(num_rooms))
    before = np.concatenate([[0], total])[first]
    found = np.empty_like(total)
    found[order] = total - before[room_N[order]]
    return found


def _overtaken(room_N: Ints, time_N: Ints) -> Bools:
    """Whether an event that arrived before, of the same room, is at least as new."""
    newest: dict[int, int] = {}
    late = np.zeros(len(room_N), dtype=bool)
    for i, (room, time_us) in enumerate(zip(room_N.tolist(), time_N.tolist(), strict=True)):
        late[i] = time_us <= newest.get(room, time_us - 1)
        newest[room] = max(time_us, newest.get(room, time_us))
    return late
