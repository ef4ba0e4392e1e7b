"""A micro-batcher without clock ticks: what arrives while the model computes is the next batch.

An idle model answers a single request at once, a busy one gets batches that grow with the load. BentoML's
own dispatcher polls every millisecond, keeps one batch in flight and answers 503 where its estimate of the
latency passes a limit; this one refuses only when its queue is full.

The model computes in a thread of its own, or, where a batch takes less than the way to a thread and back
costs, on the event loop itself: requests that come meanwhile wait in their sockets.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from feedworks.errors import FeedworksError

Query = TypeVar("Query")
Answer = TypeVar("Answer")


class OverloadedError(FeedworksError):
    """The queue of waiting requests is full."""


class MicroBatcher(Generic[Query, Answer]):
    """Answers single requests through a function that answers many, one batch at a time.

    Args:
        answer: called with 1 to `max_batch` requests in the order of arrival; returns as many answers.
        max_batch: largest batch.
        max_waiting: requests that may wait; further ones are refused.
        observe: told the size of every batch, e.g. a histogram's `observe`.
        in_thread: False runs `answer` on the event loop, which then does nothing else: for batches of
            a few milliseconds at most.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Query]], Sequence[Answer]],
        *,
        max_batch: int = 32,
        max_waiting: int = 1024,
        observe: Callable[[float], None] | None = None,
        in_thread: bool = True,
    ) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._observe = observe
        self._waiting: deque[tuple[Query, asyncio.Future[Answer]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model") if in_thread else None
        self._draining: asyncio.Task[None] | None = None

    async def submit(self, query: Query) -> Answer:
        """Wait for the answer to one request.

        Raises:
            OverloadedError: too many requests are waiting already.
            Exception: what `answer` raised for this request; a neighbour's error is not passed on.
        """
        if len(self._waiting) >= self._max_waiting:
            raise OverloadedError(f"{self._max_waiting} requests are waiting; try again later")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((query, future))
        if self._draining is None or self._draining.done():
            self._draining = loop.create_task(self._drain())
        return await future

    def close(self) -> None:
        """End the thread; requests that still wait get an error."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            queries = [query for query, _ in batch]
            try:
                if self._thread is None:
                    outcomes = self._outcomes(queries)
                else:
                    outcomes = await loop.run_in_executor(self._thread, self._outcomes, queries)
            except Exception as error:  # the thread is gone: an error now, instead of a wait without end
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)
            if self._thread is None:
                await asyncio.sleep(0)  # the answers go out, and what came meanwhile comes in

    def _take(self) -> list[tuple[Query, asyncio.Future[Answer]]]:
        """The next batch; requests whose client is gone are left out."""
        batch: list[tuple[Query, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._max_batch:
            query, future = self._waiting.popleft()
            if not future.done():
                batch.append((query, future))
        return batch

    def _outcomes(self, queries: Sequence[Query]) -> Sequence[Answer | Exception]:
        """Answers, or the error of each request alone where the batch as a whole failed."""
        if self._observe is not None:
            self._observe(len(queries))
        try:
            answers = self._answer(queries)
            if len(answers) != len(queries):
                raise RuntimeError(f"{len(queries)} requests got {len(answers)} answers")
            return answers
        except Exception as error:
            if len(queries) == 1:
                return [error]
        return [self._outcomes([query])[0] for query in queries]


def _settle(future: asyncio.Future[Answer], outcome: Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
