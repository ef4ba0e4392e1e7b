"""The push simulator: replays a log of live rooms at a steady rate while another process reads, and counts.

An event is lost if the last read shows its room older than the event. It is fresh after the time from its
arrival, whether the sender was ready for it or not, until a read shows it or a newer one of its room.

Shape letters: N events, R rooms.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.features import LIVE_SERVICE, LIVE_STREAM
from feedworks.errors import StoreError
from feedworks.features.live_log import Arrivals, Ints, arrivals
from feedworks.features.push import Sink, push
from feedworks.features.reading import open_source
from feedworks.features.schema import ServiceSchema
from feedworks.progress import Progress

TICK_S = 0.005
READ_EVERY_S = 0.002
READ_WITHIN_S = 5.0
START_WITHIN_S = 60.0
SETTLE_S = 1.0
_VIEW, _VERSION = LIVE_STREAM.name, "anchor_version"


class Replayed(NamedTuple):
    """What became of a replay; times in seconds.

    Attributes:
        num_pushed: events sent, late and repeated ones included.
        num_rejected: of them, not written because they break the contract.
        num_late: of them, overtaken by a newer event of their room, so never to be seen.
        num_repeated: of them, sent before.
        num_lost: events that should be seen, and are not.
        num_backwards: reads that showed a room older than before.
        num_wrong: reads that showed values of another event than their time says.
        num_reads: reads of all rooms.
        seconds: from the first push to the last.
        freshness_p50_s: from arrival to readable, median over events that should be seen.
        freshness_p99_s: its 99th percentile.
        freshness_max_s: its largest.
        read_p50_s: time of one read of all rooms.
        read_p99_s: its 99th percentile.
    """

    num_pushed: int
    num_rejected: int
    num_late: int
    num_repeated: int
    num_lost: int
    num_backwards: int
    num_wrong: int
    num_reads: int
    seconds: float
    freshness_p50_s: float
    freshness_p99_s: float
    freshness_max_s: float
    read_p50_s: float
    read_p99_s: float


class Seen(NamedTuple):
    """What the reader saw: M changes of a room in the order of time, and the duration of each read.

    Attributes:
        at_ns: (M,) monotonic clock of the machine at the end of the read.
        room: (M,) rooms.
        time_us: (M,) event time that the room has now.
        version: (M,) its anchor version.
        read_s: durations of all reads.
    """

    at_ns: Ints
    room: Ints
    time_us: Ints
    version: Ints
    read_s: npt.NDArray[np.float64]


def replay(sink: Sink, url: str, log: pa.Table, rate: float, seconds: float, *, seed: int = 0) -> Replayed:
    """Push the events of a log at `rate` events/s for `seconds` while a second process reads all rooms.

    Args:
        sink: what is pushed to.
        url: address of the same store for the reader.
        log: from `read_log` or `synthetic_log`; the replay ends with it.
        rate: events per second; where the store cannot keep up, the replay takes longer and events are stale.
        seconds: how long.
        seed: of the late and repeated events.

    Raises:
        StoreError: the store does not answer the pushes, or the reader.
    """
    log = log.slice(0, int(rate * seconds))
    rooms = np.unique(log["room_id"].to_numpy())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    reader = context.Process(target=_watch, args=(url, rooms, theirs), daemon=True)
    reader.start()
    try:
        _expect(ours, START_WITHIN_S)
        start_ns = time.monotonic_ns()
        coming = arrivals(log, rate, time.time_ns() // 1000, seed=seed)
        num_rejected = _send(sink, coming, start_ns)
        ended_ns = time.monotonic_ns()
        time.sleep(SETTLE_S)
        ours.send("stop")
        seen: Seen = _expect(ours, START_WITHIN_S)
    finally:
        reader.kill()
        reader.join()
    return _count(coming, seen, start_ns, ended_ns, num_rejected)


def _send(sink: Sink, coming: Arrivals, start_ns: int) -> int:
    """Push what has arrived, again and again; returns how many were rejected."""
    sent, num_rejected, num = 0, 0, len(coming.due_us)
    with Progress("pushing", total=num) as shown:
        while sent < num:
            now_us = (time.monotonic_ns() - start_ns) // 1000
            arrived = int(np.searchsorted(coming.due_us, now_us, side="right"))
            if arrived == sent:
                time.sleep(TICK_S)
                continue
            num_rejected += len(push(sink, LIVE_STREAM, coming.rows.slice(sent, arrived - sent)).rejected)
            shown.advance(arrived - sent)
            sent = arrived
    return num_rejected


def _expect(pipe: Connection, within_s: float) -> Any:
    if not pipe.poll(within_s):
        raise StoreError(f"the reader did not answer within {within_s:.0f} s")
    try:
        answer = pipe.recv()
    except EOFError:
        raise StoreError("the reader ended by itself") from None
    if isinstance(answer, StoreError):
        raise answer
    return answer


def _watch(url: str, rooms: Ints, pipe: Connection) -> None:
    """The reader's process."""
    try:
        asyncio.run(_read_on(url, rooms, pipe))
    except StoreError as error:
        pipe.send(error)


