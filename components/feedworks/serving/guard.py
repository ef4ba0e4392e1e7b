"""Calls to something that may be slow or gone, such as a feature store: a deadline, few retries, a breaker.

A call returns or fails within its deadline, whatever it waits for: it is not waited for to notice that it was
cancelled. After some failures in a row the breaker opens and calls fail at once; from then on one call per
pause is let through to see whether things are well again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

from feedworks.errors import FeedworksError

Result = TypeVar("Result")
Why = Literal["slow", "down", "off"]

_log = logging.getLogger(__name__)


class UnavailableError(FeedworksError):
    """No result within the deadline.

    Attributes:
        why: `slow` it did not come in time, `down` the call failed, `off` the breaker is open.
    """

    def __init__(self, why: Why, message: str) -> None:
        super().__init__(message)
        self.why: Why = why


class Guard:
    """Guards the calls to one thing, from one event loop.

    Args:
        name: of the thing, for messages.
        deadline_s: seconds a call may take, retries included.
        retries: further attempts after one that failed; none after one that was slow.
        max_failures: failed calls in a row that open the breaker.
        pause_s: seconds between two calls that an open breaker lets through.
        clock: seconds that only grow.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        deadline_s: float,
        retries: int = 1,
        max_failures: int = 5,
        pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if deadline_s <= 0 or retries < 0 or max_failures < 1 or pause_s <= 0:
            raise ValueError(f"out of range: {deadline_s=}, {retries=}, {max_failures=}, {pause_s=}")
        self.name = name
        self.deadline_s = deadline_s
        self._retries = retries
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._next_s = 0.0
        self._left_alone: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether calls fail at once."""
        return self._failures >= self._max_failures

    async def call(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Await what `make` returns.

        Args:
            make: makes a new coroutine for each attempt.

        Raises:
            UnavailableError: there is no result, and why.
        """
        start_s = self._clock()
        if self.is_open:
            if start_s < self._next_s:
                raise UnavailableError("off", f"{self.name} failed {self._failures} times in a row")
            self._next_s = start_s + self._pause_s  # this call is the one of this pause
        try:
            result = await self._attempts(make, start_s + self.deadline_s)
        except UnavailableError as error:
            self._fail(error)
            raise
        if self.is_open:
            _log.warning("%s is back after %d failures", self.name, self._failures)
        self._failures = 0
        return result

    async def _attempts(self, make: Callable[[], Coroutine[Any, Any, Result]], end_s: float) -> Result:
        last: Exception | None = None
        for _ in range(1 + self._retries):
            left_s = end_s - self._clock()
            if left_s <= 0:
                break
            task = asyncio.get_running_loop().create_task(make())
            try:
                done, _ = await asyncio.wait({task}, timeout=left_s)
            except asyncio.CancelledError:  # our client is gone
                self._leave_alone(task)
                raise
            if not done:
                self._leave_alone(task)
                raise UnavailableError("slow", f"{self.name} did not answer in {self.deadline_s * 1e3:g} ms")
            if task.cancelled():
                last = ConnectionError("the call was cancelled")
            elif (error := task.exception()) is None:
                return task.result()
            elif isinstance(error, Exception):
                last = error
            else:
                raise error
        raise UnavailableError("down", f"{self.name}: {type(last).__name__}: {last}")

    def _leave_alone(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task without waiting for its end; the event loop alone would let go of it."""
        self._left_alone.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left_alone.discard(task)
        if not task.cancelled():
            task.exception()  # or it would be reported as never seen

    def _fail(self, error: UnavailableError) -> None:
        self._failures += 1
        if self._failures == self._max_failures:
            self._next_s = self._clock() + self._pause_s
            _log.warning("%s is left alone but for a try every %g s: %s", self.name, self._pause_s, error)
