"""OCARM (arXiv 2604.25839): reads of the feature store, several requests in one.

What is asked while reads are under way is read together when one of them ends: a read of 16 users takes
little longer than a read of one. Every request waits for its deadline and no longer, whatever the others do,
and a failed read is one failure to the breaker however many requests it was for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from feedworks.serving.guard import Guard, UnavailableError

if TYPE_CHECKING:
    from feedworks.features.reading import FeatureSource, OnlineRows

MAX_KEYS = 512
MAX_UNDER_WAY = 2


class _Asked(NamedTuple):
    keys: Mapping[str, Sequence[int]]
    now_us: int
    rows: asyncio.Future[OnlineRows]

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.keys.values())))


class Reads:
    """Reads features for many requests at once, from one event loop.

    Args:
        source: of features.
        guard: of the source; its deadline is that of each request, too.
    """

    def __init__(self, source: FeatureSource, guard: Guard) -> None:
        self._source = source
        self._guard = guard
        self._waiting: deque[_Asked] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def read(self, keys: Mapping[str, Sequence[int]], now_us: int) -> OnlineRows:
        """Read the rows of N users.

        Args:
            keys: N ids by the column of their entity, of the users and, if it is read, of the ads' items.
            now_us: rows are read as of this time or an earlier one.

        Raises:
            UnavailableError: there are none within the deadline, and why.
        """
        asked = _Asked(keys, now_us, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if len(self._waiting) == 1:  # what else comes in this turn of the loop goes along
            asyncio.get_running_loop().call_soon(self._start)
        done, _ = await asyncio.wait({asked.rows}, timeout=self._guard.deadline_s)
        if not done:
            asked.rows.cancel()
            raise UnavailableError("slow", f"{self._guard.name} is busy with other requests")
        return asked.rows.result()

    async def close(self) -> None:
        """Close the source."""
        await self._source.close()

    def _start(self) -> None:
        while len(self._under_way) < MAX_UNDER_WAY and (batch := self._take()):
            task = asyncio.get_running_loop().create_task(self._read(batch))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start()

    def _take(self) -> list[_Asked]:
        """The next requests that still wait; at least one, however many users it has."""
        batch: list[_Asked] = []
        num_keys = 0
        while self._waiting and (not batch or num_keys + self._waiting[0].num_rows <= MAX_KEYS):
            asked = self._waiting.popleft()
            if not asked.rows.done():
                batch.append(asked)
                num_keys += asked.num_rows
        return batch

    async def _read(self, batch: list[_Asked]) -> None:
        keys = {name: [key for asked in batch for key in asked.keys[name]] for name in batch[0].keys}
        earliest_us = min(asked.now_us for asked in batch)
        try:
            rows = await self._guard.call(lambda: self._source.read(keys, earliest_us))
            parts = _split(rows, [asked.num_rows for asked in batch])
        except Exception as error:
            failure = error if isinstance(error, UnavailableError) else _nonsense(error)
            for asked in batch:
                if not asked.rows.done():
                    asked.rows.set_exception(failure)
            return
        for asked, part in zip(batch, parts, strict=True):
            if not asked.rows.done():
                asked.rows.set_result(part)


def _nonsense(error: Exception) -> UnavailableError:
    return UnavailableError("down", f"the feature store answered something else: {error!r}")


def _split(rows: OnlineRows, counts: Sequence[int]) -> list[OnlineRows]:
    if len(counts) == 1:
        return [rows]
    parts, start = [], 0
    for count in counts:
        cut = slice(start, start + count)
        start += count
        cut_parts: Any = ({name: column[cut] for name, column in part.items()} for part in rows)
        parts.append(type(rows)(*cut_parts))
    return parts