async def _read_on(url: str, rooms: Ints, pipe: Connection) -> None:
    source = open_source(url, ServiceSchema.of(LIVE_SERVICE), timeout_s=READ_WITHIN_S)
    keys = rooms.tolist()
    changes: list[tuple[int, Ints, Ints, Ints]] = []
    read_s: list[float] = []
    before = (await source.read(keys, time.time_ns() // 1000)).time_us[_VIEW]
    pipe.send("ready")
    while not pipe.poll():
        start_ns = time.monotonic_ns()
        rows = await source.read(keys, time.time_ns() // 1000)
        end_ns = time.monotonic_ns()
        read_s.append((end_ns - start_ns) / 1e9)
        now = rows.time_us[_VIEW]
        changed = np.flatnonzero(now != before)
        if len(changed):
            versions = np.asarray(rows.columns[_VERSION])
            changes.append((end_ns, rooms[changed], now[changed], versions[changed]))
        before = now
        await asyncio.sleep(READ_EVERY_S)
    await source.close()
    none = np.empty(0, dtype=np.int64)
    seen = Seen(
        at_ns=np.concatenate([none, *(np.full(len(room), at) for at, room, _, _ in changes)]),
        room=np.concatenate([none, *(room for _, room, _, _ in changes)]),
        time_us=np.concatenate([none, *(time_us for _, _, time_us, _ in changes)]),
        version=np.concatenate([none, *(version for _, _, _, version in changes)]),
        read_s=np.array(read_s),
    )
    pipe.send(seen)


def _count(coming: Arrivals, seen: Seen, start_ns: int, ended_ns: int, num_rejected: int) -> Replayed:
    room_N = coming.rows["room_id"].to_numpy()
    time_N = coming.rows["event_time"].cast(pa.int64()).to_numpy()
    version_N = coming.rows[_VERSION].to_numpy()
    waited: list[npt.NDArray[np.float64]] = []
    num_lost = num_backwards = num_wrong = 0
    for room in np.unique(room_N):
        here = room_N == room
        shown = seen.room == room
        shown_us, shown_ns = seen.time_us[shown], seen.at_ns[shown]
        num_backwards += int((np.diff(shown_us) < 0).sum())
        known = dict(zip(time_N[here].tolist(), version_N[here].tolist(), strict=True))
        pairs = zip(shown_us.tolist(), seen.version[shown].tolist(), strict=True)
        num_wrong += sum(known.get(at) != version for at, version in pairs if at)
        due = here & ~coming.late_N & ~coming.repeated_N
        first = np.searchsorted(np.maximum.accumulate(shown_us), time_N[due]) if len(shown_us) else None
        found = np.zeros(int(due.sum()), bool) if first is None else first < len(shown_us)
        num_lost += int((~found).sum())
        if first is not None:
            waited.append((shown_ns[first[found]] - start_ns) / 1e9 - coming.due_us[due][found] / 1e6)
    waits = np.concatenate([np.empty(0), *waited])
    p50, p99, largest = np.quantile(waits, [0.5, 0.99, 1.0]) if len(waits) else [np.nan] * 3
    read_p50, read_p99 = np.quantile(seen.read_s, [0.5, 0.99]) if len(seen.read_s) else [np.nan] * 2
    return Replayed(
        num_pushed=len(time_N),
        num_rejected=num_rejected,
        num_late=int(coming.late_N.sum()),
        num_repeated=int(coming.repeated_N.sum()),
        num_lost=num_lost,
        num_backwards=num_backwards,
        num_wrong=num_wrong,
        num_reads=len(seen.read_s),
        seconds=(ended_ns - start_ns) / 1e9,
        freshness_p50_s=float(p50),
        freshness_p99_s=float(p99),
        freshness_max_s=float(largest),
        read_p50_s=float(read_p50),
        read_p99_s=float(read_p99),
    )
